"""Pictures from anywhere, decoded safely, and what they say of how they were made."""

from __future__ import annotations

import logging
import struct
from io import BytesIO
from stat import S_ISREG
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from tilemix.errors import ImageFileError
from tilemix.pictures.foreign import read_infotext
from tilemix.pictures.record import JSON_KEY, MAX_RECORD_BYTES, RECORD_NAMESPACE, Record, parse_record

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.pictures.infotext import Infotext

logger = logging.getLogger(__name__)

PICTURE_FORMATS = ("PNG", "WEBP", "JPEG")
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 40_000_000
PROFILED_MODES = ("L", "RGB", "CMYK")  # whose pixels are in the space of the profile


def open_picture(path: Path, *, most: int = MAX_PIXELS) -> Image.Image:
    """Open a PNG, WebP or JPEG from anywhere and decode it whole; it may have `most` pixels.

    Raises:
        ImageFileError: the file is not there or has more than 64 MiB; and see `decode_picture`.
    """
    return decode_picture(read_bytes(path), source=str(path), most=most)


def to_srgb(picture: Image.Image, *, source: str) -> Image.Image:
    """Return a decoded picture as a person sees it: RGB in sRGB, upright, on white; `source` names it in messages.

    Its color profile is applied; one that cannot be used is left out, with a warning. Without one the picture is
    sRGB. 16-bit grays are scaled to 8 bits.
    """
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        grays = np.asarray(picture).astype(np.uint32).clip(0, 0xFFFF)
        picture = Image.fromarray(((grays * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
    alpha = None
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        picture, alpha = whole.convert("RGB"), whole.getchannel("A")
    elif picture.mode not in PROFILED_MODES:
        picture = picture.convert("RGB")
    if profile:
        picture = _apply_profile(picture, profile, source)
    picture = picture.convert("RGB")
    if alpha is None:
        return picture
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=alpha)
    return paper


def _apply_profile(picture: Image.Image, profile: bytes, source: str) -> Image.Image:
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(opened).lower():
            return picture  # converting would change the last bit
        converted = ImageCms.profileToProfile(
            picture,
            opened,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    # What Pillow raises for a profile that is broken, or of another kind than the pixels.
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("%s: its color profile cannot be used, so it counts as sRGB: %s", source, error)
        return picture
    return picture if converted is None else converted


def decode_picture(data: bytes, *, source: str, most: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG, WebP or JPEG from anywhere whole; `source` names it in messages.

    It may have `most` pixels, which is checked in the header before anything is decoded.

    Raises:
        ImageFileError: it is too large, not such a picture, broken or cut off.
    """
    try:
        with Image.open(BytesIO(data), formats=PICTURE_FORMATS) as checked:
            if checked.width * checked.height > most:
                raise ImageFileError(
                    "picture-too-large", file=source, width=checked.width, height=checked.height, most=most
                )
            checked.verify()  # every chunk's checksum; the picture cannot be used afterward
        picture = Image.open(BytesIO(data), formats=PICTURE_FORMATS)
        picture.load()
    except UnidentifiedImageError as error:
        raise ImageFileError("picture-not-one", file=source) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFileError("picture-too-many-pixels", file=source, most=most) from error
    # What Pillow's readers raise on damaged files, found by changing bytes at random.
    except (OSError, SyntaxError, ValueError, IndexError, struct.error) as error:
        raise ImageFileError("picture-broken", file=source, reason=str(error)) from error
    return picture


def read_record(path: Path) -> Record:
    """Return the record that a picture of tilemix carries.

    Raises:
        ImageFileError: it is not a picture, is broken, or carries no record.
    """
    return record_of(open_picture(path), source=str(path))


def record_of(picture: Image.Image, *, source: str) -> Record:
    """Return the record that a decoded picture carries; `source` names it in messages.

    Raises:
        ImageFileError: it carries none, or a broken one.
    """
    if picture.format == "PNG":
        text = picture.info.get(JSON_KEY)
    else:
        text = _record_in_xmp(picture.info.get("xmp", b""), source=source)
    if not isinstance(text, str):
        raise ImageFileError("picture-no-record", file=source, format=str(picture.format))
    return parse_record(text.encode(), source=source)


def read_origin(path: Path) -> Record | Infotext:
    """Return the record that a picture carries, or else what another program says of it in its own way.

    Raises:
        ImageFileError: it is not a picture, is broken, or says nothing of itself.
    """
    return origin_of(open_picture(path), source=str(path))


def origin_of(picture: Image.Image, *, source: str) -> Record | Infotext:
    """Do what `read_origin` does, of a decoded picture; `source` names it in messages.

    Raises:
        ImageFileError: it says nothing of itself.
    """
    try:
        return record_of(picture, source=source)
    except ImageFileError:
        infotext = read_infotext(picture)
        if infotext is None:
            raise
        return infotext


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of at most 64 MiB.

    Raises:
        ImageFileError: it is not a regular file, too large, or cannot be read.
    """
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ImageFileError("file-not-a-file", file=str(path))
        if status.st_size > MAX_FILE_BYTES:
            raise ImageFileError("file-too-large", file=str(path), size=status.st_size, most=MAX_FILE_BYTES)
        return path.read_bytes()
    except OSError as error:
        raise ImageFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    except ValueError as error:  # a zero byte in the name
        raise ImageFileError("file-unreadable", file=str(path), reason=str(error)) from error


def _record_in_xmp(packet: bytes, *, source: str) -> str | None:
    # An XMP packet needs no document type. One that has it is refused: its entities could expand without end.
    if len(packet) > 2 * MAX_RECORD_BYTES or b"<!" in packet:
        raise ImageFileError("picture-xmp-foreign", file=source)
    if not packet:
        return None
    try:
        root = ET.fromstring(packet)  # noqa: S314  # no document type, bounded size: see above
    except (ET.ParseError, ValueError) as error:
        raise ImageFileError("picture-xmp-broken", file=source, reason=str(error)) from error
    name = f"{{{RECORD_NAMESPACE}}}record"
    # Programs that rewrite a packet may turn a property's element into an attribute.
    for element in root.iter():
        if element.tag == name:
            return element.text
        if name in element.attrib:
            return element.attrib[name]
    return None
