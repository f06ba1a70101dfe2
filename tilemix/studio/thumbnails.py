"""Thumbnails for the gallery, made on first use."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_SIDE = 480  # pixels: a gallery card on a high-density screen
QUALITY = 82


def find_thumbnail(picture: Path, folder: Path) -> Path:
    """Return the thumbnail of a picture, a WebP file in `folder`.

    Raises:
        OSError: the picture cannot be read, or the thumbnail cannot be written.
    """
    path = folder / f"{picture.stem}.webp"
    if not path.is_file():
        with Image.open(picture, formats=["PNG", "JPEG", "WEBP"]) as image:
            small = image.convert("RGB")
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        buffer = BytesIO()
        small.save(buffer, "WEBP", quality=QUALITY)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    return path
