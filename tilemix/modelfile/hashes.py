"""The hashes by which model files are known, computed in one pass over the file.

| name | what it is | spelling |
|---|---|---|
| SHA256 | of the whole file | 64 hex, lower case |
| AutoV1 | the first 8 digits of the SHA256 of the 64 KiB at 1 MiB | upper case, as Civitai prints it |
| AutoV2 | the first 10 of the SHA256 | upper |
| AutoV3 | the first 12 of the SHA256 of what follows the safetensors header | upper |
| CRC32 | of the whole file, its four bytes in little-endian order, as Civitai prints it | upper |
| BLAKE3 | of the whole file, 256 bits | 64 hex, lower |

Source: Civitai's model scanner and the web UIs' `hashes.py`, described from their behavior.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec

from tilemix.errors import ModelFileError

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
BLOCK = MIB  # bytes; with a quarter of that, passing the blocks around took a tenth of the time
BUFFERS = 4  # one is being filled while the others are hashed or wait
AUTOV1_WINDOW = (0x100000, 0x110000)
MAX_AUTOV3_HEADER = 16 * MIB  # a longer one counts as content
FIRST_8_MIB = 8 * MIB
NOTHING = hashlib.sha256().hexdigest()  # of no bytes: e3b0c442..., which identifies no file


class Hashes(msgspec.Struct, frozen=True):
    """A file's hashes. None: not asked for, or the file is too short for it."""

    sha256: str | None = None
    autov1: str | None = None
    autov2: str | None = None
    autov3: str | None = None
    crc32: str | None = None
    blake3: str | None = None
    # What some tools took for SHA256 and AutoV2; kept only to recognize it in sidecars.
    sha256_first_8mib: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all hashes were computed, not just the SHA256."""
        return self.blake3 is not None


class Digest(Protocol):
    """What hashlib, blake3 and the three classes below have in common."""

    def update(self, data: memoryview, /) -> object:
        """Take the next bytes of the file."""


class _Window:
    """The SHA-256 of a part of the file."""

    def __init__(self, begin: int, end: int | None = None) -> None:
        self._digest = hashlib.sha256()
        self._begin, self._end, self._position = begin, end, 0
        self.taken = 0  # bytes

    def update(self, data: memoryview) -> None:
        start = max(self._begin - self._position, 0)
        stop = len(data) if self._end is None else max(self._end - self._position, 0)
        part = data[start:stop]
        self._position += len(data)
        self.taken += len(part)
        self._digest.update(part)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _Whole:
    """The SHA-256 of the whole file and, from the same pass, of its first bytes."""

    def __init__(self, start: int) -> None:
        self._digest, self._start = hashlib.sha256(), start
        self._at_start: str | None = None
        self._position = 0

    def update(self, data: memoryview) -> None:
        if self._at_start is None and self._position + len(data) >= self._start:
            rest = self._start - self._position
            self._digest.update(data[:rest])
            self._at_start = self._digest.hexdigest()
            data, self._position = data[rest:], self._start
        self._position += len(data)
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def start_hexdigest(self) -> str:
        """Return the SHA-256 of the first bytes; of the whole file where it is shorter."""
        return self._at_start or self.hexdigest()


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return self.value.to_bytes(4, "little").hex().upper()


def compute_autov1(path: Path) -> str | None:
    """Return a file's AutoV1 alone, which reads 64 KiB of it; None where the file is too short.

    Raises:
        ModelFileError: the file cannot be read.
    """
    begin, end = AUTOV1_WINDOW
    try:
        with path.open("rb") as file:
            file.seek(begin)
            window = file.read(end - begin)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    return hashlib.sha256(window).hexdigest()[:8].upper() if len(window) == end - begin else None


def compute_hashes(
    path: Path, *, every: bool = False, on_bytes: Callable[[int], object] | None = None
) -> Hashes:
    """Hash the file `path`: SHA256, AutoV1 and AutoV2, or with `every` all of them, in one pass.

    The next blocks are read while the last ones are hashed; the slow algorithms have threads of their own.

    Args:
        path: any file.
        every: AutoV3, CRC32 and BLAKE3 too.
        on_bytes: called with the number of bytes after each block.

    Raises:
        ModelFileError: the file cannot be read, or it changed meanwhile.
    """
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            # Makes the kernel read further ahead.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            hashes = _hash_open_file(file, before.st_size, every=every, on_bytes=on_bytes)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ModelFileError("file-changed", file=str(path))
    return hashes


def _hash_open_file(
    file: BinaryIO, size: int, *, every: bool, on_bytes: Callable[[int], object] | None
) -> Hashes:
    whole, window = _Whole(FIRST_8_MIB), _Window(*AUTOV1_WINDOW)
    groups: list[list[Digest]] = [[whole, window]]  # one thread each
    if every:
        from blake3 import blake3

        length = int.from_bytes(file.read(8).ljust(8, b"\xff"), "little")
        file.seek(0)
        payload = _Window(8 + (length if length < MAX_AUTOV3_HEADER else 0))
        crc32, tree = _Crc32(), blake3()
        groups += [[payload], [crc32, tree]]
    total = _feed(file, groups, on_bytes)
    if total != size:
        raise ModelFileError("file-changed", file=str(file.name))
    sha256 = whole.hexdigest()
    is_long = window.taken == AUTOV1_WINDOW[1] - AUTOV1_WINDOW[0]
    return Hashes(
        sha256=sha256,
        autov1=window.hexdigest()[:8].upper() if is_long else None,
        autov2=sha256[:10].upper(),
        autov3=payload.hexdigest()[:12].upper() if every and payload.taken else None,
        crc32=crc32.hexdigest() if every else None,
        blake3=tree.hexdigest() if every else None,
        sha256_first_8mib=whole.start_hexdigest(),
    )


def _feed(
    file: BinaryIO, groups: Sequence[Sequence[Digest]], on_bytes: Callable[[int], object] | None
) -> int:
    """Read a file to its end, give every block to every group, and return the number of bytes.

    Each group has its own thread. A buffer is filled again when all groups are done with it, so reading runs ahead
    by the number of the other buffers.
    """
    workers = [_Worker(group) for group in groups]
    buffers = [memoryview(bytearray(BLOCK)) for _ in range(BUFFERS)]
    total = turn = 0
    try:
        while True:
            if turn >= BUFFERS:
                for worker in workers:
                    worker.wait_for_block()
            buffer = buffers[turn % BUFFERS]
            count = file.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                break
            for worker in workers:
                worker.give(buffer[:count])
            turn += 1
            total += count
            if on_bytes:
                on_bytes(count)
    finally:
        for worker in workers:
            worker.finish()
    for worker in workers:
        worker.check()
    return total


class _Worker:
    """A thread that hashes the blocks it is given, in order."""

    def __init__(self, group: Sequence[Digest]) -> None:
        self._group = group
        self._blocks: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="hash")
        self._thread.start()

    def give(self, block: memoryview) -> None:
        """Hash a block, whose buffer must stay as it is until `wait_for_block` returns for it."""
        self._blocks.put(block)

    def wait_for_block(self) -> None:
        """Wait for the oldest block that was not waited for yet; raise what went wrong."""
        self._done.acquire()
        self.check()

    def finish(self) -> None:
        """Wait for all blocks and end the thread."""
        self._blocks.put(None)
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._error:
            raise self._error

    def _work(self) -> None:
        while (block := self._blocks.get()) is not None:
            try:
                for digest in self._group:
                    digest.update(block)
            except Exception as error:  # noqa: BLE001 - check() raises it in the reading thread
                self._error = error
            self._done.release()
