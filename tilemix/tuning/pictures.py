"""A folder of training pictures: NAME.png, .jpg or .webp, each with its caption in NAME.txt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tilemix.errors import PromptError, TrainingError
from tilemix.prompts.checks import check_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIDE_OF_CHECK = 1024  # pixels of the shorter side, at which a caption is checked
MAX_PIXELS = 100_000_000  # 300 MB decoded


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One picture and its caption."""

    path: Path
    caption: str
    sha256: str  # of the picture's file


def find_pictures(folder: Path) -> list[CaptionedPicture]:
    """Return the folder's pictures with their captions, sorted by name.

    Raises:
        TrainingError: the folder or the pictures are missing, a picture has no caption, a caption has no
            picture, or a caption cannot be used.
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
    return [
        CaptionedPicture(path, _read_caption(captions[stem]), hashlib.sha256(path.read_bytes()).hexdigest())
        for stem, path in by_stem.items()
    ]


def read_picture(path: Path, *, shorter_side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return a picture in RGB, (h, w, 3), and its original size (width, height) in pixels.

    It is scaled to `shorter_side`, and the longer side is trimmed at both ends to a multiple of 8. A photo's
    orientation is applied; transparent pixels become white.

    Raises:
        TrainingError: the file is not a picture, is broken, or is too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise TrainingError(
                    "picture-too-large",
                    file=str(path),
                    width=opened.width,
                    height=opened.height,
                    most=MAX_PIXELS,
                )
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UnidentifiedImageError):
            raise TrainingError("picture-not-one", file=str(path)) from error
        raise TrainingError("picture-broken", file=str(path), reason=str(error)) from error
    own_size = image.size
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = shorter_side / min(own_size)
    width, height = (max(shorter_side, round(side * scale)) for side in own_size)
    if (width, height) != own_size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    kept_width, kept_height = width - width % 8, height - height % 8
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return np.asarray(image.crop((left, top, left + kept_width, top + kept_height))), own_size


def _read_caption(path: Path) -> str:
    try:
        caption = path.read_text(encoding="utf-8").strip()
        check_prompt(caption)
    except UnicodeDecodeError as error:
        raise TrainingError("training-caption-not-text", file=str(path)) from error
    except PromptError as error:
        raise TrainingError(
            "training-caption-unusable", file=str(path), **error.message.as_reason()
        ) from error
    return caption
