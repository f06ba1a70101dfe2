"""uint8 pixels <-> PNG, WebP and JPEG files, with the record of how they were made inside.

The same pixels and the same record give the same bytes: nothing here reads the clock.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from tilemix.errors import ImageFileError
from tilemix.pictures.png import encode_png
from tilemix.pictures.reading import open_picture, to_srgb
from tilemix.pictures.record import exif_segment, png_chunks, xmp_segment
from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tilemix.pictures.record import Record


JPEG_QUALITY = 95
WEBP_QUALITY = 95
MOST_READ, MOST_KEPT = 80_000_000, 16_000_000  # pixels of a picture that is only looked at
REDUCIBLE = ("L", "LA", "RGB", "RGBA", "CMYK")  # modes whose pixels can be averaged


def write_image(path: Path, pixels: NDArray[np.uint8], record: Record, *, output_format: str) -> int:
    """Write `pixels` (h, w, 3), sRGB, to `path` with the record inside; return the file's size in bytes.

    The file appears complete or not at all: it is written beside `path` under another name, synced and
    renamed. An earlier file is replaced.

    Raises:
        ImageFileError: an unknown format, pixels of another shape or type, a record that the format cannot hold,
            or a folder that cannot be written.
    """
    data = encode_image(pixels, record, output_format=output_format)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ImageFileError("file-unwritable", file=str(path), reason=str(error.strerror)) from error
    except ValueError as error:  # a zero byte in the name
        raise ImageFileError("file-unwritable", file=str(path), reason=str(error)) from error
    return len(data)


def encode_image(pixels: NDArray[np.uint8], record: Record, *, output_format: str) -> bytes:
    """Return `pixels` (h, w, 3), sRGB, as the bytes of a PNG, WebP or JPEG file with the record inside.

    Raises:
        ImageFileError: as `write_image`, except for the folder.
    """
    if output_format not in FORMATS:
        raise ImageFileError("picture-unknown-format", typed=output_format[:40], known=", ".join(FORMATS))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageFileError("picture-bad-pixels", dtype=str(pixels.dtype), shape=str(pixels.shape))
    try:
        return FORMATS[output_format](pixels, record)
    except (OSError, ValueError) as error:  # ValueError: a segment over 64 KiB
        raise ImageFileError("picture-not-encoded", format=output_format, reason=str(error)) from error


def make_picture(pixels: NDArray[np.uint8], record: Record) -> Image.Image:
    """Return `pixels` (h, w, 3), sRGB, as a picture whose `save` writes the record into a PNG, WebP or JPEG.

    A copy that is cropped or resized is another picture, and carries none.
    """
    picture = Image.fromarray(pixels)
    picture.encoderinfo = {
        "pnginfo": png_chunks(record),
        "exif": exif_segment(record),
        "xmp": xmp_segment(record),
    }
    return picture


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of any PNG, WebP or JPEG file as a person sees them, uint8 (h, w, 3); see `to_srgb`.

    A picture of more than 16 million pixels, as telephones take them, comes back smaller by a whole factor.

    Raises:
        ImageFileError: it has over 80 million pixels; and see `tilemix.pictures.reading.open_picture`.
    """
    picture = open_picture(path, most=MOST_READ)
    factor = math.ceil(math.sqrt(picture.width * picture.height / MOST_KEPT))
    if factor > 1 and picture.mode in REDUCIBLE:
        picture = picture.reduce(factor)
    return np.asarray(to_srgb(picture, source=str(path)))


def _encode_png(pixels: NDArray[np.uint8], record: Record) -> bytes:
    # 1024x1024 granules: 20 ms, where Pillow's default takes 490 ms for a file of the same size.
    return encode_png(pixels, [(kind, text) for kind, text, *_ in png_chunks(record).chunks])


def _encode_webp(pixels: NDArray[np.uint8], record: Record) -> bytes:
    # Lossy, because PNG is there for exact pixels: 1024x1024 granules take 45 ms and 0.4 MB, lossless 50 ms and
    # 1.4 MB. With method 0, the fastest, the file is no larger than with 4, the default (120 ms).
    exif, xmp = exif_segment(record), xmp_segment(record)
    return _save(pixels, "WEBP", quality=WEBP_QUALITY, method=0, exif=exif, xmp=xmp)


def _encode_jpeg(pixels: NDArray[np.uint8], record: Record) -> bytes:
    # 4:4:4, because subsampled color bleeds over the granules' edges: mean delta E 2.2 instead of 1.3.
    exif, xmp = exif_segment(record), xmp_segment(record)
    return _save(pixels, "JPEG", quality=JPEG_QUALITY, subsampling=0, exif=exif, xmp=xmp)


FORMATS: Final[Mapping[str, Callable[[NDArray[np.uint8], Record], bytes]]] = {
    "png": _encode_png,
    "webp": _encode_webp,
    "jpeg": _encode_jpeg,
}


def _save(pixels: NDArray[np.uint8], file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()
