"""A file in the making: `.NAME.part` beside the place of `NAME`, moved there when it is complete.

Whenever and however the process ends, `NAME` is missing or complete: the bytes are synced before the name is.
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
        """Where a download keeps what it needs to continue this part."""
        return self.path.with_name(f"{self.path.name}.json")

    def clear(self) -> None:
        """Start over: no bytes, and no notes about where the old ones came from."""
        self.notes.unlink(missing_ok=True)
        self.file.seek(0)
        self.file.truncate(0)

    def write(self, data: bytes) -> None:
        """Write `data` at the current position."""
        view = memoryview(data)
        while view:  # a disk that fills up takes a part of it first
            view = view[self.file.write(view) :]

    def place(self) -> None:
        """Give the complete part its name, replacing any file that has it."""
        place(self.path, self.target)
        self.notes.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the part."""
        self.notes.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


@contextmanager
def open_part(target: Path) -> Iterator[Part]:
    """Open the part of `target` with what an earlier try left in it, locked against other processes.

    Raises:
        WeightsError: another process is making this file, or the disk fails, here or in the block.
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
            if not is_ours:  # locked by another process, or renamed by one after we opened it
                raise WeightsError("weights-part-taken", file=str(target))
            part = Part(target, path, file)
            try:
                yield part
            finally:
                if os.fstat(descriptor).st_size == 0:
                    part.discard()
    except OSError as error:
        raise WeightsError(
            "file-unwritable", file=str(target), reason=error.strerror or str(error)
        ) from error


def place_file(path: Path, target: Path) -> None:
    """Move the complete file `path` to `target` on the same disk, as safely as `Part.place`.

    Raises:
        WeightsError: the disk fails.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place(path, target)
    except OSError as error:
        raise WeightsError(
            "file-unwritable", file=str(target), reason=error.strerror or str(error)
        ) from error
