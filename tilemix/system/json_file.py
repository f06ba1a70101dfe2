"""Small JSON files that people write, read with their types checked."""

from __future__ import annotations

import codecs
import json
import stat
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.errors import TilemixError

Kind = TypeVar("Kind")
SHOWN = 120  # characters of a path in a message


def read_json(
    path: Path, kind: type[Kind], *, most: int, refuse: type[TilemixError], name: str | None = None
) -> Kind:
    """Read a JSON file of at most `most` bytes as `kind`; messages call it `name`, else by its path.

    Raises:
        TilemixError: of the type `refuse`, if the file cannot be read, is not a regular file (a pipe may wait
            forever), is larger, or see `decode_json`.
    """
    file = name or str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise refuse("file-not-regular", file=file)
        with path.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise refuse("file-unreadable", file=file, reason=str(error.strerror)) from error
    if len(data) > most:
        raise refuse("file-exceeds", file=file, most=most)
    return decode_json(data, kind, file=file, refuse=refuse)


def decode_json(data: bytes, kind: type[Kind], *, file: str, refuse: type[TilemixError]) -> Kind:
    """Decode JSON as `kind`; `file` names it in messages.

    Raises:
        TilemixError: of the type `refuse`, if it begins with a byte order mark, a key stands twice in an object, or it
            holds something else.
    """
    if data.startswith(codecs.BOM_UTF8):
        raise refuse("file-json-mark", file=file)
    try:
        decoded = msgspec.json.decode(data, type=kind)
        key = _find_repeated(json.loads(data, object_pairs_hook=tuple))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise refuse("file-json", file=file, reason=str(error)) from error
    if key is not None:
        raise refuse("file-json-repeated", file=file, key=key[:SHOWN])
    return decoded


def _find_repeated(value: object, place: str = "") -> str | None:
    """Return the path of a key that stands twice in its object; objects are tuples of pairs here, arrays lists."""
    if isinstance(value, tuple):
        seen: set[str] = set()
        for key, child in value:
            if key in seen:
                return f"{place}{key}"
            seen.add(key)
            if (found := _find_repeated(child, f"{place}{key}.")) is not None:
                return found
    elif isinstance(value, list):
        return next(filter(None, (_find_repeated(child, place) for child in value)), None)
    return None
