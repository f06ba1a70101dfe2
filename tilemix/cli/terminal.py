"""What a verb prints: text and JSON that fit any terminal.

Names from outside may contain line breaks, control sequences, and bytes that are not UTF-8, which Python reads as
lone surrogates.
"""

from __future__ import annotations

import errno
import os
import sys

from tilemix.errors import TilemixError


def make_printable(text: str) -> str:
    """Return `text` on one line, with every unprintable character replaced by a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def write(text: str) -> None:
    """Write `text` to standard output at once, with `?` for each character that its encoding lacks.

    Raises:
        BrokenPipeError: the reader is gone.
        TilemixError: standard output is closed, or its disk is full.
    """
    if sys.stdout is None:  # as in `tilemix ... >&-`
        raise TilemixError("stdout-unwritable", reason=os.strerror(errno.EBADF))
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # Python flushes stdout at exit and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise TilemixError("stdout-unwritable", reason=str(error.strerror)) from error


def write_json(value: object, *, indent: int = 0) -> None:
    """Write a value as one line of JSON, or indented; lone surrogates become `?`.

    Raises:
        BrokenPipeError, TilemixError: see `write`.
    """
    import msgspec

    data = msgspec.json.encode(_encodable(msgspec.to_builtins(value, str_keys=True)))
    write((msgspec.json.format(data, indent=indent) if indent else data).decode() + "\n")


def _encodable(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(entry) for entry in value]
    return value
