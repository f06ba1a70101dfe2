"""The model files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# By name, because a folder holds much else; what such a file is, its content decides.
SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pti"}


def find_model_files(folder: Path) -> Iterator[Path]:
    """Yield the model files and diffusers folders in `folder` and below it, in the order of their names.

    A diffusers folder is one model and not gone into. Hidden files, links to folders and what is in them are
    left out.
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
