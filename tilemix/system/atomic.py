"""A file written so that a reader finds the old one or the new one, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path` and give it the name.

    Raises:
        OSError: the folder is missing or full, or cannot be written to; `path` stays as it was.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Give a temporary file beside `path`, to be written; at the end of the block it is synced and gets the name.

    With an exception in the block `path` stays as it was.

    Raises:
        OSError: the folder is missing or full, or cannot be written to; `path` stays as it was.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short, for a name may be as long as can be
    try:
        with temporary.open("xb") as file:
            yield file
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def place(complete: Path, path: Path) -> None:
    """Give the complete file `complete`, on the same disk, the name `path`: its bytes are on the disk before the name.

    Raises:
        OSError: the disk refuses.
    """
    with complete.open("rb") as file:
        os.fsync(file.fileno())
    complete.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk now
    finally:
        os.close(folder)
