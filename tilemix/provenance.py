"""The record inside every picture, which says how it was made: write it, read it.

It travels twice, in whatever place a format has for it:

=============  ==========================  ============================================
               the record, as JSON         the web UIs' `parameters` text
=============  ==========================  ============================================
PNG            text chunk `tilemix`        text chunk `parameters`
JPEG, WebP     XMP property                EXIF UserComment, UTF-16
               `tilemix:record`
=============  ==========================  ============================================

In JPEG each of the two is a segment of its own, and a segment holds 64 KiB: prompts and negative
prompts of 2,000 characters fit in any alphabet (at the very worst 51 kB of XMP and 17 kB of
EXIF). The XMP packet of each format also carries IPTC's digital source type, which is how a
picture says that it was generated.

Only the JSON is read back. The `parameters` text is for the web UIs: their parsers guess
where a prompt ends, so a prompt can confuse it; the JSON cannot be confused.
"""

from __future__ import annotations

import json
import re
import struct
from io import BytesIO
from pathlib import PurePosixPath
from stat import S_ISREG
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import msgspec
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from tilemix.errors import ImageFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICTURE_FORMATS = ("PNG", "WEBP", "JPEG")
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 40_000_000
MAX_RECORD_BYTES = 256 * 2**10

JSON_KEY = "tilemix"
PARAMETERS_KEY = "parameters"
XMP_KEY = "XML:com.adobe.xmp"
RECORD_NAMESPACE = "urn:tilemix:1.0/"
# Source: IPTC Photo Metadata Standard, "Digital Source Type", https://iptc.org/std/photometadata/
XMP_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' xmlns:tilemix="{RECORD_NAMESPACE}"'
    " Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia">'
    "%s</rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)

# scheduler -> the web UIs' sampler and schedule type. Without Karras sigmas the steps are evenly spaced.
SAMPLERS = {
    "ddim": ("DDIM", "DDIM"),
    "dpm++_2m": ("DPM++ 2M", "Uniform"),
    "dpm++_2m_karras": ("DPM++ 2M", "Karras"),
    "dpm++_2m_sde_karras": ("DPM++ 2M SDE", "Karras"),
    "euler": ("Euler", "Uniform"),
    "euler_a": ("Euler a", "Uniform"),
}
# What a web UI, or a site that reads its pictures, takes for the start of another part.
PART_START = re.compile(r"^(\s*)(Negative prompt:|Steps:)", re.MULTILINE)
# JSON may hold them, XML may not.
NOT_XML = re.compile("[\ufffe\uffff]")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture was made: with the same files, versions and threads, the same bytes come out again."""

    prompt: str  # as typed
    sent_prompt: str  # as the text encoders got it
    sent_negative_prompt: str
    mix: dict[str, float] | None  # color -> percent, in the order typed; None: the prompt holds no mix
    seed: int
    width: int  # pixels
    height: int
    num_inference_steps: int
    guidance_scale: float
    lora_scale: float | None  # None: the model has no LoRA
    lora_scales: dict[str, float] = {}  # of each LoRA by its file, where a model has several
    scheduler: str  # a name of tilemix.schedulers
    scheduler_config: dict[
        str, bool | int | float | str
    ] = {}  # the manifest's settings over the scheduler's own
    dtype: str  # of the UNet
    speed: str = "exact"  # a mode of tilemix.speed
    compiled: bool = False  # the networks, by torch.compile; other last bits
    device: str
    threads: int  # of torch; another number changes bits
    model: str  # the manifest's name
    files: dict[str, str | None]  # path in the manifest -> sha256; None: not locked
    versions: dict[str, str]  # package -> version


def record_json(record: Record) -> str:
    """Return the record as JSON on one line.

    Raises:
        ImageFileError: a text of it holds a lone surrogate, which no file can keep.
    """
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError as error:
        raise ImageFileError(
            "the record cannot be written: a lone surrogate in its text is no character"
        ) from error


def parse_record(text: bytes, *, source: str) -> Record:
    """Return the record that `text` holds as JSON. Keys of later versions are passed over.

    Raises:
        ImageFileError: it holds none; the message starts with `source`.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise ImageFileError(
            f"{source}: its record has {len(text)} bytes; expected at most {MAX_RECORD_BYTES}"
        )
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ImageFileError(f"{source}: its tilemix record is broken: {error}") from error


def parameters_text(record: Record) -> str:
    """Return the record in the web UIs' own notation: prompt, negative prompt, and a last line of parameters.

    The parameters are always the last line and always at least five, so a parser that looks for them there
    finds ours, whatever stands in the prompt. A prompt line that starts like another part ("Negative
    prompt:", "Steps:") starts in lower case here: the text encoders lower-case everything themselves.
    `Lora hashes` and `TI hashes` name the files called so, by the first 12 digits of the file's sha256.

    Source: the notation as A1111 1.10 writes and reads it.
    """
    lines = [_prompt_lines(record.sent_prompt)]
    if negative := _prompt_lines(record.sent_negative_prompt):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in _parameters(record)))
    return "\n".join(lines)


def png_chunks(record: Record) -> PngInfo:
    """Return the text chunks of a PNG, to stand before its pixels."""
    chunks = PngInfo()
    chunks.add_text(PARAMETERS_KEY, parameters_text(record))
    chunks.add_text(JSON_KEY, record_json(record))
    chunks.add_itxt(XMP_KEY, XMP_PACKET % "")
    return chunks


