"""The files of a packaged model on this machine: where they are, which are missing, which are wrong.

The readers of model files are imported when a file is checked: the text stages need the manifest alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import LIST_SEPARATOR, ManifestError, MissingFilesError, ModelFileError
from tilemix.system.project import ROOT
from tilemix.weights.manifest import Adapter, ManifestFile, ModelManifest, load_manifest, sources_of

PRIVATE_FOLDER = "files"  # weights/files/: fetched and private files, never in git
CHUNK_BYTES = 2**20
MAX_LISTED = 5  # missing files that a message names
# Linux truncates longer requests to the device's queue/read_ahead_kb and max_sectors_kb.
READ_AHEAD_BYTES = 128 * 2**10
HASHED_AT_A_TIME = min(4, len(os.sched_getaffinity(0)))  # files; each takes one core


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A packaged model whose files are all here; `check_files` compares them with the manifest."""

    name: str
    manifest: ModelManifest
    files: tuple[tuple[ManifestFile | Adapter, Path], ...]  # all of them, with their paths
    base: Path  # folder in the diffusers layout
    vae: Path | None  # folder; None: the base's own
    adapters: tuple[Path, ...]  # parallel to manifest.adapters
    template: Path
    calibration: Path  # the file, there or not
    hashes: dict[str, str | None]  # file path in the manifest -> sha256; None where not locked

    def find_tensors(self, component: str) -> Path:
        """Return the one safetensors file in a component's folder of the base.

        Raises:
            ManifestError: the manifest lists none there, or several.
        """
        paths = self.list_tensors(component)
        if len(paths) != 1:
            file = f"{self.name}.model.json"
            raise ManifestError(
                "manifest-wrong-tensor-files", file=file, count=len(paths), component=component
            )
        return paths[0]

    def list_tensors(self, component: str) -> tuple[Path, ...]:
        """Return the safetensors files in a component's folder of the base: a large network comes in several."""
        return tuple(
            self.base / file.path
            for file in self.manifest.base.files
            if file.path.startswith(f"{component}/") and file.path.endswith(".safetensors")
        )


@dataclass(frozen=True, slots=True)
class FileState:
    """What `verify` found about one file."""

    path: Path
    fault: str | None  # one line; None: it matches the manifest
    is_locked: bool  # False: the manifest has no sha256 to compare with


def find_model(name: str, root: Path = ROOT) -> LocalModel:
    """Return the packaged model `name` with the paths of its files, all checked for size and hash.

    Raises:
        ManifestError, MissingFilesError: see locate_model.
        ModelFileError: see check_files.
    """
    model = locate_model(name, root)
    check_files(model)
    return model


def locate_model(name: str, root: Path = ROOT) -> LocalModel:
    """Return the packaged model `name` with the paths of its files, whose content is not checked.

    Raises:
        ManifestError: see load_manifest.
        MissingFilesError: files are missing; the message says which, where they belong, and how to get them.
    """
    manifest = load_manifest(name, root)
    missing = find_missing(manifest, root)
    if missing:
        raise refuse_missing(name, missing)
    template = root / "prompt_templates" / f"{manifest.prompt_template}.json"
    if not template.is_file():
        raise ManifestError("manifest-no-template", file=f"{name}.model.json", template=str(template))
    return LocalModel(
        name=name,
        manifest=manifest,
        files=tuple(locate_files(manifest, root)),
        base=root / "weights" / manifest.base.folder,
        vae=root / "weights" / manifest.vae.folder if manifest.vae else None,
        adapters=tuple(find_adapter(adapter, root) for adapter in manifest.adapters),
        template=template,
        calibration=locate_calibration(name, root),
        hashes=list_hashes(manifest),
    )


def locate_calibration(name: str, root: Path = ROOT) -> Path:
    """Return where the calibration of the model `name` belongs; the file may be missing."""
    return root / "weights" / f"{name}.calibration.json"


def list_hashes(manifest: ModelManifest) -> dict[str, str | None]:
    """Return the sha256 of each file by its path in the manifest; None where not locked."""
    hashes: dict[str, str | None] = {file.path: file.sha256 for file in manifest.base.files}
    if manifest.vae is not None:
        hashes |= {f"vae/{file.path}": file.sha256 for file in manifest.vae.files}
    for adapter in manifest.adapters:
        hashes[adapter.file] = adapter.sha256
        hashes |= {str(Path(adapter.file).with_name(file.path)): file.sha256 for file in adapter.beside}
    return hashes


def check_files(model: LocalModel) -> None:
    """Check every file of a model for size and hash; afterwards they are in the page cache.

    Raises:
        ModelFileError: a file has another size or sha256 than the manifest says, or a locked adapter depends on a
            file that is not in the manifest.
    """
    for _, path in model.files:
        read_ahead(path)
    with ThreadPoolExecutor(HASHED_AT_A_TIME) as workers:
        for _ in workers.map(lambda file: check_lock(file[1], file[0]), model.files):
            pass  # raises the first fault in the manifest's order
    for entry, path in model.files:
        if isinstance(entry, Adapter):
            _check_companions(model.name, entry, path)


