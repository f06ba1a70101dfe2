"""What a safetensors file holds, told from its header alone.

The header is checked here before the safetensors library sees the file: the
library accepts duplicate names (the last one wins), names such as ``../x``
and headers of a million tensors. The extension decides nothing; the content does.

Source: the format's description, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from tilemix.errors import ModelFileError
from tilemix.system.garbage import uncollected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_HEADER_BYTES = 8 * 2**20  # the largest SDXL header seen is under 300 KiB
MAX_METADATA_BYTES = 2**20
MAX_TENSORS = 20_000  # an SDXL UNet has 1,680
MAX_METADATA_ENTRIES = 10_000
MAX_RANK = 8
MAX_DIMENSION = 2**31
MAX_OFFSET = 2**63  # a file's size
FIELDS = {"dtype", "shape", "data_offsets"}
TENSOR_NAME = re.compile(r"[A-Za-z0-9._<>*-]{1,256}")
FOREIGN_START = 64 * 2**10  # how much of another kind of file is looked at, to name it
HYPERNETWORK_MARKS = (b"layer_structure", b"linear1.weight", b"linear.0.weight")
MAGICS = {
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"RIFF": "a picture",
}
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
EMPTY_MARKERS = {"v_pred", "ztsnr"}  # checkpoints say "v-prediction" and "zero terminal SNR" by empty tensors
# How often a byte can stand in a header within the limits above: what the tensors need, and what the texts
# of the metadata may hold (brackets and commas of JSON in them). Counted before a parser builds the values:
# eight megabytes of `[],` cost it 0.8 s and 200 MB.
MAX_STRINGS = 5 * MAX_TENSORS + 2 * MAX_METADATA_ENTRIES
MAX_OPENINGS = {"[": 2 * MAX_TENSORS + 100_000, "{": MAX_TENSORS + 100_000}
MAX_COMMAS = (MAX_RANK + 3) * MAX_TENSORS + 300_000


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header describes it."""

    dtype: str  # safetensors' name: F32, F16, BF16, ...
    shape: tuple[int, ...]
    offsets: tuple[int, int]  # [begin, end) in the data section, in bytes


@dataclass(frozen=True, slots=True)
class Header:
    """A safetensors header that passed every check."""

    tensors: dict[str, TensorInfo]  # in the file's order
    metadata: dict[str, str]  # __metadata__; for display, never trusted
    data_start: int  # where the data section begins, in bytes from the start of the file


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file `path`; the tensors stay on disk.

    Raises:
        ModelFileError: it is not a safetensors file, or one that breaks the format's rules or the limits above.
    """
    try:
        with open_regular(path) as file:
            return read_open_header(path, file)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe, for which one would wait, is refused as a folder is.

    Raises:
        ModelFileError: it is no regular file.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ModelFileError(f"{path}: no regular file")
    return path.open("rb")


def read_open_header(path: Path, file: BinaryIO) -> Header:
    """Read and check the header of the safetensors file `file`, which was opened at its start by the name `path`.

    Raises:
        ModelFileError: see `read_header`.
        OSError: it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(FOREIGN_START)
    if len(start) < 10:
        raise ModelFileError(f"{path.name}: {len(start)} bytes are no safetensors file")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise ModelFileError(f"{path.name}: {describe_foreign(start)}, expected safetensors")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(f"{path.name}: a header of {length} bytes, expected at most {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise ModelFileError(f"{path.name}: truncated: the header needs {8 + length} bytes, found {size}")
    file.seek(8)
    return _check_header(path.name, file.read(length), data_size=size - 8 - length)


def describe_foreign(start: bytes) -> str:
    """Say what a file that is not safetensors is, from its first FOREIGN_START bytes."""
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:40].lower()
    pickled = start[:2] == b"PK" or start[:1] == b"\x80"
    if pickled and any(mark in start for mark in HYPERNETWORK_MARKS):
        return "a pickled hypernetwork, which SDXL does not have"
    if pickled and b"string_to_param" in start:
        return "a pickled textual inversion embedding"
    if start[:2] == b"PK":
        return "a zip archive (probably a pickled checkpoint)"
    if start[:1] == b"\x80":
        return "a pickle"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML page"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself"
    if start[257:262] == b"ustar":
        return "a tar archive"
    for magic, kind in MAGICS.items():
        if start.startswith(magic):
            return kind
    if head.startswith((b"{", b"[")):
        return "a JSON text (perhaps a server's error message)"
    return f"starts with {start[:8]!r}"


