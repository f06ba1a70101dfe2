"""Writes files atomically: a reader finds the old file or the new one, whatever happens; one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path` and rename it.

    Raises:
        OSError: the folder is missing or full, or cannot be written to; `path` is unchanged.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; at the end of the block it is synced and renamed.

    After an exception in the block, `path` is unchanged.

    Raises:
        OSError: the folder is missing or full, or cannot be written to; `path` is unchanged.
    """
    temporary = path.with_name(
        f".{secrets.token_hex(8)}.tmp"
    )  # short, because `path` may have the longest name allowed
    try:
        with temporary.open("xb") as file:
            yield file
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Keep every other process out of its own block with the same lock file, which is there meanwhile.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        with lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                is_current = False
            if not is_current:
                continue  # whoever had it has just deleted it
            try:
                yield
            finally:
                lock.unlink()
            return


def place(complete: Path, path: Path) -> None:
    """Sync the complete file `complete` and rename it to `path` on the same disk.

    Raises:
        OSError: the disk refuses.
    """
    with complete.open("rb") as file:
        os.fsync(file.fileno())
    complete.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name is on the disk, too
    finally:
        os.close(folder)
