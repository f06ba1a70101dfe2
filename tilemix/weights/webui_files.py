"""The files of a web UI's folder: which there are, what they are called here, and how they get into weights/files/."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tilemix.errors import Message, WeightsError
from tilemix.modelfile.latin import spell_in_latin

# The folders that are read, in FOLDER or in FOLDER/models, in lower case -> the message on files that have no use here.
FOLDERS = {
    "stable-diffusion": None, "sd": None, "checkpoints": None, "lora": None, "loras": None, "lycoris": None,
    "vae": None, "hypernetworks": None, "embeddings": None, "ti": None,
    "esrgan": "webui-upscaler", "realesrgan": "webui-upscaler", "swinir": "webui-upscaler", "ldsr": "webui-upscaler",
    "sr": "webui-upscaler", "upscale_models": "webui-upscaler", "codeformer": "webui-face", "gfpgan": "webui-face",
    "controlnet": "webui-controlnet", "cn": "webui-controlnet", "deepbooru": "webui-other", "blip": "webui-other",
    "vae-approx": "webui-other", "torch_deepdanbooru": "webui-other",
}  # fmt: skip
ENDINGS = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
MAX_FILES = 10_000
MOST_MODEL, MOST_FILE = 64, 100  # characters of a name


class Entry(NamedTuple):
    """A model file in a web UI's folder."""

    path: Path
    useless: Message | None  # why it has no use here; None: it may have one


def list_files(folder: Path) -> Iterator[Entry]:
    """Yield the model files of a web UI's folder, those that cannot be read and links to folders included.

    Raises:
        WeightsError: there is no such folder, none of the known ones is in it, or there are too many files.
    """
    if not folder.is_dir():
        raise WeightsError("webui-no-folder", folder=str(folder))
    places = [
        place
        for parent in (folder, folder / "models")
        if parent.is_dir()
        for place in sorted(parent.iterdir())
        if place.is_dir() and place.name.lower() in FOLDERS
    ]
    if not places:
        raise WeightsError("webui-none-known", folder=str(folder), known=", ".join(FOLDERS))
    count = 0
    for place in places:
        for path in sorted(place.rglob("*")):
            hidden = any(part.startswith(("_", ".")) for part in path.relative_to(place).parts)
            is_file = path.suffix.lower() in ENDINGS and not path.is_dir()
            if hidden or not (is_file or (path.is_symlink() and path.is_dir())):
                continue
            count += 1
            if count > MAX_FILES:
                raise WeightsError("webui-too-many", folder=str(folder), most=MAX_FILES)
            yield Entry(path, _find_fault(path, FOLDERS[place.name.lower()]))


def _find_fault(path: Path, useless: str | None) -> Message | None:
    if path.is_dir():
        return Message("webui-linked-folder", {"folder": os.path.realpath(path)})
    if not path.exists():
        return Message("webui-dangling", {"target": os.path.realpath(path)})
    if not path.is_file():
        return Message("file-not-regular", {"file": path.name})
    return None if useless is None else Message(useless, {})


def is_taken(source: Path, target: Path) -> bool:
    """Return whether another file than `source` is at `target`, or a link to another one."""
    if not os.path.lexists(target):
        return False
    if target.resolve() == source.resolve():
        return False
    return not target.is_file() or not filecmp.cmp(source, target, shallow=False)


def place(source: Path, target: Path, *, copies: bool) -> None:
    """Make `target` a link to `source`, or a copy.

    Raises:
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    if copies:
        shutil.copyfile(source, new)
    else:
        new.symlink_to(source.resolve())
    new.replace(target)


def name_model(stem: str) -> str:
    """Return a file's name as a model's: lower case, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_-]+", "_", spell_in_latin(stem).lower()).strip("_-")[:MOST_MODEL] or "model"


def name_file(stem: str) -> str:
    """Return a file's name as an adapter's file in a manifest has it, without the extension."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", spell_in_latin(stem)).strip("._-")[:MOST_FILE] or "file"


def find_free(name: str, most: int, is_used: Callable[[str], bool]) -> str:
    """Return a name of at most `most` characters that is not used: the name itself, or one with a number behind it."""
    free, number = name[:most], 2
    while is_used(free):
        end = f"_{number}"
        free, number = f"{name[: most - len(end)]}{end}", number + 1
    return free
