"""The files that verbs write: looked at before the work, and then written whole or not at all."""

from __future__ import annotations

import contextlib
from typing import IO, TYPE_CHECKING

from tilemix.errors import LIST_SEPARATOR, TilemixError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


def check_output(path: Path, suffixes: Collection[str] = (), *, source: Path | None = None) -> None:
    """Refuse a file that cannot be written, before anything is done for it.

    Args:
        path: the file.
        suffixes: those that its name may have, in lower case; empty: any.
        source: the file that is read, and not to be written over.

    Raises:
        TilemixError: it is a folder, has another suffix, is `source`, or its folder is not there or not writable.
    """
    file = str(path)
    if path.is_dir():
        raise TilemixError("file-is-folder", file=file)
    if suffixes and path.suffix.lower() not in suffixes:
        known = LIST_SEPARATOR.join(suffixes)
        raise TilemixError("file-unknown-suffix", file=path.name, known=known)
    if not path.parent.is_dir():
        raise TilemixError("file-no-folder", file=file, folder=str(path.parent))
    if source is not None and path.exists() and path.samefile(source):
        raise TilemixError("file-over-itself", file=file)
    import tempfile  # 10 ms, which verbs that write nothing do not need

    with _told(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears when all is written, in the place of an earlier one.

    Raises:
        TilemixError: it cannot be written.
    """
    from tilemix.system.atomic import open_atomically

    with _told(path), open_atomically(path) as file:
        yield file


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise TilemixError("file-unwritable", file=str(path), reason=reason) from error
