"""A folder of training pictures: NAME.png, .jpg or .webp, each with its caption in NAME.txt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tilemix.errors import ImageFileError, PromptError, TrainingError
from tilemix.pictures.reading import open_picture, read_bytes, to_srgb
from tilemix.prompts.checks import check_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIDE_OF_CHECK = 1024  # pixels of the shorter side, at which a caption is checked
MAX_PIXELS = 100_000_000  # 300 MB decoded
MAX_FAULTS = 20  # captions that one message names


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One picture and its caption."""

    path: Path
    caption: str
    sha256: str  # of the picture's file


def find_pictures(folder: Path) -> list[CaptionedPicture]:
    """Return the folder's pictures with their captions, sorted by name.

    Raises:
        TrainingError: the folder or the pictures are missing, a picture has no caption, a caption has no picture, or
            captions cannot be used; then all of them are named.
    """
    if not folder.is_dir():
        raise TrainingError("training-no-picture-folder", folder=str(folder))
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise TrainingError("training-no-pictures", folder=str(folder), known=", ".join(SUFFIXES))
    captions = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    by_stem: dict[str, Path] = {}
    for path in pictures:
        if path.stem in by_stem:
            first = by_stem[path.stem].name
            raise TrainingError("training-caption-shared", folder=str(folder), first=first, second=path.name)
        by_stem[path.stem] = path
    for stem in sorted(by_stem.keys() ^ captions.keys()):
        found, missing = (
            (by_stem[stem].name, f"{stem}.txt") if stem in by_stem else (f"{stem}.txt", f"{stem}.png")
        )
        raise TrainingError("training-partner-missing", folder=str(folder), found=found, missing=missing)
    texts = read_all({path: partial(_read_caption, captions[stem]) for stem, path in by_stem.items()})
    return [CaptionedPicture(path, text, _hash(path)) for path, text in texts.items()]


def read_all(readers: Mapping[Path, Callable[[], str]]) -> dict[Path, str]:
    """Return what each reader returns, by its picture, or refuse all captions that a reader refuses in one report.

    Raises:
        TrainingError: a reader raised one, or several did.
    """
    texts: dict[Path, str] = {}
    faults: list[TrainingError] = []
    for path, read in readers.items():
        try:
            texts[path] = read()
        except TrainingError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        reasons = "; ".join(map(str, faults[:MAX_FAULTS])) + ("; ..." if faults[MAX_FAULTS:] else "")
        raise TrainingError("training-captions-unusable", count=len(faults), reasons=reasons)
    return texts


def read_picture(path: Path, *, shorter_side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return a picture in sRGB, (h, w, 3), and its original size (width, height) in pixels.

    It is scaled to `shorter_side`, and the longer side is trimmed at both ends to a multiple of 8. For its profile,
    orientation and transparency see `to_srgb`.

    Raises:
        TrainingError: the file is not a picture, is broken, or is too large.
    """
    from PIL import Image

    try:
        image = to_srgb(open_picture(path, most=MAX_PIXELS), source=str(path))
    except ImageFileError as error:
        raise TrainingError(error.code, field=None, **error.values) from error
    own_size = image.size
    scale = shorter_side / min(own_size)
    width, height = (max(shorter_side, round(side * scale)) for side in own_size)
    if (width, height) != own_size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    kept_width, kept_height = width - width % 8, height - height % 8
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return np.asarray(image.crop((left, top, left + kept_width, top + kept_height))), own_size


def find_smaller(pictures: Iterable[CaptionedPicture], side: int) -> list[str]:
    """Return the names of the pictures whose shorter side is under `side` pixels, told by their headers.

    Raises:
        TrainingError: a file is not a picture.
    """
    return [picture.path.name for picture in pictures if min(read_size(picture.path)) < side]


def read_size(path: Path) -> tuple[int, int]:
    """Return the width and height that a picture's header tells, in pixels, before it is turned upright.

    Raises:
        TrainingError: the file is not a picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return opened.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise TrainingError("picture-not-one", file=str(path)) from error


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except ImageFileError as error:
        raise TrainingError(error.code, field=None, **error.values) from error


def _read_caption(path: Path) -> str:
    try:
        caption = path.read_text(encoding="utf-8-sig").strip()  # some editors put a mark in front
        check_prompt(caption)
    except UnicodeDecodeError as error:
        raise TrainingError("training-caption-not-text", file=str(path)) from error
    except PromptError as error:
        raise TrainingError(
            "training-caption-unusable", file=str(path), **error.message.as_reason()
        ) from error
    return caption
