"""What the files beside a model say about it: hash, base model, trigger words, origin.

The first file that has a field wins, in this order, and each field keeps its source:

| file | written by |
|---|---|
| F.metadata.json (after the extension) | an SD server's inspector, `tilemix inspect --lookup` |
| STEM.metadata.json | a LoRA manager for ComfyUI |
| STEM.civitai.info | Civitai Helper: Civitai's answer |
| STEM.cm-info.json | StabilityMatrix |
| STEM.swarm.json | SwarmUI |
| STEM.json | the web UI, a Civitai browser, SD.Next: told apart by their keys |

They are read leniently: a field of a wrong type counts as missing, unknown ones are skipped, and a file that is too
large or not a JSON object is named in the notes. Labels are not trusted: a hash's digits say what it is.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec

from tilemix.modelfile.hashes import NOTHING
from tilemix.modelfile.training_notes import split_words

MAX_BYTES = 2 * 2**20  # a Civitai answer with all its example prompts has about 200 kB
BYTE_ORDER_MARK = codecs.BOM_UTF8  # some editors put it in front
MAX_TEXT = 2000  # characters of a description
HEX = re.compile(r"[0-9A-Fa-f]+")
LABEL = re.compile(
    r"\s*(?:(?:AUTOV[123]|SHA-?256|BLAKE3|CRC32)\s*:\s*)?(?:0x)?(?P<value>.*?)\s*", re.IGNORECASE
)
# Number of hex digits -> type. Eight are AutoV1 or CRC32, 64 are SHA256 or BLAKE3; there the label decides.
LENGTHS = {10: "AUTOV2", 12: "AUTOV3", 64: "SHA256", 8: "OTHER"}
LABELED = {("AUTOV1", 8), ("CRC32", 8), ("BLAKE3", 64)}
HASH_NAMES = ("SHA256", "AutoV2", "AutoV3", "BLAKE3", "AutoV1", "CRC32")  # in Civitai's tables, best first
TAG = re.compile(r"<[^<>]*>")

Table = dict[str, object]


@dataclass(frozen=True, slots=True)
class DeclaredHash:
    """A hash that a sidecar declares for the file."""

    value: str  # without label and 0x
    type: str  # as declared, in upper case; else as detected
    detected: str  # by its digits: SHA256, BLAKE3, AUTOV1, AUTOV2, AUTOV3, CRC32 or OTHER


@dataclass(frozen=True, slots=True)
class Sidecars:
    """All sidecars of a file, merged.

    Fields, where a sidecar has them: name, version_name, base_model, model_type, description, notes,
    negative_text, preview_url (texts), trigger_words, tags (tuples of texts), model_id, version_id (integers)
    and preferred_weight (a number).
    """

    fields: dict[str, object] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # field -> name of the sidecar it is from
    hash: DeclaredHash | None = None
    notes: tuple[str, ...] = ()  # sidecars that could not be used, and why


def sidecar_paths(path: Path) -> tuple[Path, ...]:
    """Return the paths of all possible sidecars of `path`, the most important first."""
    suffixes = (".metadata.json", ".civitai.info", ".cm-info.json", ".swarm.json", ".json")
    places = [path.with_name(path.name + ".metadata.json")]
    places += [path.with_name(path.stem + suffix) for suffix in suffixes]
    return tuple(dict.fromkeys(places))


def read_sidecars(path: Path) -> Sidecars:
    """Read and merge the sidecars of the model file `path`. No sidecar is normal; a broken one is a note."""
    fields: dict[str, object] = {}
    sources: dict[str, str] = {}
    declared: DeclaredHash | None = None
    notes = []
    for place in sidecar_paths(path):
        try:
            table = _load(place)
        except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            notes.append(f"{place.name}: {str(error)[:120]}")
            continue
        if table is None:
            continue
        for name, value in _read_fields(table, path.name):
            if value not in (None, "", (), []) and name not in fields:
                fields[name], sources[name] = value, place.name
        if declared is None and (declared := _read_hash(table, path.name)) is not None:
            sources["hash"] = place.name
    return Sidecars(fields, sources, declared, tuple(notes))


def classify_hash(value: object, label: object = None) -> DeclaredHash | None:
    """Return what a declared hash is; None for no text, an empty one, and the hash of nothing.

    Args:
        value: "AUTOV2: 90BFFAFD10", "90bffafd10", "0x...", a whole SHA256, "civitai: 2131974 @ 2411703", ...
        label: the declared type, used only where the digits leave it open.
    """
    if not isinstance(value, str) or not (match := LABEL.fullmatch(value[:200])) or not match["value"]:
        return None
    bare = match["value"]
    prefix = value.partition(":")[0].strip().upper() if ":" in value else ""
    declared = (label.strip().upper() if isinstance(label, str) else "") or prefix
    detected = LENGTHS.get(len(bare), "OTHER") if HEX.fullmatch(bare) else "OTHER"
    if (declared, len(bare)) in LABELED and HEX.fullmatch(bare):
        detected = declared
    if detected != "OTHER" and NOTHING.startswith(bare.lower()):
        return None
    return DeclaredHash(bare, declared or detected, detected)


def _load(path: Path) -> Table | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes, not read")
    table = msgspec.json.decode(raw.removeprefix(BYTE_ORDER_MARK), type=Table)
    # A pipeline's or component's own configuration that happens to have the model's name.
    return None if "_class_name" in table or "architectures" in table else table


def _read_fields(table: Table, file_name: str) -> Iterator[tuple[str, object]]:
    """Yield (field, value or None) of a sidecar of any kind, all spellings of a field in turn."""
    version = _version(table, file_name)
    model = _table(version.get("model")) or (table if "modelVersions" in table else {})
    yield (
        "name",
        _text(table, "civitai_name", "model_name", "ModelName", "UserTitle", "title", "modelspec.title"),
    )
    yield "name", _text(model, "name")
    yield "version_name", _text(table, "VersionName") or _text(version, "name")
    yield "base_model", _text(table, "base_model", "BaseModel", "sd version") or _text(version, "baseModel")
    yield "model_type", _text(table, "civitai_type", "model_type", "ModelType") or _text(model, "type")
    for spelling in (
        "trigger_words",
        "trainedWords",
        "TrainedWords",
        "activation text",
        "modelspec.trigger_phrase",
    ):
        yield "trigger_words", _words(table.get(spelling))
    yield "trigger_words", _words(version.get("trainedWords"))
    yield "negative_text", _text(table, "negative text")
    weight = table.get("preferred weight")
    yield "preferred_weight", float(weight) if isinstance(weight, int | float) and weight else None  # 0: off
    description = _text(table, "description", "modelDescription", "ModelDescription", "modelspec.description")
    yield "description", _plain(description or _text(model, "description") or _text(version, "description"))
    yield "notes", _text(table, "notes")
    yield "tags", _words(table.get("tags") or table.get("Tags") or model.get("tags"))
    yield "model_id", _number(table, "civitai_model_id", "modelId", "ModelId") or _number(version, "modelId")
    yield "model_id", _number(table, "id") if "modelVersions" in table else None
    yield "version_id", _number(table, "civitai_version_id", "VersionId") or _number(version, "id")
    yield "preview_url", _text(table, "preview_url", "ThumbnailImageUrl")


def _read_hash(table: Table, file_name: str) -> DeclaredHash | None:
    """Return the best hash of a sidecar: its own `hash` first, then SHA256, then the shorter ones."""
    hashes = _table(table.get("Hashes")) or _table(_file(_version(table, file_name), file_name).get("hashes"))
    candidates = [(table.get("hash"), table.get("hash_type"))]
    candidates += [(table.get(key), "SHA256") for key in ("hash_sha256", "sha256")]
    candidates += [(table.get("hash_autov2"), "AUTOV2"), (table.get("autov3"), "AUTOV3")]
    candidates += [(hashes.get(name), name) for name in HASH_NAMES]
    # ModelSpec's is over the tensors alone; AutoV3 is its beginning.
    payload = table.get("modelspec.hash_sha256")
    candidates += [(payload.removeprefix("0x")[:12], "AUTOV3")] if isinstance(payload, str) else []
    found = [known for value, label in candidates if (known := classify_hash(value, label))]
    return next((known for known in found if known.detected != "OTHER"), found[0] if found else None)


def _version(table: Table, file_name: str) -> Table:
    """Return Civitai's version object in a sidecar: the table itself, a part of it, or the one that has this file."""
    if isinstance(table.get("files"), list):
        return table
    if civitai := _table(table.get("civitai")):
        return civitai
    versions = table.get("modelVersions")
    tables = [_table(version) for version in versions] if isinstance(versions, list) else []
    named = (v for v in tables if _file(v, file_name).get("name") == file_name)
    return next(named, tables[0] if len(tables) == 1 else {})


