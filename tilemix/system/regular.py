"""Files from anywhere, opened without waiting forever."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, BinaryIO

from tilemix.errors import ModelFileError

if TYPE_CHECKING:
    from pathlib import Path


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; anything else is refused: a pipe may wait forever, a device may never end.

    Raises:
        ModelFileError: not a regular file.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ModelFileError("file-not-regular", file=str(path))
    return path.open("rb")
