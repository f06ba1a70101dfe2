"""The files of a packaged model on this machine: where they stand, which are missing, which are wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import ManifestError, MissingFilesError, ModelFileError
from tilemix.project import ROOT
from tilemix.weights.manifest import Adapter, ManifestFile, ModelManifest, load_manifest, sources_of

PRIVATE_FOLDER = "files"  # weights/files/: fetched and private files, never in git
CHUNK_BYTES = 2**20


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


@dataclass(frozen=True, slots=True)
class FileState:
    """What `verify` found out about one file."""

    path: Path
    fault: str | None  # one line; None: it is what the manifest says
    is_locked: bool  # False: the manifest has no sha256 to hold it against


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
        raise MissingFilesError(describe_missing(name, missing))
    for entry, path in locate_files(manifest, root):
        check_lock(path, entry)
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
        adapters=tuple(find_adapter(adapter, root) for adapter in manifest.adapters),
        template=template,
        hashes=hashes,
    )


def verify(
    name: str, root: Path = ROOT, *, advance: Callable[[int], object] | None = None
) -> list[FileState]:
    """Hash every file of the packaged model `name` again and return what each one is, missing ones included.

    Args:
        name: the packaged model.
        root: the project's folder.
        advance: called with the number of bytes that were read, again and again.

    Raises:
        ManifestError: see load_manifest.
    """
    states = []
    for entry, path in locate_files(load_manifest(name, root), root):
        fault = None
        try:
            check_lock(path, entry, advance=advance)
        except ModelFileError as error:
            fault = str(error)
        states.append(FileState(path, fault, entry.sha256 is not None))
    return states


def locate_files(manifest: ModelManifest, root: Path = ROOT) -> Iterator[tuple[ManifestFile | Adapter, Path]]:
    """Yield every file of a model with its path: where it is, or where it would be put."""
    for source in sources_of(manifest):
        for file in source.files:
            yield file, root / "weights" / source.folder / file.path
    for adapter in manifest.adapters:
        yield adapter, find_adapter(adapter, root)


def find_adapter(adapter: Adapter, root: Path = ROOT) -> Path:
    """Return the path of an adapter: in weights/files/ or weights/, the first where it is missing from both."""
    places = adapter_places(adapter, root)
    return next((path for path in places if path.is_file()), places[0])


def adapter_places(adapter: Adapter, root: Path = ROOT) -> list[Path]:
    """Return the paths where an adapter is looked for, in this order."""
    return [root / "weights" / PRIVATE_FOLDER / adapter.file, root / "weights" / adapter.file]


def find_missing(manifest: ModelManifest, root: Path = ROOT) -> list[tuple[str, list[Path]]]:
    """Return the files that are not there: who brings each ("fetch" or "owner"), and where it was looked for."""
    missing: list[tuple[str, list[Path]]] = []
    for source in sources_of(manifest):
        folder = root / "weights" / source.folder
        bringer = "fetch" if source.repository or source.url else "owner"
        missing += [(bringer, [folder / f.path]) for f in source.files if not (folder / f.path).is_file()]
    for adapter in manifest.adapters:
        if not find_adapter(adapter, root).is_file():
            places = adapter_places(adapter, root)
            missing.append(("fetch", places[:1]) if adapter.url else ("owner", places))
    return missing


def describe_missing(name: str, missing: list[tuple[str, list[Path]]]) -> str:
    """Say in one line which files of the model `name` are missing and what brings them."""

    def listed(bringer: str) -> str:
        return ", ".join(" or ".join(map(str, places)) for who, places in missing if who == bringer)

    steps = []
    if fetchable := listed("fetch"):
        steps.append(f"{fetchable} (get them: tilemix weights fetch {name})")
    if private := listed("owner"):
        steps.append(f"{private} (the owner's: copy them there)")
    return f"model {name!r} lacks {'; '.join(steps)}"


def check_lock(
    path: Path,
    entry: ManifestFile | Adapter,
    *,
    shown: Path | None = None,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Compare the file `path` with the size and the sha256 that its manifest entry has; None in the entry passes.

    Args:
        path: the file.
        entry: what the manifest says.
        shown: the path for the message, where the file is not in its place yet.
        advance: called with the number of bytes that were read, again and again.

    Raises:
        ModelFileError: another size or sha256, or the file cannot be read.
    """
    what = shown or path
    try:
        size = path.stat().st_size
        if entry.size is not None and size != entry.size:
            raise ModelFileError(f"{what}: {size} bytes, the manifest says {entry.size}")
        if entry.sha256 is None:
            return
        digest = hash_file(path, advance)
    except FileNotFoundError:
        raise ModelFileError(f"{what}: missing") from None
    except OSError as error:
        raise ModelFileError(f"{what}: cannot be read: {error.strerror}") from error
    if digest != entry.sha256:
        raise ModelFileError(f"{what}: sha256 {digest}, the manifest says {entry.sha256}")


def hash_file(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """Return the sha256 of a file, 64 lower-case hex digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()
