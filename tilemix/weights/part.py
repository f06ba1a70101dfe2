"""A file that is being made: `.NAME.part` beside the place of `NAME`, put there when it is complete.

Whatever ends the process, and at whatever moment, `NAME` is not there or is the complete file: the bytes are
forced to the disk before the name is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tilemix.errors import WeightsError
from tilemix.system.atomic import place


@dataclass(frozen=True, slots=True)
class Part:
    """The open part of `target`. Nobody else writes to it."""

    target: Path
    path: Path
    file: BinaryIO  # read and write, unbuffered

    @property
    def notes(self) -> Path:
        """Where a download keeps what it must know to go on with this part."""
        return self.path.with_name(f"{self.path.name}.json")

    def clear(self) -> None:
        """Begin again: no bytes, and no notes of where the former ones came from."""
        self.notes.unlink(missing_ok=True)
        self.file.seek(0)
        self.file.truncate(0)

    def write(self, data: bytes) -> None:
        """Put `data` behind what was written or read last."""
        view = memoryview(data)
        while view:  # a full disk takes a part of it before it refuses
            view = view[self.file.write(view) :]

    def place(self) -> None:
        """Give the complete part its name; a file that had it is replaced."""
        place(self.path, self.target)
        self.notes.unlink(missing_ok=True)

    def discard(self) -> None:
        """Take the part away."""
        self.notes.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


@contextmanager
def open_part(target: Path) -> Iterator[Part]:
    """Open the part of `target`, with what an earlier try left in it, and keep it from other processes.

    Raises:
        WeightsError: another process is making this file, or the disk refuses: here or in the block.
    """
    path = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = os.path.samestat(os.fstat(descriptor), path.stat())
            except (BlockingIOError, FileNotFoundError):
                is_ours = False
            if not is_ours:  # the second: it was given its name after we had opened it
                raise WeightsError(f"{target}: another process is getting this file just now")
            part = Part(target, path, file)
            try:
                yield part
            finally:
                if os.fstat(descriptor).st_size == 0:
                    part.discard()
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from error


def place_file(path: Path, target: Path) -> None:
    """Move the complete file `path` to `target`, on the same disk, in the same safe order.

    Raises:
        WeightsError: the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place(path, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written: {error.strerror or error}") from error
