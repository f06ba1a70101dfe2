"""`weights/NAME.model.json`: everything that a packaged model is made of.

The base and the VAE are sources: `{"folder": ..., "files": [{"path", "size", "sha256"}, ...]}`. One more key says where
a source's files come from:

    "repository": "owner/name", "revision": "COMMIT"     the hub
    "url": "https://example.com/vae"                     any https server; a file's address is url/path
    neither                                              this project's own repository

An adapter, `{"file": ..., "kind": "lora", "scale": 0.7, "size", "sha256"}`, may have a `url` too, the address of the
file itself; without one, its owner copies it into weights/files/. Small files that it depends on, such as PEFT's
adapter_config.json, are listed as `beside` it: in its folder here, and beside its address.

Names are plain names below weights/, never paths that lead out of it. An unknown key is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tilemix.colors.chart import list_palettes
from tilemix.errors import LIST_SEPARATOR, ManifestError, RequestError
from tilemix.inputs import NumberInput, find_input
from tilemix.modelfile.base_families import BASE_FAMILIES, SDXL, BaseFamily
from tilemix.prompts.checks import PLACEHOLDER_TOKEN
from tilemix.request import Defaults
from tilemix.samplers import find_sampler, list_samplers
from tilemix.system.atomic import locked, write_atomically
from tilemix.system.json_file import read_json
from tilemix.system.project import ROOT
from tilemix.weights.address import find_fault

if TYPE_CHECKING:
    from tilemix.colors.palette import Palette

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_MANIFEST_BYTES = 4 * 2**20  # an adapter takes some 200
MAX_SCALE = find_input("lora_scale", NumberInput).maximum

AdapterKind = Literal["lora", "embedding", "hypernetwork"]


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a source."""

    path: str  # below the source's folder
    size: int | None = None  # bytes; None: not locked yet
    sha256: str | None = None  # lower case; None: not locked yet


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder of files, from a hub repository, from an https server or from this repository."""

    folder: str  # below weights/
    files: tuple[ManifestFile, ...]
    repository: str | None = None  # on the hub
    revision: str | None = None  # the repository's commit, 40 hex digits
    url: str | None = None  # https, no slash at its end; excludes a repository


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter file: a LoRA, with the embeddings it brings, embeddings alone, or a hypernetwork.

    A LoRA's file may be the archive of a Replicate training, or the adapter_model.safetensors of a PEFT folder.
    """

    file: str  # below weights/ or weights/files/
    kind: AdapterKind
    scale: float | None = (
        None  # a LoRA's strength, 0 to MAX_SCALE; None: DEFAULT_SCALE, and the others have none
    )
    # The placeholder tokens of an embedding, in a file of its own or in a LoRA's, one for each row; empty: the file's
    # own names.
    tokens: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    url: str | None = None  # https; None: the owner copies the file
    beside: tuple[ManifestFile, ...] = ()  # what it depends on; a path is a plain name in its folder


class Scheduler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sampling algorithm; `config` overrides the base's own scheduler configuration."""

    name: str
    config: dict[str, bool | int | float | str] = {}


class ModelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a packaged model is made of."""

    base: Source
    scheduler: Scheduler
    defaults: Defaults
    prompt_template: str  # prompt_templates/NAME.json
    license: str  # of the weights
    family: str = SDXL.name  # of the base, one of BASE_FAMILIES
    palette: str | None = None  # data/palettes/NAME.json; None: the chart serves
    vae: Source | None = None  # None: the base's own
    adapters: tuple[Adapter, ...] = ()
    trial_templates: tuple[str, ...] = ()  # other forms of the prompt, which `tilemix calibrate` tries

    @property
    def base_family(self) -> BaseFamily:
        """What is known about the base's family."""
        return BASE_FAMILIES[self.family]

    def load_palette(self) -> Palette | None:
        """Return the colors that the model draws; None where the chart serves."""
        from tilemix.colors.palette import load_palette

        return None if self.palette is None else load_palette(self.palette)


def list_models(root: Path = ROOT) -> list[str]:
    """Return the names of the packaged models, sorted."""
    return sorted(path.name.removesuffix(".model.json") for path in (root / "weights").glob("*.model.json"))


def sources_of(manifest: ModelManifest) -> tuple[Source, ...]:
    """Return the base and, if the model has its own, the VAE."""
    return tuple(source for source in (manifest.base, manifest.vae) if source is not None)


def load_manifest(name: str, root: Path = ROOT) -> ModelManifest:
    """Read and check `weights/NAME.model.json`.

    Raises:
        ManifestError: no such model, an unknown key, a wrong type or value, a name that leads out of weights/.
    """
    known = LIST_SEPARATOR.join(list_models(root)) or "-"
    if not MODEL_NAME.fullmatch(name):
        raise ManifestError("manifest-name", name=name[:80], known=known)
    path = root / "weights" / f"{name}.model.json"
    if not os.path.lexists(path):
        raise ManifestError("manifest-unknown", name=name, known=known)
    manifest = read_json(path, ModelManifest, most=MAX_MANIFEST_BYTES, refuse=ManifestError, name=path.name)
    check_manifest(path.name, manifest)
    return manifest


@contextmanager
def changing(name: str, root: Path = ROOT) -> Iterator[None]:
    """Keep other processes from changing the manifest of the model `name` between our reading and writing it.

    Raises:
        ManifestError: the folder cannot be written to.
    """
    lock = root / "weights" / f".{name}.lock"
    try:
        stack = ExitStack()
        stack.enter_context(locked(lock))
    except OSError as error:
        raise ManifestError("file-unwritable", file=str(lock), reason=str(error.strerror)) from error
    with stack:
        yield


