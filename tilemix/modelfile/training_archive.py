"""`trained_model.tar` of a Replicate training of cog-sdxl -> its files, one at a time.

It holds `lora.safetensors`, `embeddings.pti` (safetensors by another name) and `special_params.json`
(the word that was trained -> its tokens). Nothing is extracted by the archive's own names: a member is
a plain file of a known name, copied under ours with a limit, or the archive is refused.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import AdapterError

# Known member -> the most bytes it may have.
MEMBERS = {"lora.safetensors": 4 * 2**30, "embeddings.pti": 64 * 2**20, "special_params.json": 64 * 2**10}
MAX_MEMBERS = 16  # with the folder's own entry
CHUNK = 2**20  # bytes copied at a time, and the most that the archive's headers can make anyone read
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """A training's files, there while the archive is open."""

    lora: Path
    embeddings: Path | None  # with its special_params.json beside it, if there is one


class _BoundedFile(io.FileIO):
    """A file of which nobody reads more than CHUNK bytes at once: a header can claim any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def is_archive(path: Path) -> bool:
    """Say whether the content of `path` is a tar archive, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(262)[257:262] == b"ustar"
    except OSError:
        return False  # a folder, or no file at all: the reader of the tensors says which


@contextmanager
def open_training(path: Path) -> Iterator[TrainingFiles]:
    """Unpack the archive `path` into a temporary folder, which goes when the context ends.

    Raises:
        AdapterError: broken; a member of another name or kind, too large or twice; no LoRA in it.
    """
    with tempfile.TemporaryDirectory(prefix="tilemix-") as folder:
        _unpack(path, Path(folder))
        lora, embeddings = (Path(folder) / name for name in ("lora.safetensors", "embeddings.pti"))
        if not lora.exists():
            raise AdapterError(f"{path.name}: no lora.safetensors in the archive")
        yield TrainingFiles(lora, embeddings if embeddings.exists() else None)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with _BoundedFile(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise AdapterError(f"{path.name}: more than {MAX_MEMBERS} members in the archive")
                if member.isdir() and member.name in ("", "."):
                    continue
                _copy_member(path.name, archive, member, folder)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise AdapterError(f"{path.name}: broken archive: {str(error)[:120]}") from error
    except OSError as error:
        raise AdapterError(f"{path.name}: cannot be unpacked: {error.strerror or error}") from error


def _copy_member(archive_name: str, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = member.name.removeprefix("./")
    if name == "unet.safetensors":
        raise AdapterError(f"{archive_name}: holds a whole trained UNet (unet.safetensors), not a LoRA")
    limit = MEMBERS.get(name)
    if limit is None:
        raise AdapterError(
            f"{archive_name}: {member.name[:80]!r} in the archive, expected {', '.join(MEMBERS)}"
        )
    if member.type not in PLAIN or member.issparse():
        raise AdapterError(f"{archive_name}: {name!r} in the archive is no plain file")
    if member.size > limit:
        raise AdapterError(f"{archive_name}: {name!r} has {member.size} bytes, expected at most {limit}")
    source = archive.extractfile(member)
    assert source is not None, "a plain file has content"
    target = folder / name
    try:
        output = target.open("xb")
    except FileExistsError:
        raise AdapterError(f"{archive_name}: {name!r} is twice in the archive") from None
    left = member.size
    with source, output:
        while left and (chunk := source.read(min(CHUNK, left))):
            output.write(chunk)
            left -= len(chunk)
    if left:
        raise AdapterError(f"{archive_name}: truncated: {name!r} lacks {left} bytes")
