"""Add an adapter to a packaged model: the file goes into weights/files/, its entry and lock into the manifest.

It is a LoRA, an embedding, the `trained_model.tar` of a Replicate training, or the folder of a PEFT LoRA, which stays a
folder: weights/files/NAME/adapter_model.safetensors with its adapter_config.json beside it, both locked.

For an address, the sidecar `F.metadata.json` with hash, base and trigger words is written beside the file. The order
is: companion files, the file, the sidecar, the manifest. After an interruption the same command continues.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin

from tilemix.errors import LIST_SEPARATOR, AdapterError, ModelFileError, WeightsError
from tilemix.modelfile.companions import MAX_COMPANION_BYTES, PEFT_CONFIG, PEFT_FILE
from tilemix.modelfile.sidecar_file import sidecar_of, write_sidecar
from tilemix.prompts.checks import PLACEHOLDER_TOKEN
from tilemix.system.project import ROOT
from tilemix.weights.beside import check_config, check_name, name_in_folder, read_config, write_beside
from tilemix.weights.candidate import Candidate, inspect
from tilemix.weights.download import download
from tilemix.weights.entry import Task, Wish
from tilemix.weights.layout import drop_adapter, put_adapter
from tilemix.weights.links import Link, follow
from tilemix.weights.local import CHUNK_BYTES, find_adapter, hash_file
from tilemix.weights.manifest import Adapter, ModelManifest, changing, edit_manifest, load_manifest
from tilemix.weights.part import Part, open_part
from tilemix.weights.progress import Progress
from tilemix.weights.web import Web, read_small

logger = logging.getLogger(__name__)

MAX_ADAPTER_BYTES = 4 * 2**30  # the largest SDXL LoRAs take 2 GB


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did."""

    path: Path
    adapter: Adapter
    change: Literal["added", "updated", "unchanged"]  # of the manifest


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A file that may be added: what it is, and where from."""

    name: str  # below weights/files/
    facts: Candidate
    size: int
    sha256: str
    beside: Mapping[str, bytes]
    folder: Path | None = None  # where special_params.json may be
    link: Link | None = None

    def make_entry(self, task: Task) -> Adapter:
        """Return the manifest's entry; see `Task.make_entry`."""
        url = self.link.url if self.link else None
        return task.make_entry(
            self.facts, self.size, self.sha256, url=url, folder=self.folder, beside=self.beside
        )


def add(
    source: str, name: str, wish: Wish | None = None, *, root: Path = ROOT, web: Web | None = None
) -> Added:
    """Add the adapter `source`, a path or an https address, to the packaged model `name`.

    Its fit is proved first, on the shapes of the model's base, as loading it would.

    Args:
        source: a LoRA's, an embedding's or a training's file, or a PEFT folder; or an address of such a file, a
            Civitai or hub page included.
        name: the packaged model.
        wish: scale, tokens and the rest.
        root: the project's folder.
        web: the rules for an address.

    Raises:
        ManifestError: see load_manifest.
        AdapterError: neither a LoRA nor an embedding, a wrong scale or wrong tokens, the name is taken, or it does
            not fit the model, or nothing tells whether it does.
        ModelFileError: the file cannot be read, or differs from what its site says.
        WeightsError: the address is refused, or the server or the disk fails.
    """
    web, wish = web or Web(), wish or Wish()
    manifest = load_manifest(name, root)
    if "://" in source:
        link = follow(source, web)
        return _add_link(Task(_name_link(link, wish), name, manifest, wish, root), link, web)
    return _add_file(Path(source), name, manifest, wish, root)


def remove(name: str, file: str, *, root: Path = ROOT) -> Path:
    """Take the adapter `file` out of the packaged model `name`, and return where its file is, which stays.

    Args:
        name: the packaged model.
        file: as in the manifest; of a PEFT adapter, its folder will do.
        root: the project's folder.

    Raises:
        ManifestError: see load_manifest.
        AdapterError: the model has no such adapter.
    """
    with changing(name, root):
        adapters = load_manifest(name, root).adapters
        wanted = (file, f"{file.rstrip('/')}/{PEFT_FILE}")
        found = next((adapter for adapter in adapters if adapter.file in wanted), None)
        if found is None:
            known = LIST_SEPARATOR.join(adapter.file for adapter in adapters) or "-"
            raise AdapterError("weights-no-adapter", model=name, file=file[:80], known=known)
        edit_manifest(name, lambda text: drop_adapter(text, found.file), root)
        return find_adapter(found, root)


def split_tokens(text: str) -> tuple[str, ...]:
    """Return the placeholder tokens in a text such as "<s0><s1>" or "<s0> <s1>".

    Raises:
        AdapterError: it holds something else.
    """
    tokens = PLACEHOLDER_TOKEN.findall(text)
    if not tokens or PLACEHOLDER_TOKEN.sub("", text).strip(" ,"):
        raise AdapterError("embedding-tokens-text", found=text[:120])
    return tuple(tokens)


