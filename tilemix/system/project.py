"""The default model, and the project's root, which holds `weights/`, `prompt_templates/` and `predict.py`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = "miniature"  # where TILEMIX_MODEL is not set
