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

A picture is repeated from the JSON, which is unambiguous. The `parameters` text is for the web UIs, and for us where a
program has removed the JSON; its parsers guess where a prompt ends, so a prompt can mislead them.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import msgspec
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from tilemix.errors import ImageFileError
from tilemix.pictures.infotext import PARAMETERS_KEY, clean_name, write_infotext
from tilemix.prompts.adapter_names import name_adapter
from tilemix.samplers import find_sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RECORD_BYTES = 256 * 2**10

JSON_KEY = "tilemix"
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

LORA_SCALE, GRANULE_SIZE = "Lora scale", "Granule size"  # parameters of ours alone
VERSION = "tilemix "  # begins our `Version`
# JSON may hold them, XML may not.
NOT_XML = re.compile("[\ufffe\uffff]")


class DraftRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The draft that a picture was drawn from; the seed and the size are the picture's."""

    strength: float  # how much of it was drawn anew
    granule_size: str
    colors: dict[str, str]  # color of the mix -> "#RRGGBB"
    # Color -> delta E 2000 by which a last step moved its granules. Empty: not drawn yet; left out: no such step.
    tone: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class VariationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The noise that was mixed into that of the picture's seed."""

    seed: int
    strength: float  # above 0; 1: it alone


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
    task: str | msgspec.UnsetType = msgspec.UNSET  # of weights/tasks.json; left out where none was asked for
    # That the prompt named, in the order in which they act: file and strength.
    hypernetworks: list[tuple[str, float]] | msgspec.UnsetType = msgspec.UNSET
    # As typed, with the choices made that the seed makes; left out of a prompt without them.
    chosen_prompt: str | msgspec.UnsetType = msgspec.UNSET
    chosen_negative_prompt: str | msgspec.UnsetType = msgspec.UNSET
    draft: DraftRecord | msgspec.UnsetType = msgspec.UNSET  # left out of a picture from noise
    variation: VariationRecord | msgspec.UnsetType = msgspec.UNSET  # left out without one
    clip_skip: int | msgspec.UnsetType = msgspec.UNSET  # left out where the base's own layer was read
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
    embedding_hashes: dict[str, str] = {}  # of the files whose tokens the prompts hold: as web UIs count them
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
    """Return the record in the web UIs' own notation; see `tilemix.pictures.infotext`.

    The parameters are always the last line and always at least five, so a parser that looks for them there
    finds ours, whatever the prompt contains. A LoRA that the prompt named is named in it again, as the web UIs do.
    `Lora hashes` are AutoV3, of the tensors alone; `TI hashes` begin the file's sha256.
    """
    named = {} if record.named_loras is msgspec.UNSET else record.named_loras
    tags = [_write_tag(file, *scales) for file, scales in named.items()]
    chained = [] if record.hypernetworks is msgspec.UNSET else record.hypernetworks
    tags += [f"<hypernet:{_name_adapter(file)}:{strength:.12g}>" for file, strength in chained]
    prompt = " ".join([record.sent_prompt, *tags])
    return write_infotext(prompt, record.sent_negative_prompt, _list_parameters(record))


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
    return (XMP_PACKET % f"<tilemix:record>{html.escape(text, quote=False)}</tilemix:record>").encode()


def _hash_model(record: Record) -> str | None:
    """Return the sha256 that web UIs know the model by: the UNet's, or that of a checkpoint that is one file."""
    tensors = {path: sha256 for path, sha256 in record.files.items() if path.endswith(".safetensors")}
    found = [sha256 for path, sha256 in tensors.items() if path.startswith("unet/")] or [
        sha256
        for path, sha256 in tensors.items()
        if "/" not in path
        and not path.endswith(".vae.safetensors")
        and path not in record.lora_hashes
        and path not in record.embedding_hashes
    ]
    return found[0] if len(found) == 1 else None


def _list_parameters(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the parameters in the web UIs' order."""
    known = find_sampler(record.scheduler)
    sampler = record.scheduler if known is None else known.sampler
    schedule_type = None if known is None else known.schedule_type
    yield "Steps", str(record.num_inference_steps)
    yield "Sampler", sampler
    if schedule_type is not None:
        yield "Schedule type", schedule_type
    yield "CFG scale", f"{record.guidance_scale:.12g}"
    yield "Seed", str(record.seed)
    yield "Size", f"{record.width}x{record.height}"
    if (sha256 := _hash_model(record)) is not None:
        yield "Model hash", sha256[:10]
    yield "Model", record.model
    if record.variation is not msgspec.UNSET:
        yield "Variation seed", str(record.variation.seed)
        yield "Variation seed strength", f"{record.variation.strength:.12g}"
    if record.draft is not msgspec.UNSET:
        yield "Denoising strength", f"{record.draft.strength:.12g}"
    if record.clip_skip not in (msgspec.UNSET, 1):
        yield "Clip skip", str(record.clip_skip)
    if loras := ", ".join(f"{_name_adapter(file)}: {digits}" for file, digits in record.lora_hashes.items()):
        yield "Lora hashes", loras
    embeddings = record.embedding_hashes
    if named := ", ".join(f"{_name_adapter(file)}: {digits}" for file, digits in embeddings.items()):
        yield "TI hashes", named
    if record.lora_scale is not None:
        yield LORA_SCALE, f"{record.lora_scale:.12g}"
    if record.draft is not msgspec.UNSET:
        yield GRANULE_SIZE, record.draft.granule_size
    if version := record.versions.get("tilemix"):
        yield "Version", f"{VERSION}{version}"


def _name_adapter(file: str) -> str:
    """Return what a web UI calls an adapter: its file's name, or its folder's where PEFT has named the file."""
    return clean_name(name_adapter(file))


def _write_tag(file: str, text_scale: float, unet_scale: float) -> str:
    numbers = [f"{text_scale:.12g}", f"{unet_scale:.12g}"]
    return (
        f"<lora:{':'.join([_name_adapter(file), *(numbers if text_scale != unet_scale else numbers[:1])])}>"
    )
