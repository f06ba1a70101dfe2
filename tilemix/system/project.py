"""Where the project's own folders stand: `weights/` and `prompt_templates/`, beside `predict.py`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
