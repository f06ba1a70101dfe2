"""The files of a packaged model on this machine: where they stand, which are missing, which are wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import ManifestError, MissingFilesError, ModelFileError
from tilemix.modelfile.companions import find_companions
from tilemix.modelfile.hashes import compute_hashes
from tilemix.system.project import ROOT
from tilemix.weights.manifest import Adapter, ManifestFile, ModelManifest, load_manifest, sources_of

PRIVATE_FOLDER = "files"  # weights/files/: fetched and private files, never in git
CHUNK_BYTES = 2**20
MAX_LISTED = 5  # missing files that a message names
# Linux cuts a longer request short, at what the device's queue/read_ahead_kb and max_sectors_kb allow.
READ_AHEAD_BYTES = 128 * 2**10
HASHED_AT_A_TIME = min(4, len(os.sched_getaffinity(0)))  # files; hashing one takes one core


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A packaged model whose files are all here; that they are what the manifest says, `check_files` finds out."""

    name: str
    manifest: ModelManifest
    files: tuple[tuple[ManifestFile | Adapter, Path], ...]  # every one, with its path
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
        ManifestError, MissingFilesError: see locate_model.
        ModelFileError: see check_files.
    """
    model = locate_model(name, root)
    check_files(model)
    return model


def locate_model(name: str, root: Path = ROOT) -> LocalModel:
    """Return the packaged model `name` with the paths of its files, whatever may stand in them.

    Raises:
        ManifestError: see load_manifest.
        MissingFilesError: files are missing; the message says which, where they were looked for, and what to do.
    """
    manifest = load_manifest(name, root)
    missing = find_missing(manifest, root)
    if missing:
        raise MissingFilesError(describe_missing(name, missing))
    template = root / "prompt_templates" / f"{manifest.prompt_template}.json"
    if not template.is_file():
        raise ManifestError(f"{name}.model.json: no prompt template {template}")
    hashes: dict[str, str | None] = {file.path: file.sha256 for file in manifest.base.files}
    if manifest.vae is not None:
        hashes |= {f"vae/{file.path}": file.sha256 for file in manifest.vae.files}
    for adapter in manifest.adapters:
        hashes[adapter.file] = adapter.sha256
        hashes |= {str(Path(adapter.file).with_name(file.path)): file.sha256 for file in adapter.beside}
    return LocalModel(
        name=name,
        manifest=manifest,
        files=tuple(locate_files(manifest, root)),
        base=root / "weights" / manifest.base.folder,
        vae=root / "weights" / manifest.vae.folder if manifest.vae else None,
        adapters=tuple(find_adapter(adapter, root) for adapter in manifest.adapters),
        template=template,
        hashes=hashes,
    )


def check_files(model: LocalModel) -> None:
    """Check every file of a model for size and hash; afterwards they are in the page cache, or on their way.

    Raises:
        ModelFileError: a file has another size or sha256 than the manifest says, or a locked adapter is read
            with one that is not in the manifest.
    """
    for _, path in model.files:
        read_ahead(path)
    with ThreadPoolExecutor(HASHED_AT_A_TIME) as workers:
        for _ in workers.map(lambda file: check_lock(file[1], file[0]), model.files):
            pass  # the first fault in the manifest's order is raised here
    for entry, path in model.files:
        if isinstance(entry, Adapter):
            _check_companions(model.name, entry, path)


def read_ahead(path: Path) -> None:
    """Ask the system to read a file into its page cache, and do not wait for it.

    Source: posix_fadvise(2), POSIX_FADV_WILLNEED.
    """
    # What cannot be opened is for those to report who read it.
    with suppress(OSError), path.open("rb", buffering=0) as file:
        for offset in range(0, os.fstat(file.fileno()).st_size, READ_AHEAD_BYTES):
            os.posix_fadvise(file.fileno(), offset, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def verify(
    name: str, root: Path = ROOT, *, advance: Callable[[int], object] | None = None
) -> list[FileState]:
    """Hash every file of the packaged model `name` again and return what each one is, missing ones included.

    Args:
        name: the packaged model.
        root: the project's folder.
        advance: called with the number of bytes that were read, again and again, from several threads.

    Raises:
        ManifestError: see load_manifest.
    """

    def check(file: tuple[ManifestFile | Adapter, Path]) -> FileState:
        entry, path = file
        fault = None
        try:
            check_lock(path, entry, advance=advance)
        except ModelFileError as error:
            fault = str(error)
        return FileState(path, fault, entry.sha256 is not None)

    with ThreadPoolExecutor(HASHED_AT_A_TIME) as workers:
        return list(workers.map(check, locate_files(load_manifest(name, root), root)))


def locate_files(manifest: ModelManifest, root: Path = ROOT) -> Iterator[tuple[ManifestFile | Adapter, Path]]:
    """Yield every file of a model with its path: where it is, or where it would be put."""
    for source in sources_of(manifest):
        for file in source.files:
            yield file, root / "weights" / source.folder / file.path
    for adapter in manifest.adapters:
        path = find_adapter(adapter, root)
        yield adapter, path
        for file in adapter.beside:
            yield file, path.with_name(file.path)


def _check_companions(name: str, adapter: Adapter, path: Path) -> None:
    """Refuse a file that a locked adapter would be read with although nothing is known of it."""
    listed = {file.path for file in adapter.beside}
    for companion in find_companions(path, adapter.kind, named=bool(adapter.tokens)):
        if adapter.sha256 is not None and companion not in listed:
            raise ModelFileError(
                f"{path.with_name(companion)}: not in the manifest, but {path.name} is read with it; "
                f"record it: tilemix weights lock {name}"
            )


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
        path = find_adapter(adapter, root)
        if not path.is_file():
            places = adapter_places(adapter, root)
            missing.append(("fetch", places[:1]) if adapter.url else ("owner", places))
        beside = [path.with_name(file.path) for file in adapter.beside]
        bringer = "fetch" if adapter.url else "owner"
        missing += [(bringer, [place]) for place in beside if not place.is_file()]
    return missing


def describe_missing(name: str, missing: list[tuple[str, list[Path]]]) -> str:
    """Say in one line which files of the model `name` are missing and what brings them."""

    def listed(bringer: str) -> str:
        found = [" or ".join(map(str, places)) for who, places in missing if who == bringer]
        more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        return ", ".join(found[:MAX_LISTED]) + more

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
    except FileNotFoundError:
        raise ModelFileError(f"{what}: missing") from None
    except OSError as error:
        raise ModelFileError(f"{what}: cannot be read: {error.strerror}") from error
    digest = hash_file(path, advance)
    if digest != entry.sha256:
        raise ModelFileError(f"{what}: sha256 {digest}, the manifest says {entry.sha256}")


def hash_file(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """Return the sha256 of a file, 64 lower-case hex digits.

    Raises:
        ModelFileError: the file cannot be read, or it was changed meanwhile.
    """
    digest = compute_hashes(path, on_bytes=advance).sha256
    assert digest is not None, "it is always computed"
    return digest
