"""Model manifests: `weights/NAME.model.json` -> the verified local files of a packaged model.

A manifest names everything that a model is made of: the base (a folder in the
diffusers layout), a VAE of its own if it has one, the adapters, the scheduler,
the defaults, the prompt template. Names in it are plain names below `weights/`,
never paths that lead out of it.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from tilemix.errors import ManifestError, MissingFilesError, ModelFileError, WeightsError
from tilemix.project import ROOT
from tilemix.prompt_text import PLACEHOLDER_TOKEN

logger = logging.getLogger(__name__)

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
SHA256 = re.compile(r"[0-9a-f]{64}")
PRIVATE_FOLDER = "files"  # weights/files/: fetched and private files, never in git


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a source."""

    path: str  # below the source's folder
    size: int | None = None  # bytes; None: not locked yet
    sha256: str | None = None  # lower case; None: not locked yet


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder of files, from a hub repository or from this repository."""

    folder: str  # below weights/
    files: tuple[ManifestFile, ...]
    repository: str | None = None  # on the hub; None: the files stand in this project's own repository
    revision: str | None = None  # the commit, 40 hex digits


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter file: a LoRA, with the embeddings it brings, or embeddings alone for both text encoders."""

    file: str  # below weights/ or weights/files/
    kind: Literal["lora", "embedding"]
    scale: float | None = None  # a LoRA's strength, 0 to 1.5; embeddings have none
    # An embedding's placeholder tokens, one a row, be it a file of its own or within a LoRA's; empty: the
    # file's own names.
    tokens: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None


Locked = TypeVar("Locked", ManifestFile, Adapter)


class Scheduler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The noise-level algorithm; `config` goes over the base's own scheduler configuration."""

    name: str
    config: dict[str, bool | int | float | str] = {}


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request that leaves an input out gets."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float


class ModelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a packaged model is made of."""

    base: Source
    scheduler: Scheduler
    defaults: Defaults
    prompt_template: str  # prompt_templates/NAME.json
    license: str  # of the weights
    vae: Source | None = None  # None: the base's own
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A packaged model whose files are all here and are what the manifest says."""

    name: str
    manifest: ModelManifest
    base: Path  # folder in the diffusers layout
    vae: Path | None  # folder; None: the base's own
    adapters: tuple[Path, ...]  # parallel to manifest.adapters
    template: Path
    hashes: dict[str, str | None]  # the manifest's file paths -> sha256, None where not locked


def list_models(root: Path = ROOT) -> list[str]:
    """Return the names of the packaged models, sorted."""
    return sorted(path.name.removesuffix(".model.json") for path in (root / "weights").glob("*.model.json"))


def load_manifest(name: str, root: Path = ROOT) -> ModelManifest:
    """Read and check `weights/NAME.model.json`.

    Raises:
        ManifestError: no such model, an unknown key, a wrong type or value, a name that leads out of weights/.
    """
    known = ", ".join(list_models(root)) or "none"
    if not MODEL_NAME.fullmatch(name):
        raise ManifestError(f"model {name[:80]!r} is no model name; known: {known}")
    path = root / "weights" / f"{name}.model.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"unknown model {name!r}; known: {known}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        manifest = msgspec.json.decode(raw, type=ModelManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path.name}: {error}") from error
    _check_manifest(path.name, manifest)
    return manifest


