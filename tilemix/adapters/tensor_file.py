"""The tensors of a safetensors file, memory-mapped: each is a view of the file's pages, made on request.

The safetensors library takes 25 microseconds to make one. A LoRA has 1,120 tensors, and each new scale reads 560 of
the base's. Here the header is checked once, so a view is one call.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from tilemix.errors import LIST_SEPARATOR, ModelFileError
from tilemix.modelfile.header import Header, TensorInfo, read_open_header
from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
COUNTED = ("F64", "F32", "F16", "BF16")  # the dtypes whose numbers may be inf or NaN


class TensorFile:
    """One safetensors file. It stays the same file when another one takes over its name.

    Args:
        path: the file.

    Raises:
        ModelFileError: not a safetensors file, see `tilemix.modelfile.header.read_header`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open_regular(path) as file:
                self.header: Header = read_open_header(path, file)
                # Copy on write, because torch has no read-only tensors.
                self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
        self._size = len(self._pages)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Return a tensor. Do not write to it: its numbers are the file's own pages.

        Raises:
            ModelFileError: its dtype is none that models and adapters are stored in.
        """
        info = self.header.tensors[name]
        if info.dtype not in DTYPES:
            known = LIST_SEPARATOR.join(DTYPES)
            raise ModelFileError(
                "file-tensor-dtype", file=self._path.name, tensor=name, dtype=repr(info.dtype), known=known
            )
        return self._view(info.offsets[0], info.dtype, math.prod(info.shape)).view(info.shape)

    def find_not_finite(self) -> set[str]:
        """Return the names of the tensors that hold inf or NaN.

        aminmax propagates NaN, so two numbers tell both, ten times as fast as checking each element.
        """
        found: set[str] = set()
        for dtype, infos in self._list_runs():
            begin, end = infos[0][1].offsets[0], infos[-1][1].offsets[1]
            count = sum(math.prod(info.shape) for _, info in infos)
            if end > begin and not _is_finite(self._view(begin, dtype, count)):
                found.update(name for name, _ in infos if not _is_finite(self.get_tensor(name)))
        return found

    def hash_content(self) -> str:
        """Return the SHA-256 of all that follows the header, 64 hex digits; its first 12 are AutoV3."""
        with memoryview(self._pages) as pages, pages[self.header.data_start :] as content:
            return hashlib.sha256(content).hexdigest()

    def check_size(self) -> None:
        """Refuse a file that was resized in place: reading pages beyond its end would kill the process.

        Raises:
            ModelFileError: its size is not what it was when the file was opened.
        """
        if (size := self._pages.size()) != self._size:
            raise ModelFileError("file-resized", file=self._path.name, size=size, loaded=self._size)

    def release_pages(self) -> None:
        """Release the process's pages; the system's cache keeps them while it has room."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    def _view(self, begin: int, dtype: str, count: int) -> torch.Tensor:
        if not count:
            return torch.empty(0, dtype=DTYPES[dtype])
        return torch.frombuffer(
            self._pages, dtype=DTYPES[dtype], count=count, offset=self.header.data_start + begin
        )

    def _list_runs(self) -> Iterator[tuple[str, list[tuple[str, TensorInfo]]]]:
        """Yield runs of adjacent tensors of one dtype; a checked header leaves no gaps."""
        in_order = sorted(self.header.tensors.items(), key=lambda item: item[1].offsets)
        for dtype, run in groupby(in_order, key=lambda item: item[1].dtype):
            if dtype in COUNTED:
                yield dtype, list(run)


def _is_finite(numbers: torch.Tensor) -> bool:
    if not numbers.numel():
        return True
    least, most = torch.aminmax(numbers)
    return math.isfinite(least.item()) and math.isfinite(most.item())
