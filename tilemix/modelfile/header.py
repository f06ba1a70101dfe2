"""What a safetensors file holds, told from its header alone.

The header is checked here before the safetensors library sees the file: the library accepts duplicate names (the last
one wins) and headers of a million tensors. The content counts, not the extension. A name may be any text, such as
`../x`, so it is never a path, and messages escape it.

Source: the format's description, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from tilemix.errors import LIST_SEPARATOR, ModelFileError
from tilemix.system.garbage import uncollected
from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

# The tensors of the largest SDXL header seen take under 300 KiB; counts of tags and cover images take megabytes.
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000  # an SDXL UNet has 1,680
MAX_METADATA_ENTRIES = 10_000
MAX_RANK = 8
MAX_DIMENSION = 2**31
MAX_OFFSET = 2**63  # a file's size
FIELDS = {"dtype", "shape", "data_offsets"}
MAX_NAME = 1024  # characters; the format allows any
FOREIGN_START = 64 * 2**10  # bytes that are read to name another kind of file
HYPERNETWORK_MARKS = (b"layer_structure", b"linear1.weight", b"linear.0.weight")
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
MAGICS = {b"GGUF": "GGUF", b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR"}
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
# How often a byte can occur in a header within the limits above: what the tensors need, plus brackets and commas in
# the metadata's texts, which may be JSON. They are counted before a parser builds the values: eight megabytes of
# `[],` cost it 0.8 s and 200 MB.
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
        ModelFileError: not a safetensors file, or one that breaks the format's rules or the limits above.
    """
    try:
        with open_regular(path) as file:
            return read_open_header(path, file)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error


