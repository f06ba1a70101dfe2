"""The served model's files, described by `tilemix inspect`.

The command line runs as a separate process, so that the studio imports nothing that reads models. Its answers are
cached in a small JSON file by path, size and modification time.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import Message
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT
from tilemix.weights import load_manifest
from tilemix.weights.calibration import find_calibration, resolve_lora_scales
from tilemix.weights.local import find_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

INSPECT_SECONDS = 600  # the first time, a large file is hashed


class Answer(msgspec.Struct, frozen=True):
    """What the command line said about one file or folder."""

    stamp: str  # sizes and modification times at that moment
    inspected: dict[str, Any] | None
    error: dict[str, Any] | None  # as `Message.describe` gives it; None if the file was not refused


class ModelEntry(msgspec.Struct, frozen=True):
    """One entry of the page: a file or folder of the manifest."""

    name: str  # as in the manifest
    role: str  # base, vae, lora, embedding
    scale: float | None  # a LoRA's strength where a request leaves it out
    files: tuple[tuple[str, int | None, str | None], ...]  # path, bytes, locked sha256
    is_here: bool
    inspected: dict[str, Any] | None
    error: dict[str, Any] | None

    @property
    def is_locked(self) -> bool:
        """Whether the manifest locks every file by its hash."""
        return all(sha256 is not None for _, _, sha256 in self.files)


class ModelFiles:
    """Inspects the files of one packaged model; thread-safe."""

    def __init__(
        self,
        model: str,
        cache: Path,
        root: Path = ROOT,
        *,
        inspect: Callable[[Path, str], Answer] | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._root = root
        self._inspect = inspect or ask_command_line
        self._turn = threading.Lock()

    def list_entries(self) -> list[ModelEntry]:
        """Return the manifest's base, VAE and adapters, in this order."""
        manifest = load_manifest(self._model, self._root)
        calibration = find_calibration(self._model, manifest, self._root)
        scales = resolve_lora_scales(manifest, calibration)
        wanted: list[tuple[str, str, float | None, Path, tuple[tuple[str, int | None, str | None], ...]]] = [
            (
                source.folder,
                role,
                None,
                self._root / "weights" / source.folder,
                tuple((file.path, file.size, file.sha256) for file in source.files),
            )
            for role, source in (("base", manifest.base), ("vae", manifest.vae))
            if source is not None
        ]
        wanted += [
            (
                adapter.file,
                adapter.kind,
                scales.get(adapter.file),
                find_adapter(adapter, self._root),
                ((adapter.file, adapter.size, adapter.sha256),),
            )
            for adapter in manifest.adapters
        ]
        with self._turn:
            known = self._load()
            answers = {}
            for _, _, _, path, files in wanted:
                stamp = _stamp(path, [name for name, _, _ in files])
                if stamp is not None:
                    before = known.get(str(path))
                    answers[str(path)] = (
                        before if before and before.stamp == stamp else self._inspect(path, stamp)
                    )
            if answers != known:
                with contextlib.suppress(OSError):  # it is only a cache, and the disk may be full
                    write_atomically(self._cache, msgspec.json.encode(answers))
        return [
            ModelEntry(
                name,
                role,
                scale,
                files,
                str(path) in answers,
                answers[str(path)].inspected if str(path) in answers else None,
                answers[str(path)].error if str(path) in answers else None,
            )
            for name, role, scale, path, files in wanted
        ]

    def _load(self) -> dict[str, Answer]:
        try:
            return msgspec.json.decode(self._cache.read_bytes(), type=dict[str, Answer])
        except (OSError, msgspec.DecodeError):
            return {}  # it is only a cache


def _stamp(path: Path, names: list[str]) -> str | None:
    """Return sizes and times of a file, or of a folder's files; None if one is missing."""
    paths = [path / name for name in names] if path.is_dir() else [path]
    if not all(part.is_file() for part in paths):
        return None
    states = [part.stat() for part in paths]
    return " ".join(f"{state.st_size}:{state.st_mtime_ns}" for state in states)


def ask_command_line(path: Path, stamp: str) -> Answer:
    """Return what `tilemix inspect` says about a file or folder, together with its `stamp`."""
    command = [sys.executable, "-m", "tilemix", "inspect", "--json", str(path)]
    try:
        done = subprocess.run(  # noqa: S603 (no shell, and the path comes from the manifest)
            command, cwd=ROOT, capture_output=True, text=True, timeout=INSPECT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        error = Message("studio-inspection-late", {"seconds": INSPECT_SECONDS})
        return Answer(stamp, None, error.describe())
    try:
        said = msgspec.json.decode(done.stdout, type=dict[str, Any])
    except msgspec.DecodeError:  # it crashed or was killed
        logger.exception("inspect %s: %s", path, done.stderr.strip())
        error = Message("studio-inspection-failed", {"status": done.returncode})
        return Answer(stamp, None, error.describe())
    return Answer(stamp, None, said["error"]) if "error" in said else Answer(stamp, said, None)
