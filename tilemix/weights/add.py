"""Add an adapter to a packaged model: the file goes into weights/files/, its entry and lock into the manifest.

It is a LoRA, an embedding, the `trained_model.tar` of a Replicate training, or the folder of a PEFT LoRA, which stays a
folder: weights/files/NAME/adapter_model.safetensors with its adapter_config.json beside it, both locked.

For an address, the sidecar `F.metadata.json` with hash, base and trigger words is written beside the file. The order
is: companion files, the file, the sidecar, the manifest. After an interruption the same command continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin

import msgspec

from tilemix.errors import AdapterError, ModelFileError, WeightsError
from tilemix.modelfile.companions import MAX_COMPANION_BYTES, PEFT_CONFIG, PEFT_FILE
from tilemix.modelfile.sidecar_file import sidecar_of, write_sidecar
from tilemix.prompts.checks import PLACEHOLDER_TOKEN
from tilemix.system.project import ROOT
from tilemix.weights.beside import check_config, check_name, name_in_folder, read_config, write_beside
from tilemix.weights.candidate import Candidate, inspect
from tilemix.weights.download import download
from tilemix.weights.entry import Task, Wish
from tilemix.weights.links import Link, follow
from tilemix.weights.local import CHUNK_BYTES, hash_file
from tilemix.weights.manifest import Adapter, ModelManifest, load_manifest, write_manifest
from tilemix.weights.part import Part, open_part
from tilemix.weights.progress import Progress
from tilemix.weights.web import Web, read_small

MAX_ADAPTER_BYTES = 4 * 2**30  # the largest SDXL LoRAs take 2 GB


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did."""

    path: Path
    adapter: Adapter
    change: Literal["added", "updated", "unchanged"]  # of the manifest


