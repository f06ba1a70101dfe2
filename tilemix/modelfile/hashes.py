"""The hashes by which model files are known, all of them in one pass over the file, and remembered.

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
import itertools
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec

from tilemix.errors import ModelFileError

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
BLOCK = MIB // 4  # bytes: all buffers together stay in a core's cache; with 2 MiB hashing was a fifth slower
BUFFERS = 4  # one is read into while the others are hashed or wait for it
AUTOV1_WINDOW = (0x100000, 0x110000)
MAX_AUTOV3_HEADER = 16 * MIB  # a longer one is taken for content
FIRST_8_MIB = 8 * MIB
NOTHING = hashlib.sha256().hexdigest()  # of no bytes: e3b0c442..., never a file's identity


class Hashes(msgspec.Struct, frozen=True):
    """A file's hashes. Those that were not asked for, or that a file this short has not, are None."""

    sha256: str | None = None
    autov1: str | None = None
    autov2: str | None = None
    autov3: str | None = None
    crc32: str | None = None
    blake3: str | None = None
    # What some tools took for SHA256 and AutoV2. Kept to recognize it in sidecars, no name for a file.
    sha256_first_8mib: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all hashes were computed, not the SHA256 alone."""
        return self.blake3 is not None


class Digest(Protocol):
    """What hashlib, blake3 and the two classes below have in common."""

    def update(self, data: memoryview, /) -> object:
        """Take the next bytes of the file."""


class _Window:
    """A SHA-256 of a part of the file."""

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


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return self.value.to_bytes(4, "little").hex().upper()


def compute_hashes(
    path: Path, *, every: bool = False, on_bytes: Callable[[int], object] | None = None
) -> Hashes:
    """Hash the file `path`: SHA256, AutoV1 and AutoV2, or with `every` all of them, in one pass.

    The next blocks are read while the last ones are hashed, the slow algorithms in threads of their own.

    Args:
        path: any file.
        every: AutoV3, CRC32 and BLAKE3 too.
        on_bytes: called with the number of bytes after each block.

    Raises:
        ModelFileError: the file cannot be read, or it was changed meanwhile.
    """
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # the kernel reads further ahead
            hashes = _hash_open_file(file, before.st_size, every=every, on_bytes=on_bytes)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ModelFileError(f"{path}: was changed while it was hashed")
    return hashes


def _hash_open_file(
    file: BinaryIO, size: int, *, every: bool, on_bytes: Callable[[int], object] | None
) -> Hashes:
    whole, window, first = hashlib.sha256(), _Window(*AUTOV1_WINDOW), _Window(0, FIRST_8_MIB)
    groups: list[list[Digest]] = [[whole, window, first]]  # one thread each
    if every:
        from blake3 import blake3

        length = int.from_bytes(file.read(8).ljust(8, b"\xff"), "little")
        file.seek(0)
        payload = _Window(8 + (length if length < MAX_AUTOV3_HEADER else 0))
        crc32, tree = _Crc32(), blake3()
        groups += [[payload], [crc32, tree]]
    total = _feed(file, groups, on_bytes)
    if total != size:
        raise ModelFileError(f"{file.name}: {total} bytes read, expected {size}")
    sha256 = whole.hexdigest()
    is_long = window.taken == AUTOV1_WINDOW[1] - AUTOV1_WINDOW[0]
    return Hashes(
        sha256=sha256,
        autov1=window.hexdigest()[:8].upper() if is_long else None,
        autov2=sha256[:10].upper(),
        autov3=payload.hexdigest()[:12].upper() if every and payload.taken else None,
        crc32=crc32.hexdigest() if every else None,
        blake3=tree.hexdigest() if every else None,
        sha256_first_8mib=first.hexdigest(),
    )


def _feed(
    file: BinaryIO, groups: Sequence[Sequence[Digest]], on_bytes: Callable[[int], object] | None
) -> int:
    """Read a file to its end and give every block to every group, each in its own thread; return the bytes read.

    A buffer is read into again when all groups are done with it, so that reading is ahead by the others.
    """
    buffers = [memoryview(bytearray(BLOCK)) for _ in range(BUFFERS)]
    pending: list[list[Future[None]]] = [[] for _ in buffers]
    total = 0
    with ExitStack() as stack:
        # One worker each: a group gets its blocks in order.
        pools = [stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="hash")) for _ in groups]
        for turn in itertools.cycle(range(BUFFERS)):
            _finish(pending[turn])
            count = file.readinto(buffers[turn])  # type: ignore[attr-defined]
            if not count:
                break
            block = buffers[turn][:count]
            pending[turn] = [
                pool.submit(_update, group, block) for pool, group in zip(pools, groups, strict=True)
            ]
            total += count
            if on_bytes:
                on_bytes(count)
        for futures in pending:
            _finish(futures)
    return total


def _update(group: Sequence[Digest], block: memoryview) -> None:
    for digest in group:
        digest.update(block)


def _finish(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()