def _check_manifest(name: str, manifest: ModelManifest) -> None:
    def check_path(value: str, what: str) -> None:
        if not FILE_NAME.fullmatch(value):
            raise ManifestError(f"{name}: {what} {value[:80]!r} is no name below weights/")

    def check_lock(size: int | None, sha256: str | None, what: str) -> None:
        if size is not None and size < 1:
            raise ManifestError(f"{name}: {what} has size {size}, expected at least 1 byte")
        if sha256 is not None and not SHA256.fullmatch(sha256):
            raise ManifestError(
                f"{name}: {what} has sha256 {sha256[:80]!r}, expected 64 lower-case hex digits"
            )

    for source in filter(None, (manifest.base, manifest.vae)):
        check_path(source.folder, "folder")
        if source.repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.repository):
            raise ManifestError(f"{name}: repository {source.repository[:80]!r}, expected owner/name")
        if source.repository is not None and not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
            raise ManifestError(f"{name}: revision {source.revision!r}, expected a commit of 40 hex digits")
        for file in source.files:
            check_path(file.path, "file")
            check_lock(file.size, file.sha256, file.path)
    for adapter in manifest.adapters:
        check_path(adapter.file, "adapter file")
        check_lock(adapter.size, adapter.sha256, adapter.file)
        if adapter.kind == "lora" and not 0 <= (adapter.scale or 0) <= 1.5:
            raise ManifestError(f"{name}: {adapter.file} is a lora: scale 0 to 1.5 expected")
        for token in adapter.tokens:
            if not PLACEHOLDER_TOKEN.fullmatch(token):
                raise ManifestError(
                    f"{name}: {adapter.file} has the token {token[:80]!r}, expected one such as '<s0>'"
                )
        if adapter.kind == "embedding" and adapter.scale is not None:
            raise ManifestError(f"{name}: {adapter.file} is an embedding: no scale expected")
    if not MODEL_NAME.fullmatch(manifest.prompt_template):  # templates are named as models are
        raise ManifestError(f"{name}: prompt_template {manifest.prompt_template[:80]!r} is no template name")


def find_model(name: str, root: Path = ROOT) -> LocalModel:
    """Return the packaged model `name` with the paths of its files, each one checked for size and hash.

    Raises:
        ManifestError: see load_manifest.
        MissingFilesError: files are missing; the message says which, where they were looked for, and what to do.
        ModelFileError: a file has another size or sha256 than the manifest says.
    """
    manifest = load_manifest(name, root)
    missing = find_missing(manifest, root)
    if missing:
        raise MissingFilesError(_describe_missing(name, missing))
    for source in filter(None, (manifest.base, manifest.vae)):
        for file in source.files:
            _check_lock(root / "weights" / source.folder / file.path, file.size, file.sha256)
    adapters = []
    for adapter in manifest.adapters:
        path = _find_adapter(adapter, root)
        _check_lock(path, adapter.size, adapter.sha256)
        adapters.append(path)
    template = root / "prompt_templates" / f"{manifest.prompt_template}.json"
    if not template.is_file():
        raise ManifestError(f"{name}.model.json: no prompt template {template}")
    hashes: dict[str, str | None] = {file.path: file.sha256 for file in manifest.base.files}
    if manifest.vae is not None:
        hashes |= {f"vae/{file.path}": file.sha256 for file in manifest.vae.files}
    hashes |= {adapter.file: adapter.sha256 for adapter in manifest.adapters}
    return LocalModel(
        name=name,
        manifest=manifest,
        base=root / "weights" / manifest.base.folder,
        vae=root / "weights" / manifest.vae.folder if manifest.vae else None,
        adapters=tuple(adapters),
        template=template,
        hashes=hashes,
    )


def find_missing(manifest: ModelManifest, root: Path = ROOT) -> list[tuple[str, list[Path]]]:
    """Return the files that are not there: who brings each ("fetch" or "owner"), and where it was looked for."""
    missing: list[tuple[str, list[Path]]] = []
    for source in filter(None, (manifest.base, manifest.vae)):
        folder = root / "weights" / source.folder
        bringer = "fetch" if source.repository else "owner"
        missing += [(bringer, [folder / f.path]) for f in source.files if not (folder / f.path).is_file()]
    for adapter in manifest.adapters:
        places = _adapter_places(adapter, root)
        if not any(path.is_file() for path in places):
            missing.append(("owner", places))
    return missing