def read_open_header(path: Path, file: BinaryIO) -> Header:
    """Read and check the header of the open safetensors file `file`, whose name is `path`.

    Raises:
        ModelFileError: see `read_header`.
        OSError: it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(FOREIGN_START)
    if len(start) < 10:
        raise ModelFileError("file-too-short", file=path.name, size=len(start))
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise _refuse_foreign(path.name, start)
    if length > MAX_HEADER_BYTES:
        raise ModelFileError("file-header-size", file=path.name, size=length, most=MAX_HEADER_BYTES)
    if 8 + length > size:
        raise ModelFileError("file-header-cut", file=path.name, expected=8 + length, found=size)
    file.seek(8)
    return _check_header(path.name, file.read(length), data_size=size - 8 - length)


def _refuse_foreign(name: str, start: bytes) -> ModelFileError:
    """Return the error for a file that is not safetensors, from its first FOREIGN_START bytes."""
    for is_it, code in FOREIGN:
        if is_it(start):
            return ModelFileError(code, file=name)
    for magic, format_name in MAGICS.items():
        if start.startswith(magic):
            return ModelFileError("file-is-foreign", file=name, format=format_name)
    return ModelFileError("file-is-unknown", file=name, start=repr(start[:8]))


def _is_pickled(start: bytes) -> bool:
    return start[:2] == b"PK" or start[:1] == b"\x80"


def _begins_with(*words: bytes) -> Callable[[bytes], bool]:
    """Return a test for a text that begins with one of `words`, whatever its case."""
    return lambda start: start.lstrip(b"\xef\xbb\xbf \t\r\n")[:40].lower().startswith(words)


# Test for another kind of file -> code of the error; the first test that applies counts.
FOREIGN: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda s: _is_pickled(s) and any(mark in s for mark in HYPERNETWORK_MARKS), "file-is-hypernetwork"),
    (lambda s: _is_pickled(s) and b"string_to_param" in s, "file-is-pickled-embedding"),
    (lambda s: s[:2] == b"PK", "file-is-zip"),
    (_is_pickled, "file-is-pickle"),
    (_begins_with(b"<!doctype", b"<html", b"<head", b"<?xml"), "file-is-html"),
    (_begins_with(b"version https://git-lfs"), "file-is-lfs-pointer"),
    (lambda s: s[257:262] == b"ustar", "file-is-tar"),
    (lambda s: s.startswith(PICTURES), "file-is-picture"),
    (_begins_with(b"{", b"["), "file-is-json"),
)


def _check_header(name: str, raw: bytes, *, data_size: int) -> Header:
    def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ModelFileError("file-header-twice", file=name, name=twice[:80])
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
            # Python reads half a surrogate pair as a character; UTF-8 cannot hold it, and the library refuses it.
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ModelFileError("file-header-json", file=name, reason=str(error)[:120]) from error
    if not isinstance(header, dict):
        raise ModelFileError("file-header-object", file=name)
    metadata = _check_metadata(name, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise ModelFileError("file-too-many-tensors", file=name, tensors=len(header), most=MAX_TENSORS)
    tensors = {key: _check_tensor(name, key, value) for key, value in header.items()}
    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].offsets):
        begin, end = tensor.offsets
        if begin != position:
            raise ModelFileError("file-tensor-begin", file=name, tensor=key, found=begin, expected=position)
        position = end
    if position != data_size:
        code = "file-data-cut" if position > data_size else "file-data-size"
        raise ModelFileError(code, file=name, found=data_size, expected=position)
    return Header(tensors, metadata, 8 + len(raw))


def _refuse_floods(name: str, raw: bytes) -> None:
    """Refuse a header with more strings, lists, objects or values than the limits allow."""
    # An escaped quote does not end a string; a quote after an escaped backslash does.
    quotes = raw.count(b'"') - raw.count(b'\\"') + raw.count(b'\\\\"')
    if (strings := quotes // 2) > MAX_STRINGS:
        raise ModelFileError("file-header-texts", file=name, found=strings, most=MAX_STRINGS)
    for byte, most in {**MAX_OPENINGS, ",": MAX_COMMAS}.items():
        if (found := raw.count(byte.encode())) > most:
            raise ModelFileError("file-header-flood", file=name, found=found, character=byte, most=most)


def _check_metadata(name: str, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError("file-metadata-type", file=name)
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise ModelFileError(
            "file-metadata-entries", file=name, found=len(metadata), most=MAX_METADATA_ENTRIES
        )
    return metadata


def _check_tensor(name: str, key: str, value: object) -> TensorInfo:
    if not 1 <= len(key) <= MAX_NAME:
        raise ModelFileError("file-tensor-name", file=name, size=len(key), most=MAX_NAME)
    if not isinstance(value, dict) or value.keys() != FIELDS:
        raise ModelFileError("file-tensor-fields", file=name, tensor=key)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ModelFileError(
            "file-tensor-dtype",
            file=name,
            tensor=key,
            dtype=reprlib.repr(dtype),
            known=LIST_SEPARATOR.join(DTYPE_BITS),
        )
    if not _are_counts(shape, MAX_RANK, least=0, most=MAX_DIMENSION):
        raise ModelFileError(
            "file-tensor-shape", file=name, tensor=key, shape=reprlib.repr(shape), most=MAX_RANK
        )
    if not _are_counts(offsets, 2, least=0, most=MAX_OFFSET) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFileError("file-tensor-offsets", file=name, tensor=key, offsets=reprlib.repr(offsets))
    found = offsets[1] - offsets[0]
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if 8 * found != bits:  # no tensor ends within a byte
        expected = bits / 8 if bits % 8 else bits // 8
        raise ModelFileError("file-tensor-size", file=name, tensor=key, found=found, expected=expected)
    return TensorInfo(dtype, tuple(shape), (offsets[0], offsets[1]))


def _are_counts(value: object, longest: int, *, least: int, most: int) -> bool:
    if not isinstance(value, list) or len(value) > longest:
        return False
    # A generator would take twice as long, and a header has 40,000 of these lists.
    return not [item for item in value if type(item) is not int or not least <= item <= most]
