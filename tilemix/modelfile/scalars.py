"""Numbers read from a safetensors file without torch: tensors of one element, and small ones that must be finite."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.modelfile.header import Header

FORMATS = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "I64": "<q",
    "I32": "<i",
    "I16": "<h",
    "I8": "<b",
    "U8": "<B",
}
MAX_CHECKED_BYTES = 16 * 2**20  # of a tensor; the rows of learned tokens have kilobytes


def read_scalars(path: Path, header: Header, names: Iterable[str]) -> list[float]:
    """Return the numbers of the tensors `names`, which have one element each.

    Tensors of more elements, and of dtypes that no file counts in, are left out.

    Raises:
        ModelFileError: not a regular file.
        OSError: it cannot be read.
    """
    found = []
    with open_regular(path) as file:
        for name in names:
            tensor = header.tensors[name]
            if math.prod(tensor.shape) != 1:
                continue
            # Not through the file's buffer, which would read a page for each.
            place = header.data_start + tensor.offsets[0]
            raw = os.pread(file.fileno(), tensor.offsets[1] - tensor.offsets[0], place)
            if tensor.dtype == "BF16":
                found.append(float(struct.unpack("<f", b"\0\0" + raw)[0]))
            elif tensor.dtype in FORMATS:
                found.append(float(struct.unpack(FORMATS[tensor.dtype], raw)[0]))
    return found


def find_infinite_rows(path: Path, header: Header, name: str) -> list[int]:
    """Return the places of the rows that hold inf or NaN in the tensor `name`, a matrix or one row.

    A tensor of integers has none; one over MAX_CHECKED_BYTES is not read.

    Raises:
        ModelFileError: not a regular file.
        OSError: it cannot be read.
    """
    import numpy as np  # takes 0.1 s, and few files need it

    tensor = header.tensors[name]
    size = tensor.offsets[1] - tensor.offsets[0]
    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    if tensor.dtype not in kinds or not 0 < size <= MAX_CHECKED_BYTES or not 1 <= len(tensor.shape) <= 2:
        return []
    with open_regular(path) as file:
        raw = os.pread(file.fileno(), size, header.data_start + tensor.offsets[0])
    numbers = np.frombuffer(raw, kinds[tensor.dtype])
    if tensor.dtype == "BF16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    rows = numbers.reshape(-1, tensor.shape[-1])
    return [int(place) for place in np.flatnonzero(~np.isfinite(rows).all(axis=1))]