def add(
    source: str, name: str, wish: Wish | None = None, *, root: Path = ROOT, web: Web | None = None
) -> Added:
    """Add the adapter `source`, a path or an https address, to the packaged model `name`.

    Args:
        source: a LoRA's, an embedding's or a training's file, or a PEFT folder; or an address of such a file, a
            Civitai or hub page included.
        name: the packaged model.
        wish: scale, tokens and the rest.
        root: the project's folder.
        web: the rules for an address.

    Raises:
        ManifestError: see load_manifest.
        AdapterError: neither a LoRA nor an embedding, a wrong scale or wrong tokens, or the name is taken.
        ModelFileError: the file cannot be read, or differs from what its site says.
        WeightsError: the address is refused, or the server or the disk fails.
    """
    web, wish = web or Web(), wish or Wish()
    manifest = load_manifest(name, root)
    if "://" in source:
        link = follow(source, web)
        path, entry = _add_link(Task(_name_link(link, wish), manifest, wish, root), link, web)
    else:
        path, entry = _add_file(Path(source), manifest, wish, root)
    manifest = load_manifest(name, root)  # it may have changed during a download
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
        AdapterError: it holds something else.
    """
    tokens = PLACEHOLDER_TOKEN.findall(text)
    if not tokens or PLACEHOLDER_TOKEN.sub("", text).strip(" ,"):
        raise AdapterError("embedding-tokens-text", found=text[:120])
    return tuple(tokens)


def _add_file(source: Path, manifest: ModelManifest, wish: Wish, root: Path) -> tuple[Path, Adapter]:
    if source.is_dir():
        source /= PEFT_FILE
    facts = inspect(source)
    beside = {PEFT_CONFIG: read_config(source.with_name(PEFT_CONFIG))} if facts.needs_config else {}
    wished = wish.file_name
    name = name_in_folder(source, wished) if beside else check_name(wished or source.name)
    task = Task(name, manifest, wish, root)
    try:
        size, sha256 = source.stat().st_size, hash_file(source)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(source), reason=str(error.strerror)) from error
    is_present = task.is_present(sha256, beside)
    entry = task.make_entry(facts, size, sha256, folder=source.parent, beside=beside)
    if is_present and task.present is not None:
        write_beside(task.present, beside)
        return task.present, entry
    with open_part(task.target) as part:
        try:
            copied = _copy(source, part)
        except OSError:
            part.discard()  # useless for another try, and it would keep a full disk full
            raise
        if copied != sha256:
            part.discard()
            raise ModelFileError("file-changed", file=str(source))
        _place(part, beside)
    return task.target, entry


def _add_link(task: Task, link: Link, web: Web) -> tuple[Path, Adapter]:
    beside: dict[str, bytes] = {}
    if link.name == PEFT_FILE:
        url = urljoin(link.url, PEFT_CONFIG)
        beside[PEFT_CONFIG] = check_config(PEFT_CONFIG, read_small(url, web, most=MAX_COMPANION_BYTES))
    # Asked before anything is downloaded.
    is_present = link.sha256 is not None and task.is_present(link.sha256, beside)
    if is_present and task.present is not None and link.sha256 is not None:
        path, facts = task.present, _inspect_link(task, task.present, beside)
        size = path.stat().st_size
        entry = task.make_entry(facts, size, link.sha256, url=link.url, beside=beside)
        write_beside(path, beside)
    else:
        path, facts, entry = _download(task, link, web, beside)
    if not sidecar_of(path).is_file() or (path == task.target and not is_present):
        _write_sidecar(path, entry, facts, link)
    return path, entry


def _download(
    task: Task, link: Link, web: Web, beside: Mapping[str, bytes]
) -> tuple[Path, Candidate, Adapter]:
    web = replace(web, max_bytes=min(web.max_bytes, MAX_ADAPTER_BYTES))
    with open_part(task.target) as part:
        with Progress(task.file_name, link.size) as progress:
            sha256 = download(
                link.url, part, web, size=link.size, sha256=link.sha256, advance=progress.advance
            )
        try:
            is_present = task.is_present(sha256, beside)
            facts = _inspect_link(task, part.path, beside)
            size = part.path.stat().st_size
            entry = task.make_entry(facts, size, sha256, url=link.url, beside=beside)
        except WeightsError:
            part.discard()
            raise
        if is_present and task.present is not None:
            part.discard()
            write_beside(task.present, beside)
            return task.present, facts, entry
        _place(part, beside)
    return task.target, facts, entry


def _name_link(link: Link, wish: Wish) -> str:
    if link.name != PEFT_FILE:
        return check_name(wish.file_name or link.name)
    if not wish.file_name:
        raise AdapterError("weights-peft-name", file=PEFT_FILE)
    return f"{check_name(wish.file_name)}/{PEFT_FILE}"


def _inspect_link(task: Task, path: Path, beside: Mapping[str, bytes]) -> Candidate:
    facts = inspect(path, shown=task.file_name)
    if facts.needs_config and not beside:
        raise AdapterError("weights-peft-config", file=task.file_name, config=PEFT_CONFIG, tensors=PEFT_FILE)
    return facts


def _copy(source: Path, part: Part) -> str:
    """Copy `source` into the part and return the sha256 of what was copied."""
    digest = hashlib.sha256()
    part.clear()
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            part.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def _place(part: Part, beside: Mapping[str, bytes]) -> None:
    write_beside(part.target, beside)
    sidecar_of(part.target).unlink(missing_ok=True)  # it describes the file that was there before
    part.place()


def _write_sidecar(path: Path, entry: Adapter, facts: Candidate, link: Link) -> None:
    """Write `F.metadata.json`: the fields that inspectors of model files look for."""
    assert entry.sha256 is not None, "an added file has its lock"
    suggestions = {
        "model_type": entry.kind,
        "base_model": link.base or facts.base,
        "trigger_words": list(link.trigger_words or facts.trigger_words),
    }
    write_sidecar(path, entry.sha256, {**link.civitai, "source": link.url}, suggestions)
