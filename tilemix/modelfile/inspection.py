"""A model file or a diffusers folder -> `ModelFile`: everything that its header and its sidecars tell.

Of the file itself, the header, a LoRA's alphas and the rows of learned tokens are read, and all of it only where a
hash is missing or asked for. Hashes and what the header tells are remembered.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tilemix.errors import ModelFileError
from tilemix.modelfile.base_models import tell_base
from tilemix.modelfile.companions import PEFT_CONFIG
from tilemix.modelfile.facts import HeaderFacts, count_parameters, read_facts
from tilemix.modelfile.hash_cache import find_hashes, recall_hashes
from tilemix.modelfile.hashes import Hashes
from tilemix.modelfile.header import read_header
from tilemix.modelfile.kinds import Kind, recognize
from tilemix.modelfile.sidecars import DeclaredHash, read_sidecars

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HashWish = Literal["missing", "none", "all"]
MAX_CONFIG_BYTES = 2**20
Mismatch = Literal["other_content", "legacy_first_8mib"]


class Component(msgspec.Struct, frozen=True):
    """One part of a diffusers folder."""

    class_name: str
    files: int = 0  # safetensors files
    parameters: int = 0
    dtype: str | None = None


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file is. None or empty: the file does not say."""

    path: str
    size: int  # bytes; of a folder, of its safetensors files
    kind: Kind
    format: str
    base_model: str | None = None  # "SDXL", "SD 1", ...: the architecture
    base_told_by: str | None = None
    base_conflict: str | None = None  # what the metadata says instead
    base_declared: str | None = None  # what the sidecar says, often a lineage: "Pony", "Illustrious"
    variant: str | None = None  # "inpainting", "v-prediction", ...
    rank: int | None = None  # None where modules differ: see ranks
    ranks: dict[int, int] = {}  # rank -> how many modules
    alpha: float | None = None
    alpha_told_by: str | None = None
    modules: dict[str, dict[str, int]] = {}  # component -> sort of layer -> how many modules a LoRA touches
    tokens: tuple[str, ...] = ()
    vectors: int | None = None  # rows of an embedding
    dtype: str | None = None  # of most of the parameters
    dtypes: dict[str, int] = {}  # dtype -> parameters
    tensors: int = 0
    parameters: int = 0
    components: dict[str, Component] = {}  # of a diffusers folder
    hash: str | None = None
    hash_type: str | None = None  # as declared; AUTOV2 when it was computed
    hash_type_detected: str | None = None  # by its digits, where that is not what was declared
    hash_source: str | None = None  # the sidecar, or "computed"
    hashes: Hashes = Hashes()  # computed now or earlier
    # Whether the file has the declared hash; None: not computed, or nothing to compare with.
    verified: bool | None = None
    mismatch: Mismatch | None = None  # why verified is False
    name: str | None = None
    trigger_words: tuple[str, ...] = ()
    trained_on: str | None = None
    training: dict[str, str] = {}
    modelspec: dict[str, str] = {}
    tags: dict[str, int] = {}
    pictures: int | None = None
    sidecar: dict[str, object] = {}
    sources: dict[str, str] = {}  # field -> the sidecar it is from
    notes: tuple[str, ...] = ()  # what the loader will refuse, and sidecars that could not be used
    metadata: dict[str, object] = {}  # __metadata__, JSON texts read, long ones shortened