def edit_manifest(name: str, edit: Callable[[str], str], root: Path = ROOT) -> Path:
    """Change the text of `weights/NAME.model.json`, whole or not at all, and return its path; use it in `changing`.

    Raises:
        ManifestError: the new text breaks a rule, or cannot be written; the file stays as it was.
    """
    path = root / "weights" / f"{name}.model.json"
    try:
        text = edit(path.read_text("utf-8"))
        check_manifest(path.name, msgspec.json.decode(text, type=ModelManifest))
        write_atomically(path, text.encode())
    except OSError as error:
        raise ManifestError("file-unwritable", file=str(path), reason=str(error.strerror)) from error
    return path


def check_manifest(name: str, manifest: ModelManifest) -> None:
    """Check what the types of a manifest cannot express; `name` is its file's name, for messages.

    Raises:
        ManifestError: a value is wrong.
    """
    if manifest.family not in BASE_FAMILIES:
        raise ManifestError(
            "manifest-unknown-family",
            file=name,
            found=manifest.family[:80],
            known=LIST_SEPARATOR.join(BASE_FAMILIES),
        )
    for source in sources_of(manifest):
        _check_source(name, source)
    for adapter in manifest.adapters:
        _check_adapter(name, adapter, manifest)
    _check_repeated(name, (adapter.file for adapter in manifest.adapters))
    _check_scheduler(name, manifest)
    try:
        manifest.defaults.check()
    except RequestError as error:
        raise ManifestError("manifest-bad-defaults", file=name, **error.message.as_reason()) from error
    templates = [("prompt_template", manifest.prompt_template)]
    for key, template in (*templates, *(("trial_templates", one) for one in manifest.trial_templates)):
        if not MODEL_NAME.fullmatch(template):  # templates are named as models are
            raise ManifestError("manifest-template-name", file=name, key=key, found=template[:80])
    if manifest.palette is not None and manifest.palette not in (known := list_palettes()):
        raise ManifestError(
            "manifest-no-palette", file=name, palette=manifest.palette[:80], known=", ".join(known)
        )


def _check_source(name: str, source: Source) -> None:
    _check_path(name, source.folder, "folder")
    if source.repository is not None and source.url is not None:
        raise ManifestError("manifest-two-origins", file=name, folder=source.folder)
    if source.repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository):
        raise ManifestError("manifest-repository", file=name, found=source.repository[:80])
    if source.repository is not None and not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise ManifestError("manifest-revision", file=name, found=(source.revision or "")[:80])
    _check_url(name, source.url, source.folder)
    if source.url is not None and (source.url.endswith("/") or "?" in source.url):
        raise ManifestError("manifest-url-folder", file=name, folder=source.folder)
    _check_repeated(name, (file.path for file in source.files))
    for file in source.files:
        _check_path(name, file.path, "file")
        _check_lock(name, file.size, file.sha256, file.path)


def _check_adapter(name: str, adapter: Adapter, manifest: ModelManifest) -> None:
    _check_path(name, adapter.file, "file")
    _check_lock(name, adapter.size, adapter.sha256, adapter.file)
    _check_url(name, adapter.url, adapter.file)
    if adapter.kind == "lora" and not 0 <= (adapter.scale or 0) <= MAX_SCALE:
        raise ManifestError("manifest-scale", file=name, adapter=adapter.file, most=MAX_SCALE)
    for token in adapter.tokens:
        if not PLACEHOLDER_TOKEN.fullmatch(token):
            raise ManifestError("manifest-token", file=name, adapter=adapter.file, token=token[:80])
    _check_repeated(name, adapter.tokens)
    _check_repeated(name, (file.path for file in adapter.beside))
    for file in adapter.beside:
        _check_path(name, file.path, "file")
        _check_lock(name, file.size, file.sha256, file.path)
        if "/" in file.path or file.path == adapter.file.rpartition("/")[2]:
            raise ManifestError("manifest-beside", file=name, name=file.path[:80], adapter=adapter.file)
    if adapter.kind != "lora" and adapter.scale is not None:
        raise ManifestError("manifest-no-scale", file=name, adapter=adapter.file, kind=adapter.kind)
    if adapter.kind == "hypernetwork" and not manifest.base_family.takes_hypernetworks:
        base = manifest.base_family.base
        raise ManifestError("manifest-hypernetwork", file=name, adapter=adapter.file, base=base)


def _check_scheduler(name: str, manifest: ModelManifest) -> None:
    family, typed = manifest.base_family, manifest.scheduler.name
    sampler = find_sampler(typed)
    if sampler is None or sampler.find_class(is_flow=family.is_flow) is None:
        known = ", ".join(list_samplers(is_flow=family.is_flow))
        raise ManifestError("manifest-no-scheduler", file=name, name=typed[:80], known=known)


def _check_repeated(name: str, entries: Iterable[str]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry in seen:
            raise ManifestError("manifest-twice", file=name, name=entry[:80])
        seen.add(entry)


def _check_path(name: str, value: str, what: str) -> None:
    if not FILE_NAME.fullmatch(value):
        raise ManifestError("manifest-path", file=name, key=what, found=value[:80])


def _check_lock(name: str, size: int | None, sha256: str | None, what: str) -> None:
    if size is not None and size < 1:
        raise ManifestError("manifest-size", file=name, name=what, found=size)
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise ManifestError("manifest-hash", file=name, name=what, found=sha256[:80])


def _check_url(name: str, url: str | None, what: str) -> None:
    if url is not None and (fault := find_fault(url, f"{name}: {what}")):
        raise ManifestError(fault.code, field=None, **fault.values)