def fetch(name: str, root: Path = ROOT) -> list[Path]:
    """Download the missing files that come from a hub repository and return their paths.

    Files that only their owner has stay missing; a warning says which.

    Each file goes through huggingface_hub into `weights/FOLDER`; HF_HUB_OFFLINE and HF_TOKEN are respected.

    Raises:
        WeightsError: the hub cannot be reached or does not have the file.
        ModelFileError: a file, fetched or already here, has another size or sha256 than the manifest says.
    """
    manifest = load_manifest(name, root)
    fetched = []
    for source in filter(None, (manifest.base, manifest.vae)):
        if source.repository is None:
            continue
        folder = root / "weights" / source.folder
        for file in source.files:
            path = folder / file.path
            if path.is_file():
                _check_lock(path, file.size, file.sha256)
                continue
            _fetch_from_hub(source.repository, source.revision, file.path, folder)
            try:
                _check_lock(path, file.size, file.sha256)
            except ModelFileError:
                path.unlink()  # left there, it would be in the way of the next try
                raise
            fetched.append(path)
    if missing := find_missing(manifest, root):
        logger.warning("%s", _describe_missing(name, missing))
    return fetched


def lock(name: str, root: Path = ROOT) -> Path:
    """Write the size and sha256 of every file that is here into the manifest, and return the manifest's path.

    Raises:
        ManifestError: see load_manifest.
        MissingFilesError: a file is missing; the manifest stays as it was.
    """
    manifest = load_manifest(name, root)
    if missing := find_missing(manifest, root):
        raise MissingFilesError(_describe_missing(name, missing))

    def lock_source(source: Source | None) -> Source | None:
        if source is None:
            return None
        folder = root / "weights" / source.folder
        files = tuple(_measure_file(file, folder / file.path) for file in source.files)
        return msgspec.structs.replace(source, files=files)

    adapters = tuple(_measure_file(adapter, _find_adapter(adapter, root)) for adapter in manifest.adapters)
    locked = msgspec.structs.replace(
        manifest, base=lock_source(manifest.base), vae=lock_source(manifest.vae), adapters=adapters
    )
    path = root / "weights" / f"{name}.model.json"
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(locked), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _measure_file(entry: Locked, path: Path) -> Locked:
    return msgspec.structs.replace(entry, size=path.stat().st_size, sha256=_hash_file(path))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_from_hub(repository: str, revision: str | None, name: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    logger.info("fetching %s from %s", name, repository)
    try:
        hf_hub_download(repository, name, revision=revision, local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{repository}: {name} cannot be fetched: {reason}") from error


def _adapter_places(adapter: Adapter, root: Path) -> list[Path]:
    return [root / "weights" / PRIVATE_FOLDER / adapter.file, root / "weights" / adapter.file]


def _find_adapter(adapter: Adapter, root: Path) -> Path:
    """Return the path of an adapter that `find_missing` does not miss."""
    return next(path for path in _adapter_places(adapter, root) if path.is_file())


def _describe_missing(name: str, missing: list[tuple[str, list[Path]]]) -> str:
    def listed(bringer: str) -> str:
        return ", ".join(" or ".join(map(str, places)) for who, places in missing if who == bringer)

    steps = []
    if fetchable := listed("fetch"):
        steps.append(f"{fetchable} (get them: tilemix weights fetch {name})")
    if private := listed("owner"):
        steps.append(f"{private} (the owner's: copy them there)")
    return f"model {name!r} lacks {'; '.join(steps)}"


def _check_lock(path: Path, size: int | None, sha256: str | None) -> None:
    found = path.stat().st_size
    if size is not None and found != size:
        raise ModelFileError(f"{path}: {found} bytes, the manifest says {size}")
    if sha256 is None:
        return
    digest = _hash_file(path)
    if digest != sha256:
        raise ModelFileError(f"{path}: sha256 {digest}, the manifest says {sha256}")
