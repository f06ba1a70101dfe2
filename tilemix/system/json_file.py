"""Small JSON files that people write, read with their types checked."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.errors import TilemixError

Kind = TypeVar("Kind")


def read_json(path: Path, kind: type[Kind], *, most: int, refuse: type[TilemixError]) -> Kind:
    """Read a JSON file of at most `most` bytes as `kind`.

    Raises:
        TilemixError: of the type `refuse`, if the file cannot be read, is not a regular file (a pipe may wait
            forever), is larger, or holds something else.
    """
    file = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refuse("file-not-regular", file=file)
        with path.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise refuse("file-unreadable", file=file, reason=str(error.strerror)) from error
    if len(data) > most:
        raise refuse("file-exceeds", file=file, most=most)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse("file-json", file=file, reason=str(error)) from error
