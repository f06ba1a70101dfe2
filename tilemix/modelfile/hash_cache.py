"""Hashes that were computed once, remembered by path, size and modification time.

The cache is one JSON file, `tilemix/hashes.json` in $XDG_CACHE_HOME or ~/.cache. It only saves time: where it is
missing, broken or not writable, that costs a warning and another pass over the file.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tilemix.modelfile.hashes import Hashes, compute_hashes
from tilemix.system.atomic import write_atomically

logger = logging.getLogger(__name__)

MAX_FILES = 10_000
MAX_BYTES = 16 * 2**20


class Entry(msgspec.Struct, frozen=True):
    """What is remembered of one file."""

    size: int  # bytes
    mtime_ns: int
    hashes: Hashes


class Cache(msgspec.Struct):
    """The cache file."""

    version: int = 1
    files: dict[str, Entry] = msgspec.field(default_factory=dict)  # by absolute path, the newest last


def cache_path() -> Path:
    """Return the path of the cache."""
    # The XDG specification says to ignore a relative path.
    configured = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    return folder / "tilemix" / "hashes.json"


def recall_hashes(path: Path) -> Hashes | None:
    """Return the remembered hashes of the file `path` as it is now; None where there are none."""
    entry = _load().files.get(str(path.resolve()))
    return entry.hashes if entry and (entry.size, entry.mtime_ns) == _stamp(path) else None


def find_hashes(
    path: Path, *, every: bool = False, on_bytes: Callable[[int], object] | None = None
) -> Hashes:
    """Return the hashes of the file `path`, remembered ones where there are any; new ones are remembered.

    Args:
        path: a file.
        every: all of them, see `compute_hashes`.
        on_bytes: called with the number of bytes after each block that is read.

    Raises:
        ModelFileError: see `compute_hashes`.
    """
    known = recall_hashes(path)
    if known and (known.is_complete or not every):
        return known
    stamp = _stamp(path)
    hashes = compute_hashes(path, every=every, on_bytes=on_bytes)
    try:
        with _locked():
            cache = _load()
            name = str(path.resolve())
            cache.files.pop(name, None)
            cache.files[name] = Entry(*stamp, hashes)
            for oldest in list(cache.files)[:-MAX_FILES]:
                del cache.files[oldest]
            write_atomically(cache_path(), msgspec.json.encode(cache))
    except OSError as error:
        logger.warning("%s: the hashes cannot be remembered: %s", cache_path(), error.strerror)
    return hashes


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _load() -> Cache:
    path = cache_path()
    try:
        if path.stat().st_size > MAX_BYTES:
            logger.warning("%s: larger than %d bytes, starting a new one", path, MAX_BYTES)
            return Cache()
        return msgspec.json.decode(path.read_bytes(), type=Cache)
    except FileNotFoundError:
        return Cache()
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("%s: cannot be read, starting a new one: %s", path, error)
        return Cache()


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other processes from writing between our read and our write."""
    path = cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
