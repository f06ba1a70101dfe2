"""Add an adapter to a packaged model: `weights add FILE|URL` puts the file into weights/files/ and its entry, with its
lock, into the manifest.

For a URL the sidecar `F.metadata.json` with hash, base and trigger words is written beside the file. Order: the file,
the sidecar, the manifest; stopped anywhere between, the same command goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from tilemix.errors import AdapterError, ModelFileError, WeightsError
from tilemix.modelfile import read, read_header
from tilemix.project import ROOT
from tilemix.prompt_text import PLACEHOLDER_TOKEN
from tilemix.weights.download import download
from tilemix.weights.links import Link, follow
from tilemix.weights.local import CHUNK_BYTES, PRIVATE_FOLDER, hash_file
from tilemix.weights.manifest import (
    FILE_NAME,
    MAX_SCALE,
    Adapter,
    ModelManifest,
    load_manifest,
    write_manifest,
)
from tilemix.weights.part import Part, open_part
from tilemix.weights.progress import Progress
from tilemix.weights.web import Web

DEFAULT_SCALE = 0.7  # of a LoRA
MAX_ADAPTER_BYTES = 4 * 2**30  # the largest SDXL LoRAs have 2 GB
SPECIAL_PARAMS = "special_params.json"  # beside the embeddings of a Replicate training: {"TOK": "<s0><s1>"}
MAX_ROWS = 75  # a prompt's chunk holds no more tokens
EMBEDDING_KEYS = ({"clip_l", "clip_g"}, {"text_encoders_0", "text_encoders_1"})
BASE = "SDXL"


@dataclass(frozen=True, slots=True)
class Wish:
    """How an adapter is to be added; None leaves it to the file and to what the manifest has."""

    scale: float | None = None  # of a LoRA, 0 to 1.5; None: 0.7
    tokens: tuple[str, ...] | None = None  # of an embedding; None: special_params.json, else <s0>, <s1>, ...
    file_name: str | None = None  # in weights/files/; None: the file's own
    replaces: bool = False  # another file of this name


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did."""

    path: Path
    adapter: Adapter
    change: Literal["added", "updated", "unchanged"]  # of the manifest


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a file says about itself."""

    kind: Literal["lora", "embedding"]
    rows: int  # of an embedding: one for each token; 0 for a LoRA
    base: str | None
    trigger_words: tuple[str, ...]


def add(
    source: str, name: str, wish: Wish | None = None, *, root: Path = ROOT, web: Web | None = None
) -> Added:
    """Add the adapter `source`, a path or an https address, to the packaged model `name`.

    Args:
        source: a LoRA's or an embedding's file; or an address of one, a Civitai or hub page included.
        name: the packaged model.
        wish: scale, tokens and the rest.
        root: the project's folder.
        web: the rules for an address.

    Raises:
        ManifestError: see load_manifest.
        AdapterError: neither a LoRA nor an embedding, wrong scale or tokens, or another file has this name.
        ModelFileError: the file cannot be read, or is not what its site says.
        WeightsError: the address is refused, the server fails, or the disk refuses.
    """
    web = web or Web()
    manifest = load_manifest(name, root)
    link = follow(source, web) if "://" in source else None
    task = _Task(_check_name(wish, link.name if link else Path(source).name), manifest, wish or Wish(), root)
    path, entry = _add_link(task, link, web) if link else _add_file(task, Path(source))
    manifest = load_manifest(name, root)  # again: a download takes its time
    old = next((adapter for adapter in manifest.adapters if adapter.file == entry.file), None)
    if old == entry:
        return Added(path, entry, "unchanged")
    adapters = tuple(entry if adapter is old else adapter for adapter in manifest.adapters)
    adapters += () if old else (entry,)
    write_manifest(name, msgspec.structs.replace(manifest, adapters=adapters), root)
    return Added(path, entry, "updated" if old else "added")


def split_tokens(text: str) -> tuple[str, ...]:
    """Return the placeholder tokens in a text such as "<s0><s1>" or "<s0> <s1>".

    Raises:
        AdapterError: there is something else in it.
    """
    tokens = PLACEHOLDER_TOKEN.findall(text)
    if not tokens or PLACEHOLDER_TOKEN.sub("", text).strip(" ,"):
        raise AdapterError(f"tokens {text[:120]!r}, expected such as '<s0><s1>'")
    return tuple(tokens)


class _Task:
    """One adapter to add: its name, the manifest and the wish that it must agree with."""

    def __init__(self, file_name: str, manifest: ModelManifest, wish: Wish, root: Path) -> None:
        self.file_name = file_name
        self.wish = wish
        self.old = next((adapter for adapter in manifest.adapters if adapter.file == file_name), None)
        self.others = [adapter for adapter in manifest.adapters if adapter.file != file_name]
        self.target = root / "weights" / PRIVATE_FOLDER / file_name
        places = [self.target, root / "weights" / file_name]
        self.present = next((path for path in places if path.is_file()), None)

    def is_present(self, sha256: str) -> bool:
        """Tell whether the file with this hash is in its place already.

        Raises:
            AdapterError: another file is, and the wish is not to replace it; or the model has it by another name.
        """
        if twin := next((adapter.file for adapter in self.others if adapter.sha256 == sha256), None):
            raise AdapterError(f"{self.file_name}: the model has this very file already, as {twin}")
        found = hash_file(self.present) if self.present else None
        locked = self.old.sha256 if self.old else None
        for other, where in ((found, f"in {self.present}"), (locked, "in the manifest")):
            if other not in (None, sha256) and not self.wish.replaces:
                raise AdapterError(
                    f"{self.file_name}: sha256 {sha256}, but {where} it is {other}; --replace puts this one there"
                )
        return found == sha256

    def make_entry(
        self, facts: _Facts, size: int, sha256: str, url: str | None, folder: Path | None
    ) -> Adapter:
        """Return the manifest's entry; `folder` is where special_params.json may stand.

        Raises:
            AdapterError: the wish, or what the manifest has, does not fit the file.
        """
        scale, tokens = self.wish.scale, self.wish.tokens
        old = self.old if self.old is not None and self.old.kind == facts.kind else None
        if self.old is not None and old is None and not self.wish.replaces:
            raise AdapterError(
                f"{self.file_name}: {_name_kind(facts.kind)}, but {_name_kind(self.old.kind)} in the manifest; "
                "--replace puts this one there"
            )
        if facts.kind == "lora":
            if tokens:
                raise AdapterError(f"{self.file_name}: a LoRA has no tokens, found {' '.join(tokens)[:80]!r}")
            if scale is None:
                scale = old.scale if old and old.scale is not None else DEFAULT_SCALE
            if not 0 <= scale <= MAX_SCALE:
                raise AdapterError(f"{self.file_name}: scale {scale}, expected 0 to {MAX_SCALE}")
            tokens = ()
        else:
            if scale is not None:
                raise AdapterError(f"{self.file_name}: an embedding has no scale, found {scale}")
            tokens = tokens or (old.tokens if old else None) or _read_special_params(folder)
            tokens = self._check_tokens(tokens or tuple(f"<s{row}>" for row in range(facts.rows)), facts.rows)
        if url is None and self.old is not None and self.old.sha256 == sha256:
            url = self.old.url  # the same file still comes from there
        return Adapter(
            file=self.file_name,
            kind=facts.kind,
            scale=scale,
            tokens=tokens,
            size=size,
            sha256=sha256,
            url=url,
        )

    def _check_tokens(self, tokens: tuple[str, ...], rows: int) -> tuple[str, ...]:
        what = f"{self.file_name}: tokens {' '.join(tokens)[:120]!r}"
        if len(tokens) != rows or len(set(tokens)) != rows:
            raise AdapterError(f"{what}, expected {rows} different ones, one for each row")
        if not all(PLACEHOLDER_TOKEN.fullmatch(token) for token in tokens):
            raise AdapterError(f"{what}, expected such as '<s0>'")
        for adapter in self.others:
            if set(tokens) & set(adapter.tokens):
                raise AdapterError(f"{what} are {adapter.file}'s already; name others with --tokens")
        return tokens


def _add_file(task: _Task, source: Path) -> tuple[Path, Adapter]:
    facts = _inspect(source)
    try:
        size, sha256 = source.stat().st_size, hash_file(source)
    except OSError as error:
        raise ModelFileError(f"{source}: cannot be read: {error.strerror}") from error
    is_present = task.is_present(sha256)
    entry = task.make_entry(facts, size, sha256, None, source.parent)
    if is_present and task.present is not None:
        return task.present, entry
    with open_part(task.target) as part:
        if _copy(source, part) != sha256:
            part.discard()
            raise ModelFileError(f"{source}: changed while it was copied")
        _sidecar_of(task.target).unlink(missing_ok=True)  # it is about the file that stood there before
        part.place()
    return task.target, entry


def _add_link(task: _Task, link: Link, web: Web) -> tuple[Path, Adapter]:
    is_present = link.sha256 is not None and task.is_present(link.sha256)  # before a byte is downloaded
    if is_present and task.present is not None and link.sha256 is not None:
        path, facts = task.present, _inspect(task.present)
        entry = task.make_entry(facts, path.stat().st_size, link.sha256, link.url, None)
    else:
        path, facts, entry = _download(task, link, web)
    if not _sidecar_of(path).is_file() or (path == task.target and not is_present):
        _write_sidecar(path, entry, facts, link)
    return path, entry


def _download(task: _Task, link: Link, web: Web) -> tuple[Path, _Facts, Adapter]:
    web = replace(web, max_bytes=min(web.max_bytes, MAX_ADAPTER_BYTES))
    with open_part(task.target) as part:
        with Progress(task.file_name, link.size) as progress:
            sha256 = download(
                link.url, part, web, size=link.size, sha256=link.sha256, advance=progress.advance
            )
        try:
            is_present = task.is_present(sha256)
            facts = _inspect(part.path, shown=task.file_name)
            entry = task.make_entry(facts, part.path.stat().st_size, sha256, link.url, None)
        except WeightsError:
            part.discard()
            raise
        if is_present and task.present is not None:
            part.discard()
            return task.present, facts, entry
        _sidecar_of(task.target).unlink(missing_ok=True)  # as above
        part.place()
    return task.target, facts, entry


def _inspect(path: Path, *, shown: str | None = None) -> _Facts:
    """Tell what the file `path` is, from its header; `shown` is its name for messages.

    Raises:
        ModelFileError: no safetensors file.
        AdapterError: neither a LoRA nor an embedding for both text encoders, or for another base model.
    """
    name = shown or path.name
    try:
        found = read(path, hashes="none")
        tensors = read_header(path).tensors
    except ModelFileError as error:
        raise ModelFileError(str(error).replace(path.name, name)) from error
    if found.base_model not in (None, BASE):
        raise AdapterError(f"{name}: made for {found.base_model}, expected {BASE}")
    base = found.base_declared or found.base_model
    if found.kind == "lora":
        return _Facts("lora", 0, base, found.trigger_words)
    if set(tensors) not in EMBEDDING_KEYS:
        what = "one text encoder" if found.kind == "embedding" else found.kind
        raise AdapterError(f"{name}: neither a LoRA nor an SDXL embedding: {what} ({found.format})")
    shapes = [tensor.shape for tensor in tensors.values()]
    rows = {shape[0] if len(shape) == 2 else 0 for shape in shapes}
    if len(rows) != 1 or not 1 <= min(rows) <= MAX_ROWS:
        raise AdapterError(
            f"{name}: rows of the shapes {shapes}, expected 1 to {MAX_ROWS}, as many for both text encoders"
        )
    return _Facts("embedding", rows.pop(), base, found.trigger_words)


def _check_name(wish: Wish | None, name: str) -> str:
    name = wish.file_name if wish and wish.file_name else name
    if not FILE_NAME.fullmatch(name) or "/" in name:
        raise AdapterError(
            f"{name[:80]!r} cannot be a name in weights/files/: letters, digits, . _ - are; give one with --as"
        )
    return name


def _name_kind(kind: str) -> str:
    return "a LoRA" if kind == "lora" else "an embedding"


def _copy(source: Path, part: Part) -> str:
    """Put the bytes of `source` into the part and return the sha256 of what was put there."""
    digest = hashlib.sha256()
    part.clear()
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            part.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def _read_special_params(folder: Path | None) -> tuple[str, ...] | None:
    """Return the tokens that a Replicate training wrote beside its embeddings, None where it did not."""
    if folder is None or not (folder / SPECIAL_PARAMS).is_file():
        return None
    path = folder / SPECIAL_PARAMS
    try:
        table = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: {error}") from error
    return tuple(PLACEHOLDER_TOKEN.findall("".join(table.values()))) or None


def _sidecar_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.metadata.json")


def _write_sidecar(path: Path, entry: Adapter, facts: _Facts, link: Link) -> None:
    """Write `F.metadata.json`: the fields that inspectors of model files look for; AutoV2 is sha256[:10]."""
    sha256 = (entry.sha256 or "").upper()
    fields = {
        "hash": f"AUTOV2: {sha256[:10]}",
        "hash_type": "AUTOV2",
        "hash_autov2": sha256[:10],
        "hash_sha256": sha256,
        "model_type": entry.kind,
        "base_model": link.base or facts.base,
        "trigger_words": list(link.trigger_words or facts.trigger_words),
        **link.civitai,
        "source": link.url,
        "last_updated": datetime.now().isoformat(timespec="seconds"),
    }
    with open_part(_sidecar_of(path)) as part:
        part.clear()
        part.write(msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n")
        part.place()
