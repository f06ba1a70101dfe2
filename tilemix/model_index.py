"""Find a model file in `weights/` by its name, and tell what it is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tilemix import modelfile
from tilemix.errors import MissingFilesError, ModelFileError
from tilemix.modelfile.search import SUFFIXES
from tilemix.project import ROOT

FOLDERS = ("weights/files", "weights")


def metadata(name: str, root: Path = ROOT) -> dict[str, object]:
    """Return what the model file `name` is, its hash included: the fields of `ModelFile` as plain values.

    Args:
        name: a file in weights/files/ or weights/, with its extension or without, or a diffusers folder there.
            It is compared with the names that are there, never joined to a path.
        root: the project's folder.

    Raises:
        MissingFilesError: there is no such file.
        ModelFileError: two files have the name, or the file cannot be read.
    """
    answer: dict[str, object] = msgspec.to_builtins(modelfile.read(find(name, root)))
    return answer


def find(name: str, root: Path = ROOT) -> Path:
    """Return the path of the model `name`, see `metadata`. A whole file name goes before one without extension.

    Raises:
        MissingFilesError, ModelFileError: see `metadata`.
    """
    places = [path for folder in FOLDERS for path in _models(root / folder)]
    exact = [path for path in places if path.name == name]
    found = exact[:1] or [path for path in places if path.is_file() and path.stem == name]
    if not found:
        known = ", ".join(sorted({path.name for path in places})) or "none"
        raise MissingFilesError(f"no model file {name[:80]!r} in {' or '.join(FOLDERS)}; there: {known}")
    if len(found) > 1:
        raise ModelFileError(f"{name!r} names {', '.join(path.name for path in found)}; add the extension")
    return found[0]


def _models(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if (path.is_file() and path.suffix.lower() in SUFFIXES) or (path / "model_index.json").is_file()
    )
