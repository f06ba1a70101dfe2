"""What was found out about files, remembered by path, size and modification time.

It is one SQLite file, `tilemix/files.sqlite3` in $XDG_CACHE_HOME or ~/.cache. It only saves time: where it is missing,
broken or not writable, that costs a warning and another look at the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_ROWS = 20_000
MAX_BYTES = 2**20  # of what is remembered at a time
WAIT = 10.0  # seconds for another process
TABLE = """
create table if not exists seen (
    topic text, path blob, size integer, mtime_ns integer, data blob, primary key (topic, path)
)
"""

Stamp = tuple[int, int]  # size in bytes, modification time in nanoseconds


def memory_path() -> Path:
    """Return the path of the SQLite file."""
    # The XDG specification says to ignore a relative path.
    configured = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    return folder / "tilemix" / "files.sqlite3"


def stamp_of(path: Path) -> Stamp:
    """Return what tells one state of a file from another.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def recall(topic: str, path: Path) -> bytes | None:
    """Return what is remembered of the file `path` as it is now; None where there is nothing.

    Raises:
        OSError: there is no such file.
    """
    stamp = stamp_of(path)
    try:
        if not memory_path().is_file():
            return None
        with _opened() as database:
            found = database.execute(
                "select size, mtime_ns, data from seen where topic = ? and path = ?", (topic, _key(path))
            ).fetchone()
    except (OSError, sqlite3.Error) as error:
        _begin_anew(error)
        return None
    return bytes(found[2]) if found and found[:2] == stamp else None


def remember(topic: str, path: Path, stamp: Stamp, data: bytes, *, replace: bool = True) -> None:
    """Remember `data` about the file `path`, which had this stamp before it was looked at.

    Without `replace`, what is already remembered of the file as it is now stays.
    """
    if len(data) > MAX_BYTES:
        return
    try:
        memory_path().parent.mkdir(parents=True, exist_ok=True)
        with _opened() as database, database:
            key = topic, _key(path)
            database.execute(
                "delete from seen where topic = ? and path = ? and (? or (size, mtime_ns) <> (?, ?))",
                (*key, replace, *stamp),
            )
            database.execute("insert or ignore into seen values (?, ?, ?, ?, ?)", (*key, *stamp, data))
            database.execute("delete from seen where rowid <= (select max(rowid) from seen) - ?", (MAX_ROWS,))
    except (OSError, sqlite3.Error) as error:
        _warn_once(memory_path(), str(error.strerror if isinstance(error, OSError) else error))


@cache
def _warn_once(path: Path, reason: str) -> None:
    """Say it for the first file of a folder, not for each."""
    logger.warning("%s: nothing can be remembered: %s", path, reason)


@contextlib.contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(memory_path(), timeout=WAIT)) as database:
        database.execute("pragma synchronous = off")  # what a crash breaks is begun anew
        database.execute(TABLE)
        yield database


def _key(path: Path) -> bytes:
    return os.fsencode(path.resolve())  # a name need not be UTF-8


def _begin_anew(error: OSError | sqlite3.Error) -> None:
    logger.warning("%s: cannot be read, starting a new one: %s", memory_path(), error)
    # An operational error is a lock or a full disk; the file itself is whole.
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        with contextlib.suppress(OSError):  # in a folder that cannot be written to
            memory_path().unlink()