def read_ahead(path: Path) -> None:
    """Ask the system to read a file into its page cache, without waiting for it.

    Source: posix_fadvise(2), POSIX_FADV_WILLNEED.
    """
    # Whoever reads the file reports that it cannot be opened.
    with suppress(OSError), path.open("rb", buffering=0) as file:
        for offset in range(0, os.fstat(file.fileno()).st_size, READ_AHEAD_BYTES):
            os.posix_fadvise(file.fileno(), offset, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def verify(
    name: str, root: Path = ROOT, *, advance: Callable[[int], object] | None = None
) -> list[FileState]:
    """Hash every file of the packaged model `name` again and return the state of each, missing ones included.

    Args:
        name: the packaged model.
        root: the project's folder.
        advance: called with the number of bytes after each read, from several threads.

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
    """Yield every file of a model with its path: where it is, or where it belongs."""
    for source in sources_of(manifest):
        for file in source.files:
            yield file, root / "weights" / source.folder / file.path
    for adapter in manifest.adapters:
        path = find_adapter(adapter, root)
        yield adapter, path
        for file in adapter.beside:
            yield file, path.with_name(file.path)


def _check_companions(name: str, adapter: Adapter, path: Path) -> None:
    """Refuse a companion of a locked adapter that the manifest does not list."""
    from tilemix.modelfile.companions import find_companions

    listed = {file.path for file in adapter.beside}
    for companion in find_companions(path, is_lora=adapter.kind == "lora", named=bool(adapter.tokens)):
        if adapter.sha256 is not None and companion not in listed:
            raise ModelFileError(
                "weights-companion", file=str(path.with_name(companion)), adapter=path.name, model=name
            )


def find_adapter(adapter: Adapter, root: Path = ROOT) -> Path:
    """Return the path of an adapter, in weights/files/ or weights/; the former if it is in neither."""
    places = adapter_places(adapter, root)
    return next((path for path in places if path.is_file()), places[0])


def adapter_places(adapter: Adapter, root: Path = ROOT) -> list[Path]:
    """Return the paths where an adapter may be, the preferred one first."""
    return [root / "weights" / PRIVATE_FOLDER / adapter.file, root / "weights" / adapter.file]


def find_missing(manifest: ModelManifest, root: Path = ROOT) -> list[tuple[str, list[Path]]]:
    """Return the missing files: who brings each ("fetch" or "owner"), and where it may be."""
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


def refuse_missing(name: str, missing: list[tuple[str, list[Path]]]) -> MissingFilesError:
    """Return the error that names the missing files of the model `name` and says how to get them."""
    values: dict[str, str | int] = {"model": name}
    for bringer in ("fetch", "owner"):
        found = [" | ".join(map(str, places)) for who, places in missing if who == bringer]
        if found:
            values[bringer] = LIST_SEPARATOR.join(found[:MAX_LISTED])
            values[f"{bringer}_count"] = len(found)
    code = "weights-missing-fetch-owner"
    if "owner" not in values:
        code = "weights-missing-fetch"
    elif "fetch" not in values:
        code = "weights-missing-owner"
    return MissingFilesError(code, field=None, **values)


def check_lock(
    path: Path,
    entry: ManifestFile | Adapter,
    *,
    shown: Path | None = None,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Compare the file `path` with the size and sha256 in its manifest entry; a None there accepts anything.

    Args:
        path: the file.
        entry: what the manifest says.
        shown: the path for messages, if the file is not in its place yet.
        advance: called with the number of bytes after each read.

    Raises:
        ModelFileError: another size or sha256, or the file cannot be read.
    """
    what = str(shown or path)
    try:
        size = path.stat().st_size
        if entry.size is not None and size != entry.size:
            raise ModelFileError("weights-size", file=what, found=size, expected=entry.size)
        if entry.sha256 is None:
            return
    except FileNotFoundError:
        raise ModelFileError("file-missing", file=what) from None
    except OSError as error:
        raise ModelFileError("file-unreadable", file=what, reason=str(error.strerror)) from error
    digest = hash_file(path, advance)
    if digest != entry.sha256:
        raise ModelFileError("weights-hash", file=what, found=digest, expected=entry.sha256)


def hash_file(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """Return the sha256 of a file, 64 lower-case hex digits.

    Raises:
        ModelFileError: the file cannot be read, or it changed meanwhile.
    """
    from tilemix.modelfile.hashes import compute_hashes

    digest = compute_hashes(path, on_bytes=advance).sha256
    assert digest is not None, "it is always computed"
    return digest
