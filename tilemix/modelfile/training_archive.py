"""`trained_model.tar` of a Replicate training of cog-sdxl -> its files.

It holds `lora.safetensors`, `embeddings.pti` (safetensors by another name) and `special_params.json` (the trained
word -> its tokens). Nothing is extracted under the archive's own names: each member is a plain file of a known name
and a limited size, copied to a name of ours, or the archive is refused.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import LIST_SEPARATOR, AdapterError, ModelFileError
from tilemix.system.regular import open_regular

# Known member -> the most bytes it may have.
MEMBERS = {"lora.safetensors": 4 * 2**30, "embeddings.pti": 64 * 2**20, "special_params.json": 64 * 2**10}
MAX_MEMBERS = 16  # the folder's own entry included
CHUNK = 2**20  # bytes copied at a time, and the most that a header of the archive can make us read
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """A training's files; they exist while the archive is open."""

    lora: Path
    embeddings: Path | None  # its special_params.json, if any, is beside it


class _BoundedFile(io.FileIO):
    """A file that never gives more than CHUNK bytes at once, because a header can claim any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def is_archive(path: Path) -> bool:
    """Return whether the content of `path` is a tar archive, whatever its name."""
    try:
        with open_regular(path) as file:
            return file.read(262)[257:262] == b"ustar"
    except (OSError, ModelFileError):
        return False  # missing, a folder or a pipe: whoever reads the tensors reports it


@contextmanager
def open_training(path: Path) -> Iterator[TrainingFiles]:
    """Unpack the archive `path` into a temporary folder, which is removed when the context ends.

    Raises:
        AdapterError: it is broken, lacks a LoRA, or has a member of another name or kind, too large, or twice.
    """
    with tempfile.TemporaryDirectory(prefix="tilemix-") as folder:
        _unpack(path, Path(folder))
        lora, embeddings = (Path(folder) / name for name in ("lora.safetensors", "embeddings.pti"))
        if not lora.exists():
            raise AdapterError("file-archive-no-lora", file=path.name)
        yield TrainingFiles(lora, embeddings if embeddings.exists() else None)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with _BoundedFile(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise AdapterError("file-archive-members", file=path.name, most=MAX_MEMBERS)
                if member.isdir() and member.name in ("", "."):
                    continue
                _copy_member(path.name, archive, member, folder)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise AdapterError("file-archive-broken", file=path.name, reason=str(error)[:120]) from error
    except OSError as error:
        raise AdapterError(
            "file-archive-unpacking", file=path.name, reason=error.strerror or str(error)
        ) from error


def _copy_member(archive_name: str, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = member.name.removeprefix("./")
    if name == "unet.safetensors":
        raise AdapterError("file-archive-unet", file=archive_name)
    limit = MEMBERS.get(name)
    if limit is None:
        raise AdapterError(
            "file-archive-member",
            file=archive_name,
            member=member.name[:80],
            expected=LIST_SEPARATOR.join(MEMBERS),
        )
    if member.type not in PLAIN or member.issparse():
        raise AdapterError("file-archive-kind", file=archive_name, member=name)
    if member.size > limit:
        raise AdapterError("file-archive-size", file=archive_name, member=name, size=member.size, most=limit)
    source = archive.extractfile(member)
    assert source is not None, "a plain file has content"
    target = folder / name
    try:
        output = target.open("xb")
    except FileExistsError:
        raise AdapterError("file-archive-twice", file=archive_name, member=name) from None
    left = member.size
    with source, output:
        while left and (chunk := source.read(min(CHUNK, left))):
            output.write(chunk)
            left -= len(chunk)
    if left:
        raise AdapterError("file-archive-cut", file=archive_name, member=name, missing=left)
