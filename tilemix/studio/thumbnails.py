"""Thumbnails for the gallery, made on first use."""

from __future__ import annotations

import contextlib
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_SIDE = 480  # pixels: a gallery card on a high-density screen
QUALITY = 82


def read_thumbnail(picture: Path, folder: Path) -> bytes:
    """Return the thumbnail of a picture as WebP; it is kept in `folder` where the disk has room.

    Raises:
        OSError: the picture cannot be read.
    """
    path = folder / f"{picture.stem}.webp"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    try:
        with Image.open(picture, formats=["PNG", "JPEG", "WEBP"]) as image:
            small = image.convert("RGB")
    except (SyntaxError, ValueError) as error:  # so Pillow says that a file is broken
        raise OSError(str(error)) from error
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    with contextlib.suppress(OSError):  # a full disk delays nobody who only looks
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    return buffer.getvalue()