def _file(version: Table, file_name: str) -> Table:
    """Return a version's file of this name, else its only or primary one."""
    files = version.get("files")
    tables = [_table(file) for file in files] if isinstance(files, list) else []
    named = (file for file in tables if file.get("name") == file_name)
    primary = (file for file in tables if file.get("primary") is True)
    return next(named, None) or next(primary, None) or (tables[0] if len(tables) == 1 else {})


def _table(value: object) -> Table:
    return cast("Table", value) if isinstance(value, dict) else {}


def _text(table: Table, *keys: str) -> str | None:
    texts = (value.strip() for key in keys if isinstance(value := table.get(key), str))
    return next(filter(None, texts), None)


def _number(table: Table, *keys: str) -> int | None:
    for key in keys:
        value = table.get(key)
        if type(value) is int and value > 0:
            return value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
            return int(value)
    return None


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return split_words(value)
    words = value if isinstance(value, list) else []
    return tuple(dict.fromkeys(w.strip().rstrip(",") for w in words if isinstance(w, str) and w.strip(" ,")))


def _plain(text: str | None) -> str | None:
    """Return a description without Civitai's HTML, cut where it is long."""
    if text is None:
        return None
    plain = " ".join(html.unescape(TAG.sub(" ", text[: 8 * MAX_TEXT])).split())
    return plain if len(plain) <= MAX_TEXT else plain[: MAX_TEXT - 1] + "…"