def exif_segment(record: Record) -> bytes:
    """Return the EXIF of a JPEG or WebP: the `parameters` text as UserComment.

    Source: Exif 2.32, section 4.6.5, UserComment. It leaves the byte order of UNICODE open; the web UIs
    write and read big-endian, so the whole segment is big-endian.
    """
    exif = Image.Exif()
    exif.endian = ">"
    comment = b"UNICODE\0" + parameters_text(record).encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()


def xmp_segment(record: Record) -> bytes:
    """Return the XMP packet of a JPEG or WebP: the digital source type and the record."""
    text = NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", record_json(record))
    return (XMP_PACKET % f"<tilemix:record>{escape(text)}</tilemix:record>").encode()


def open_picture(path: Path) -> Image.Image:
    """Open a PNG, WebP or JPEG from anywhere and decode it whole.

    Raises:
        ImageFileError: the file is not there, has more than 64 MiB, or is as `decode_picture` says.
    """
    return decode_picture(_read_bytes(path), source=str(path))


def decode_picture(data: bytes, *, source: str) -> Image.Image:
    """Decode a PNG, WebP or JPEG from anywhere whole; `source` names it in messages.

    At most 40 million pixels, told from the header before anything is decoded.

    Raises:
        ImageFileError: it is too large, is no such picture or is broken or cut off.
    """
    try:
        with Image.open(BytesIO(data), formats=PICTURE_FORMATS) as checked:
            if checked.width * checked.height > MAX_PIXELS:
                raise ImageFileError(
                    f"{source}: {checked.width}x{checked.height} pixels; expected at most {MAX_PIXELS:,} in all"
                )
            checked.verify()  # every chunk and its checksum; the picture cannot be used after it
        picture = Image.open(BytesIO(data), formats=PICTURE_FORMATS)
        picture.load()
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{source}: not a picture; expected a PNG, WebP or JPEG file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFileError(f"{source}: too many pixels; expected at most {MAX_PIXELS:,} in all") from error
    # What Pillow's readers let through on damaged files: found by changing bytes at random.
    except (OSError, SyntaxError, ValueError, IndexError, struct.error) as error:
        raise ImageFileError(f"{source}: a broken picture, perhaps cut off: {error}") from error
    return picture


def read_record(path: Path) -> Record:
    """Return the record that a picture of tilemix carries.

    Raises:
        ImageFileError: it is no picture, is broken, or carries no record.
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
        raise ImageFileError(
            f"{source}: no tilemix record in this {picture.format} file; another program made it or took it out"
        )
    return parse_record(text.encode(), source=source)


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ImageFileError(f"{path}: not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageFileError(f"{path}: {status.st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ImageFileError(f"{path}: cannot be read: {error}") from error


def _record_in_xmp(packet: bytes, *, source: str) -> str | None:
    # An XMP packet has no document type, so none is parsed: entities are how XML is made to explode.
    if len(packet) > 2 * MAX_RECORD_BYTES or b"<!" in packet:
        raise ImageFileError(f"{source}: its XMP packet is not one of tilemix")
    if not packet:
        return None
    try:
        root = ET.fromstring(packet)  # noqa: S314  # no document type, bounded size: see above
    except (ET.ParseError, ValueError) as error:
        raise ImageFileError(f"{source}: its XMP packet is broken: {error}") from error
    name = f"{{{RECORD_NAMESPACE}}}record"
    # Programs that rewrite a packet may turn a property's element into an attribute.
    for element in root.iter():
        if element.tag == name:
            return element.text
        if name in element.attrib:
            return element.attrib[name]
    return None


def _prompt_lines(text: str) -> str:
    lines = "\n".join(line.strip() for line in text.strip().splitlines())
    return PART_START.sub(lambda match: match[0].lower(), lines)


def _parameters(record: Record) -> Iterator[tuple[str, str]]:
    sampler, schedule_type = SAMPLERS.get(record.scheduler, (record.scheduler, None))
    yield "Steps", str(record.num_inference_steps)
    yield "Sampler", sampler
    if schedule_type is not None:
        yield "Schedule type", schedule_type
    yield "CFG scale", f"{record.guidance_scale:.12g}"
    yield "Seed", str(record.seed)
    yield "Size", f"{record.width}x{record.height}"
    unet = [
        sha256
        for path, sha256 in record.files.items()
        if path.startswith("unet/") and path.endswith(".safetensors")
    ]
    if len(unet) == 1 and unet[0] is not None:
        yield "Model hash", unet[0][:10]
    yield "Model", record.model
    embeddings, loras = _adapter_hashes(record.files)
    if loras:
        yield "Lora hashes", loras
    if embeddings:
        yield "TI hashes", embeddings
    if record.lora_scale is not None:
        yield "Lora scale", f"{record.lora_scale:.12g}"
    if version := record.versions.get("tilemix"):
        yield "Version", f"tilemix {version}"


def _adapter_hashes(files: dict[str, str | None]) -> tuple[str, str]:
    """Return the textual inversion embeddings and the LoRAs, as far as their names and hashes tell."""
    embeddings, loras = [], []
    for path, sha256 in files.items():
        name = PurePosixPath(path)
        if name.suffix != ".safetensors" or sha256 is None:
            continue
        # Embeddings first: the product's own are called NAME-lora-v4_sdxl_embeddings.
        if "embed" in name.stem:
            embeddings.append(f"{name.stem}: {sha256[:12]}")
        elif "lora" in name.stem:
            loras.append(f"{name.stem}: {sha256[:12]}")
    return ", ".join(embeddings), ", ".join(loras)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value