def _check_header(name: str, raw: bytes, *, data_size: int) -> Header:
    def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ModelFileError(f"{name}: the header names {twice[:80]!r} twice")
        return table

    _refuse_floods(name, raw)
    with uncollected():
        return _check_values(name, raw, data_size, refuse_duplicates)


def _check_values(
    name: str,
    raw: bytes,
    data_size: int,
    refuse_duplicates: Callable[[list[tuple[str, object]]], dict[str, object]],
) -> Header:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=refuse_duplicates)
        if b"\\u" in raw:
            # Python reads half of a surrogate pair as a character; no text can hold it, and the library refuses it.
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{name}: the header is not JSON: {str(error)[:120]}") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"{name}: the header is no JSON object")
    metadata = _check_metadata(name, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise ModelFileError(f"{name}: {len(header)} tensors, expected at most {MAX_TENSORS}")
    tensors = {key: _check_tensor(name, key, value) for key, value in header.items()}
    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].offsets):
        begin, end = tensor.offsets
        if begin != position:
            raise ModelFileError(f"{name}: {key!r} begins at byte {begin} of the data, expected {position}")
        position = end
    if position != data_size:
        word = "truncated: " if position > data_size else ""
        raise ModelFileError(f"{name}: {word}{data_size} bytes of data, the header describes {position}")
    return Header(tensors, metadata, 8 + len(raw))


def _refuse_floods(name: str, raw: bytes) -> None:
    """Refuse a header with more strings, lists, objects or values than one within the limits can have."""
    # An escaped quote ends no string; one after an escaped backslash does.
    quotes = raw.count(b'"') - raw.count(b'\\"') + raw.count(b'\\\\"')
    if (strings := quotes // 2) > MAX_STRINGS:
        raise ModelFileError(f"{name}: about {strings} texts in the header, expected at most {MAX_STRINGS}")
    for byte, most in {**MAX_OPENINGS, ",": MAX_COMMAS}.items():
        if (found := raw.count(byte.encode())) > most:
            raise ModelFileError(f"{name}: {found} times {byte!r} in the header, expected at most {most}")


def _check_metadata(name: str, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"{name}: __metadata__ is no table of texts")
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise ModelFileError(
            f"{name}: {len(metadata)} entries of metadata, expected at most {MAX_METADATA_ENTRIES}"
        )
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise ModelFileError(f"{name}: {size} characters of metadata, expected at most {MAX_METADATA_BYTES}")
    return metadata


def _check_tensor(name: str, key: str, value: object) -> TensorInfo:
    if not TENSOR_NAME.fullmatch(key):
        raise ModelFileError(f"{name}: {key[:80]!r} is no tensor name")
    if not isinstance(value, dict) or value.keys() != FIELDS:
        raise ModelFileError(f"{name}: {key!r} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ModelFileError(
            f"{name}: {key!r} has dtype {reprlib.repr(dtype)}; known: {', '.join(DTYPE_BYTES)}"
        )
    if not _are_counts(shape, MAX_RANK, least=0 if key in EMPTY_MARKERS else 1, most=MAX_DIMENSION):
        raise ModelFileError(f"{name}: {key!r} has the shape {reprlib.repr(shape)}")
    if not _are_counts(offsets, 2, least=0, most=MAX_OFFSET) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFileError(f"{name}: {key!r} has the offsets {reprlib.repr(offsets)}")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise ModelFileError(
            f"{name}: {key!r} spans {offsets[1] - offsets[0]} bytes, its shape and dtype need {expected}"
        )
    return TensorInfo(dtype, tuple(shape), (offsets[0], offsets[1]))


def _are_counts(value: object, longest: int, *, least: int, most: int) -> bool:
    if not isinstance(value, list) or len(value) > longest:
        return False
    # A generator would take twice as long, and a header has 40,000 of these lists.
    return not [item for item in value if type(item) is not int or not least <= item <= most]
