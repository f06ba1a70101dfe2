"""The model files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Candidates are chosen by name, because a folder holds much else; the content then says what they are.
SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pti"}


def find_model_files(folder: Path) -> Iterator[Path]:
    """Yield the model files and diffusers folders in `folder` and below it, sorted by name.

    A diffusers folder counts as one model and is not searched. Hidden files and linked folders are left out.
    """
    for current, folders, files in os.walk(folder):
        here = Path(current)
        if "model_index.json" in files:
            folders.clear()
            yield here
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield here / name
