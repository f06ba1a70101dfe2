"""The process that reads the pickle: it limits itself, writes a safetensors file and prints what it did as JSON.

    python -m tilemix.conversion.child '{"source": ..., "target": ..., "keep": ..., "dtype": ...}'

An error is printed the same way, as its code and values.
"""

from __future__ import annotations

import resource
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tilemix.errors import ModelFileError, Value

if TYPE_CHECKING:
    import torch

    from tilemix.conversion.contents import Contents

MIB = 2**20
OWN_BYTES = 1024 * MIB  # what Python and torch take
CPU_SECONDS = 60
BYTES_PER_CPU_SECOND = 20 * MIB  # ten times as slow as it is


class Job(msgspec.Struct, frozen=True):
    """What is to be done."""

    source: str
    target: str  # written over
    keep: Literal["ema", "last"] | None = None
    dtype: Literal["fp16"] | None = None


class Part(msgspec.Struct, frozen=True):
    """Something that was left out."""

    name: str
    tensors: int
    size: int  # bytes


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was done."""

    kind: Literal["checkpoint", "embedding", "hypernetwork"]
    tensors: int
    weights: Literal["ema", "last"] | None = None  # which were kept, where the file has both
    dropped: tuple[Part, ...] = ()
    container: str | None = None  # the key that the tensors were under


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Why nothing was done."""

    code: str
    values: dict[str, Value]


def limit_memory(size: int) -> int:
    """Return how many bytes the conversion of a file of so many bytes may take."""
    return OWN_BYTES + 2 * size


def limit_seconds(size: int) -> int:
    """Return how many seconds of a core the conversion of a file of so many bytes may take."""
    return CPU_SECONDS + size // BYTES_PER_CPU_SECOND


def _limit_self(size: int) -> None:
    seconds = limit_seconds(size)
    for what, soft, hard in (
        (resource.RLIMIT_DATA, limit_memory(size), limit_memory(size)),
        (resource.RLIMIT_CPU, seconds, seconds + 5),  # SIGXCPU, which tells the reason; then SIGKILL
        (resource.RLIMIT_FSIZE, 2 * size + 16 * MIB, 2 * size + 16 * MIB),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


def convert_file(job: Job) -> Done:
    """Do the job, in this process and with its limits.

    Raises:
        ModelFileError: the file is refused.
        MemoryError: it takes more than this process may have.
    """
    from tilemix.conversion.contents import find_contents
    from tilemix.conversion.pickled import read_pickled

    source = Path(job.source)
    contents = find_contents(source.name, read_pickled(source), job.keep)
    size = source.stat().st_size
    total = sum(tensor.nbytes for tensor in contents.tensors.values())
    if total > 2 * size + MIB:  # tensors may share storage, and a stride of 0 makes terabytes of a number
        raise ModelFileError("pickle-growth", file=source.name, found=total, size=size)
    _write(source.name, contents, Path(job.target), job.dtype)
    return Done(
        contents.kind,
        len(contents.tensors),
        contents.weights,
        tuple(Part(part.name, part.tensors, part.size) for part in contents.dropped),
        contents.container,
    )


def _write(file: str, contents: Contents, target: Path, dtype: str | None) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in contents.tensors.items():
        plain = tensor.detach()
        if dtype == "fp16" and plain.dtype in (torch.float32, torch.float64):
            half = plain.half()
            if not torch.equal(half.isfinite(), plain.isfinite()):
                raise ModelFileError("pickle-overflow", file=file, tensor=name)
            plain = half
        place = plain.untyped_storage().data_ptr()
        if place in storages or not plain.is_contiguous():  # safetensors stores each tensor by itself
            plain = plain.clone(memory_format=torch.contiguous_format)
            place = plain.untyped_storage().data_ptr()
        storages.add(place)
        tensors[name] = plain
    mode = target.stat().st_mode if target.exists() else None
    save_file(tensors, target, contents.metadata)
    if mode is not None:
        target.chmod(stat.S_IMODE(mode))  # the library puts a file of its own there, which only we may read
    with safe_open(target, framework="pt") as written:
        for name, tensor in tensors.items():
            found = written.get_tensor(name)
            # A single number, such as a LoRA's alpha, has no dimension to view its bytes along.
            if not torch.equal(found.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)):
                raise ModelFileError("file-changed", file=str(target))


def main(argument: str) -> None:
    """Do the job that the argument describes, and print `Done` or `Failed`."""
    job = msgspec.json.decode(argument, type=Job)
    result: Done | Failed
    size = 0
    try:
        size = Path(job.source).stat().st_size
        _limit_self(size)
        result = convert_file(job)
    except ModelFileError as error:
        result = Failed(error.code, dict(error.values))
    except MemoryError:
        result = Failed("pickle-memory", {"file": Path(job.source).name, "most": limit_memory(size)})
    except OSError as error:
        result = Failed("file-unwritable", {"file": job.target, "reason": str(error.strerror or error)})
    sys.stdout.write(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main(sys.argv[1])
