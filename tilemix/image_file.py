"""uint8 pixels <-> PNG, WebP and JPEG files, with the record of how they were made inside.

The same pixels and the same record give the same bytes: nothing here looks at the clock.
"""

from __future__ import annotations

import os
import secrets
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from tilemix.errors import ImageFileError
from tilemix.provenance import exif_segment, open_picture, png_chunks, xmp_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tilemix.provenance import Record


Z_HUFFMAN_ONLY = 2  # zlib's strategy: no search for repeats, which granules do not have
PLAIN_SHARE = 0.25  # of the raw pixels: a picture that codes to less is plain enough to have repeats
JPEG_QUALITY = 95
WEBP_QUALITY = 95


def write_image(path: Path, pixels: NDArray[np.uint8], record: Record, *, output_format: str) -> int:
    """Write `pixels` (h, w, 3), sRGB, to `path` with the record inside; return the file's size in bytes.

    The file is there complete or not at all: it is written beside `path` under another name, synced and
    renamed. A file that stood there before is replaced.

    Raises:
        ImageFileError: an unknown format, pixels that are none, a record that the format cannot hold,
            or a folder that cannot be written.
    """
    data = encode_image(pixels, record, output_format=output_format)
    try:
        _replace_file(path, data)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ImageFileError(f"{path}: cannot be written: {error}") from error
    return len(data)


def encode_image(pixels: NDArray[np.uint8], record: Record, *, output_format: str) -> bytes:
    """Return `pixels` (h, w, 3), sRGB, as the bytes of a PNG, WebP or JPEG file with the record inside.

    Raises:
        ImageFileError: as `write_image`, apart from the folder.
    """
    if output_format not in FORMATS:
        raise ImageFileError(f"unknown image format {output_format[:40]!r}; known: {', '.join(FORMATS)}")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageFileError(f"pixels {pixels.dtype} {pixels.shape}; expected uint8 (height, width, 3)")
    try:
        return FORMATS[output_format](Image.fromarray(pixels), record)
    except (OSError, ValueError) as error:  # ValueError: a segment over 64 KiB
        raise ImageFileError(f"the {output_format} file cannot be made: {error}") from error


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, WebP or JPEG file from anywhere, uint8 (h, w, 3), sRGB.

    Raises:
        ImageFileError: see `tilemix.provenance.open_picture`.
    """
    return np.asarray(open_picture(path).convert("RGB"))


def _encode_png(picture: Image.Image, record: Record) -> bytes:
    # 1024x1024 granules: 56 ms and 1.8 MB, where Pillow's default takes 350 ms for 1.7 MB.
    chunks = png_chunks(record)
    data = _save(picture, "PNG", pnginfo=chunks, compress_level=1, compress_type=Z_HUFFMAN_ONLY)
    if len(data) < PLAIN_SHARE * 3 * picture.width * picture.height:
        # Huffman codes alone never go below a bit a byte: 395 kB for one flat color, which has 5 kB.
        data = min(data, _save(picture, "PNG", pnginfo=chunks), key=len)
    return data


def _encode_webp(picture: Image.Image, record: Record) -> bytes:
    # Lossy, because who wants the pixels exact takes PNG: 1024x1024 granules in 45 ms and 0.4 MB, where
    # lossless takes 50 ms and 1.4 MB. Method 0, the fastest, is no larger here than 4, the default (120 ms).
    exif, xmp = exif_segment(record), xmp_segment(record)
    return _save(picture, "WEBP", quality=WEBP_QUALITY, method=0, exif=exif, xmp=xmp)


def _encode_jpeg(picture: Image.Image, record: Record) -> bytes:
    # 4:4:4, because halved color bleeds over the granules' edges: mean delta E 2.2 instead of 1.3.
    exif, xmp = exif_segment(record), xmp_segment(record)
    return _save(picture, "JPEG", quality=JPEG_QUALITY, subsampling=0, exif=exif, xmp=xmp)


FORMATS: Final[Mapping[str, Callable[[Image.Image, Record], bytes]]] = {
    "png": _encode_png,
    "webp": _encode_webp,
    "jpeg": _encode_jpeg,
}


def _save(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def _replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk now
    finally:
        os.close(folder)
