"""The record inside every picture, which says how it was made.

It is stored twice, where each format has a place for it:

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

Only the JSON is read back (`pictures/reading.py`). The `parameters` text is for the web UIs. Their parsers guess
where a prompt ends, so a prompt can mislead them; the JSON is unambiguous.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import msgspec
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from tilemix.errors import ImageFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
# What web UIs, and sites that read their pictures, take for the start of another part.
PART_START = re.compile(r"^(\s*)(Negative prompt:|Steps:)", re.MULTILINE)
PEFT_STEM = "adapter_model"
# JSON may hold them, XML may not.
NOT_XML = re.compile("[\ufffe\uffff]")


class DraftRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The draft that a picture was drawn from; the seed and the size are the picture's."""

    strength: float  # how much of it was drawn anew
    granule_size: str
    colors: dict[str, str]  # color of the mix -> "#RRGGBB"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture was made: with the same files, versions and threads, the same bytes come out again."""

    prompt: str  # as typed
    sent_prompt: str  # as the text encoders got it
    sent_negative_prompt: str
    mix: (
        dict[str, float] | None
    )  # color as read -> percent, in the order typed; None: the prompt holds no mix
    sent_mix: dict[str, float] | None = None  # the same in the words that the model knows
    seed: int
    width: int  # pixels
    height: int
    num_inference_steps: int
    guidance_scale: float
    lora_scale: float | None  # None: the model has no LoRA
    lora_scales: dict[str, float] = {}  # of each LoRA by its file, where a model has several
    # That the prompt added, by their files: the scales in the text encoders and in the UNet.
    named_loras: dict[str, tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET
    # As typed, with the choices made that the seed makes; left out of a prompt without them.
    chosen_prompt: str | msgspec.UnsetType = msgspec.UNSET
    chosen_negative_prompt: str | msgspec.UnsetType = msgspec.UNSET
    draft: DraftRecord | msgspec.UnsetType = msgspec.UNSET  # left out of a picture from noise
    scheduler: str  # a name of tilemix.pipelines.schedulers
    scheduler_config: dict[
        str, bool | int | float | str
    ] = {}  # the manifest's settings over the scheduler's own
    dtype: str  # of the UNet
    speed: str = "exact"  # a mode of tilemix.pipelines.speed
    compiled: bool = False  # the networks, by torch.compile; other last bits
    device: str
    threads: int  # of torch; another number changes the last bits
    model: str  # the manifest's name
    lora_hashes: dict[str, str] = {}  # a LoRA's file -> its AutoV3, by which web UIs and model sites know it
    files: dict[str, str | None]  # path in the manifest -> sha256; None: not locked
    versions: dict[str, str]  # package -> version


def record_json(record: Record) -> str:
    """Return the record as JSON on one line.

    Raises:
        ImageFileError: a text of it holds a lone surrogate, which no file can store.
    """
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError as error:
        raise ImageFileError("picture-record-surrogate") from error


def parse_record(text: bytes, *, source: str) -> Record:
    """Return the record that `text` holds as JSON. Keys of later versions are ignored.

    Raises:
        ImageFileError: it is not a record; the message starts with `source`.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise ImageFileError("picture-record-too-large", file=source, size=len(text), most=MAX_RECORD_BYTES)
    try:
        return msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ImageFileError("picture-record-broken", file=source, reason=str(error)) from error


def parameters_text(record: Record) -> str:
    """Return the record in the web UIs' own notation: prompt, negative prompt, and a last line of parameters.

    The parameters are always the last line and always at least five, so a parser that looks for them there
    finds ours, whatever the prompt contains. A prompt line that starts like another part ("Negative
    prompt:", "Steps:") starts in lower case here, which the text encoders turn everything into anyway.
    `Lora hashes` are AutoV3, of the tensors alone; `TI hashes`, of the files called so, begin the file's sha256.

    Source: the notation as A1111 1.10 writes and reads it.
    """
    lines = [_prompt_lines(record.sent_prompt)]
    if negative := _prompt_lines(record.sent_negative_prompt):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in _parameters(record)))
    return "\n".join(lines)


def png_chunks(record: Record) -> PngInfo:
    """Return the text chunks of a PNG, which come before its pixels."""
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
    if loras := ", ".join(f"{_name_lora(file)}: {digits}" for file, digits in record.lora_hashes.items()):
        yield "Lora hashes", loras
    if embeddings := ", ".join(_list_embeddings(record.files)):
        yield "TI hashes", embeddings
    if record.lora_scale is not None:
        yield "Lora scale", f"{record.lora_scale:.12g}"
    if record.draft is not msgspec.UNSET:
        yield "Denoising strength", f"{record.draft.strength:.12g}"
    if version := record.versions.get("tilemix"):
        yield "Version", f"tilemix {version}"


def _name_lora(file: str) -> str:
    """Return what a web UI calls a LoRA: its file's name, or its folder's where PEFT has named the file."""
    path = PurePosixPath(file)
    return (path.parent.name if path.stem == PEFT_STEM else "") or path.stem


def _list_embeddings(files: dict[str, str | None]) -> Iterator[str]:
    """Yield name and hash of the textual inversion embeddings, as far as their names tell."""
    for file, sha256 in files.items():
        path = PurePosixPath(file)
        if path.suffix == ".safetensors" and sha256 is not None and "embed" in path.stem:
            yield f"{path.stem}: {sha256[:12]}"


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value
