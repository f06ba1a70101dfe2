"""Hashes that were computed once; see `tilemix.modelfile.memory`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from tilemix.modelfile import memory
from tilemix.modelfile.hashes import Hashes, compute_hashes

if TYPE_CHECKING:
    from pathlib import Path

TOPIC = "hashes"


def recall_hashes(path: Path) -> Hashes | None:
    """Return the remembered hashes of the file `path` as it is now; None where there are none."""
    data = memory.recall(TOPIC, path)
    try:
        return None if data is None else msgspec.json.decode(data, type=Hashes)
    except msgspec.DecodeError:
        return None  # another version's


def find_hashes(
    path: Path, *, every: bool = False, on_bytes: Callable[[int], object] | None = None
) -> Hashes:
    """Return the hashes of the file `path`, remembered ones where there are any; new ones are remembered.

    Args:
        path: a file.
        every: all of them, see `compute_hashes`.
        on_bytes: called with the number of bytes after each block that is read.

    Raises:
        ModelFileError: see `compute_hashes`.
    """
    known = recall_hashes(path)
    if known and (known.is_complete or not every):
        return known
    stamp = memory.stamp_of(path)
    hashes = compute_hashes(path, every=every, on_bytes=on_bytes)
    memory.remember(TOPIC, path, stamp, msgspec.json.encode(hashes))
    return hashes