def read(
    path: Path | str, *, hashes: HashWish = "missing", on_bytes: Callable[[int], object] | None = None
) -> ModelFile:
    """Read what the model file or diffusers folder `path` is.

    Args:
        path: a safetensors file, whatever its extension, or a folder with a model_index.json.
        hashes: "missing": compute a hash when no sidecar has one; "none": never; "all": compute every one.
            Computed hashes are remembered and used for `verified`. A diffusers folder has no hash.
        on_bytes: called with the number of bytes after each block that is hashed.

    Raises:
        ModelFileError: not a safetensors file, a broken one, or a folder that is not a diffusers folder.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    facts = read_facts(path)
    sidecars = read_sidecars(path)
    declared = sidecars.hash
    computed = _hash(path, declared, hashes, on_bytes)
    verified, mismatch = compare(declared, computed)
    alpha, alpha_told_by = _find_alpha(path, facts)
    notes, base = facts.training, facts.base
    told = sidecars.fields
    return ModelFile(
        path=str(path),
        size=path.stat().st_size,
        kind=facts.kind,
        format=facts.format,
        base_model=base.name,
        base_told_by=base.told_by,
        base_conflict=base.conflict,
        base_declared=_text(told.get("base_model")),
        variant=base.variant,
        rank=next(iter(facts.ranks)) if len(facts.ranks) == 1 else None,
        ranks=facts.ranks,
        alpha=alpha,
        alpha_told_by=alpha_told_by,
        modules=facts.modules,
        tokens=facts.tokens,
        vectors=facts.vectors,
        dtype=next(iter(facts.dtypes), None),
        dtypes=facts.dtypes,
        tensors=facts.tensors,
        parameters=sum(facts.dtypes.values()),
        hash=declared.value if declared else computed.autov2,
        hash_type=declared.type if declared else "AUTOV2" if computed.autov2 else None,
        hash_type_detected=declared.detected if declared and declared.detected != declared.type else None,
        hash_source=sidecars.sources.get("hash") or ("computed" if computed.autov2 else None),
        hashes=computed,
        verified=verified,
        mismatch=mismatch,
        name=_text(told.get("name")) or notes.title,
        trigger_words=_words(told.get("trigger_words")) or notes.trigger_words,
        trained_on=notes.trained_on,
        training=notes.training,
        modelspec=notes.modelspec,
        tags=notes.tags,
        pictures=notes.pictures,
        sidecar=told,
        sources=sidecars.sources,
        notes=facts.faults + sidecars.notes,
        metadata=facts.metadata,
    )


def compare(declared: DeclaredHash | None, computed: Hashes) -> tuple[bool | None, Mismatch | None]:
    """Return whether a declared hash is the file's, and if not, why.

    Some tools hashed only the first 8 MiB and called that AUTOV2 or SHA256. Such a sidecar does not mean that the
    file is broken, so it has a verdict of its own.
    """
    if declared is None:
        return None, None
    ours = {
        "SHA256": computed.sha256, "BLAKE3": computed.blake3, "CRC32": computed.crc32,
        "AUTOV1": computed.autov1, "AUTOV2": computed.autov2, "AUTOV3": computed.autov3,
    }.get(declared.detected)  # fmt: skip
    if ours is None:
        return None, None
    value = declared.value.lower()
    if value == ours.lower():
        return True, None
    first = computed.sha256_first_8mib
    is_legacy = declared.detected in ("SHA256", "AUTOV2") and first is not None and first.startswith(value)
    return False, "legacy_first_8mib" if is_legacy else "other_content"


def _hash(
    path: Path, declared: DeclaredHash | None, wish: HashWish, on_bytes: Callable[[int], object] | None
) -> Hashes:
    if wish == "all" or (wish == "missing" and declared is None):
        return find_hashes(path, every=wish == "all", on_bytes=on_bytes)
    return recall_hashes(path) or Hashes()


def _find_alpha(path: Path, facts: HeaderFacts) -> tuple[float | None, str | None]:
    """Return a LoRA's alpha and what tells it."""
    if facts.alpha_told_by is not None or not facts.is_adapter:
        return facts.alpha, facts.alpha_told_by
    config = path.with_name(PEFT_CONFIG)
    if facts.reads_peft_config and config.is_file():
        alpha = _load_config(config).get("lora_alpha")
        if isinstance(alpha, int | float):
            return float(alpha), config.name
    return None, "none stored: the scale is 1"


def _read_folder(folder: Path) -> ModelFile:
    """Read a diffusers folder: its model_index.json, and the header of every safetensors file it names."""
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise ModelFileError("file-not-diffusers", file=str(folder))
    index = _load_config(index_path)
    components: dict[str, Component] = {}
    total: Counter[str] = Counter()
    size = tensors = 0
    base = None
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
            continue
        files = _component_files(folder, name)
        dtypes: Counter[str] = Counter()
        for path in files:
            header = read_header(path)
            dtypes.update(count_parameters(header))
            size += path.stat().st_size
            tensors += len(header.tensors)
            if name in ("unet", "transformer") and (base is None or base.name is None):
                base = tell_base(header, recognize(header))
        dtype = next((dtype for dtype, _ in dtypes.most_common()), None)
        components[name] = Component(value[1], len(files), sum(dtypes.values()), dtype)
        total.update(dtypes)
    dtypes_found = dict(total.most_common())
    pipeline = index.get("_class_name")
    return ModelFile(
        path=str(folder),
        size=size,
        kind="diffusers",
        format=pipeline if isinstance(pipeline, str) else "diffusers folder",
        base_model=base.name if base else None,
        base_told_by=base.told_by if base else None,
        dtype=next(iter(dtypes_found), None),
        dtypes=dtypes_found,
        tensors=tensors,
        parameters=sum(dtypes_found.values()),
        components=components,
        metadata={"model_index": index},
    )


def _component_files(folder: Path, name: str) -> list[Path]:
    """Return a component's safetensors files of one variant: `x.safetensors` before `x.fp16.safetensors`.

    The name comes from a file, so it is looked up among the folders, never joined to a path.
    """
    there = [path for path in folder.iterdir() if path.is_dir() and path.name == name]
    files = sorted(path for place in there for path in place.glob("*.safetensors"))
    variants: dict[str, list[Path]] = {}
    for path in files:
        variants.setdefault(path.stem.partition(".")[2].partition("-")[0], []).append(path)
    return variants[min(variants)] if variants else []


def _load_config(path: Path) -> Mapping[str, object]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFileError("file-exceeds", file=str(path), most=MAX_CONFIG_BYTES)
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error)[:120]) from error
    if not isinstance(table, dict):
        raise ModelFileError("file-json-object", file=str(path))
    return table


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _words(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