def _add_file(source: Path, model: str, manifest: ModelManifest, wish: Wish, root: Path) -> Added:
    if source.is_dir():
        source /= PEFT_FILE
    facts = inspect(source, manifest.base_family)
    beside = {PEFT_CONFIG: read_config(source.with_name(PEFT_CONFIG))} if facts.needs_config else {}
    wished = wish.file_name
    name = name_in_folder(source, wished) if beside else check_name(wished or source.name)
    task = Task(name, model, manifest, wish, root)
    try:
        size, sha256 = source.stat().st_size, hash_file(source)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(source), reason=str(error.strerror)) from error
    arrival = _Arrival(name, facts, size, sha256, beside, folder=source.parent)
    is_present = task.is_present(sha256, beside)
    _prove_fit(task, arrival, source)
    if is_present:
        return _enter(task, arrival)
    with open_part(task.target) as part:
        try:
            copied = _copy(source, part)
        except OSError:
            part.discard()  # useless for another try, and it would keep a full disk full
            raise
        if copied != sha256:
            part.discard()
            raise ModelFileError("file-changed", file=str(source))
        return _enter(task, arrival, part)


def _add_link(task: Task, link: Link, web: Web) -> Added:
    beside: dict[str, bytes] = {}
    if link.name == PEFT_FILE:
        url = urljoin(link.url, PEFT_CONFIG)
        beside[PEFT_CONFIG] = check_config(PEFT_CONFIG, read_small(url, web, most=MAX_COMPANION_BYTES))
    # Asked before anything is downloaded.
    is_present = link.sha256 is not None and task.is_present(link.sha256, beside)
    if is_present and task.present is not None and link.sha256 is not None:
        facts = _inspect_link(task, task.present, beside)
        arrival = _Arrival(task.file_name, facts, task.present.stat().st_size, link.sha256, beside, link=link)
        _prove_fit(task, arrival, task.present)
        return _enter(task, arrival)
    web = replace(web, max_bytes=min(web.max_bytes, MAX_ADAPTER_BYTES))
    with open_part(task.target) as part:
        with Progress(task.file_name, link.size) as progress:
            sha256 = download(
                link.url, part, web, size=link.size, sha256=link.sha256, advance=progress.advance
            )
        try:
            task.is_present(sha256, beside)
            facts = _inspect_link(task, part.path, beside)
            arrival = _Arrival(task.file_name, facts, part.path.stat().st_size, sha256, beside, link=link)
            _prove_fit(task, arrival, part.path)
        except WeightsError:
            part.discard()
            raise
        return _enter(task, arrival, part)


def _prove_fit(task: Task, arrival: _Arrival, path: Path) -> None:
    """Refuse a file that the model's loader would refuse.

    Raises:
        AdapterError: it does not fit, or nothing tells whether it does.
    """
    from tilemix.adapters.fit import read_shapes  # loads torch

    entry, base = arrival.make_entry(task), task.manifest.base
    shapes = read_shapes(task.root / "weights" / base.folder, base.repository, task.manifest.base_family)
    with tempfile.TemporaryDirectory(prefix="tilemix-") as folder:
        # Under its own name, which messages give and PEFT's files are told by, and beside what it depends on.
        link = Path(folder) / arrival.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())
        write_beside(link, arrival.beside)
        if entry.kind == "lora":
            shapes.prove_lora(link, len(entry.tokens))
        else:
            shapes.prove_embedding(link, len(entry.tokens))


def _enter(task: Task, arrival: _Arrival, part: Part | None = None) -> Added:
    """Put the file, complete in `part`, and its entry into their places; without a part, the file is there.

    Everything is compared once more with the manifest, which others may have changed meanwhile.
    """
    with changing(task.model, task.root):
        manifest = load_manifest(task.model, task.root)
        task = Task(task.file_name, task.model, manifest, task.wish, task.root)
        try:
            is_present = task.is_present(arrival.sha256, arrival.beside)
            entry = arrival.make_entry(task)
        except WeightsError:
            if part:
                part.discard()
            raise
        path = task.target
        if is_present and task.present is not None:
            path = task.present
            write_beside(path, arrival.beside)
            if part:
                part.discard()
        elif part is None:
            raise ModelFileError("file-changed", file=str(task.target))
        else:
            _place(part, arrival.beside)
        is_new = path == task.target and not is_present
        if arrival.link and (is_new or not sidecar_of(path).is_file()):
            _write_sidecar(path, entry, arrival.facts, arrival.link)
        if task.old == entry:
            return Added(path, entry, "unchanged")
        edit_manifest(task.model, lambda text: put_adapter(text, entry), task.root)
    if task.old and task.old.sha256 not in (None, entry.sha256):
        logger.info("%s: sha256 %s in place of %s", entry.file, entry.sha256, task.old.sha256)
    return Added(path, entry, "updated" if task.old else "added")


def _name_link(link: Link, wish: Wish) -> str:
    if link.name != PEFT_FILE:
        return check_name(wish.file_name or link.name)
    if not wish.file_name:
        raise AdapterError("weights-peft-name", file=PEFT_FILE)
    return f"{check_name(wish.file_name)}/{PEFT_FILE}"


def _inspect_link(task: Task, path: Path, beside: Mapping[str, bytes]) -> Candidate:
    facts = inspect(path, task.manifest.base_family, shown=task.file_name)
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
