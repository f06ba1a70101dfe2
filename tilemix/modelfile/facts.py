"""What the header of a model file tells, remembered until the file changes."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import tilemix
from tilemix.deltas import ALPHA
from tilemix.errors import ModelFileError
from tilemix.modelfile import memory
from tilemix.modelfile.base_models import Base, tell_base
from tilemix.modelfile.companions import reads_peft_config
from tilemix.modelfile.embedding_names import CLIP_PAIR, find_pair, is_bundled, split_bundled
from tilemix.modelfile.header import DTYPE_BITS, Header, read_header
from tilemix.modelfile.kinds import Kind, Recognized, recognize
from tilemix.modelfile.scalars import find_infinite_rows, read_scalars
from tilemix.modelfile.spellings import split_name
from tilemix.modelfile.training_notes import TrainingNotes, expand, read_notes
from tilemix.modelfile.widths import SDXL_TEXT_WIDTHS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tilemix.modelfile.header import TensorInfo

IN_TENSORS = "the tensors"
MAX_NAMED_ROWS = 5  # in a note
ROOMS = ("modelfile", "deltas")  # the code that tells what follows


class HeaderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a safetensors file says about itself; the fields are those of `ModelFile`."""

    kind: Kind
    format: str
    is_adapter: bool  # whether it holds changes of modules
    base: Base
    ranks: dict[int, int]
    alpha: float | None
    alpha_told_by: str | None
    reads_peft_config: bool  # its strength is in adapter_config.json
    modules: dict[str, dict[str, int]]
    tokens: tuple[str, ...]
    vectors: int | None
    dtypes: dict[str, int]
    tensors: int
    training: TrainingNotes
    metadata: dict[str, object]
    faults: tuple[str, ...]  # what the loader will refuse


def read_facts(path: Path) -> HeaderFacts:
    """Return what the header of the safetensors file `path` tells.

    Raises:
        ModelFileError: not a safetensors file, or a broken one.
    """
    try:
        stamp = memory.stamp_of(path)
        topic = f"header {_code_stamp()}"
        if data := memory.recall(topic, path):
            return msgspec.json.decode(data, type=HeaderFacts)
        facts = _find_facts(path)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    memory.remember(topic, path, stamp, msgspec.json.encode(facts))
    return facts


def count_parameters(header: Header) -> dict[str, int]:
    """Return dtype -> parameters, the most frequent first."""
    counts: Counter[str] = Counter()
    for tensor in header.tensors.values():
        counts[tensor.dtype] += 8 * (tensor.offsets[1] - tensor.offsets[0]) // DTYPE_BITS[tensor.dtype]
    return dict(counts.most_common())


@cache
def _code_stamp() -> int:
    """Return a number that changes with the code: what another version found out does not count."""
    home = Path(tilemix.__file__).parent
    return max(file.stat().st_mtime_ns for room in ROOMS for file in os.scandir(home / room))


def _find_facts(path: Path) -> HeaderFacts:
    header = read_header(path)
    recognized = recognize(header, path.absolute().parent.name)
    notes = read_notes(header.metadata)
    is_adapter = recognized.layout is not None
    alpha, told_by = _find_alpha(path, header, notes) if is_adapter else (None, None)
    return HeaderFacts(
        kind=recognized.kind,
        format=recognized.format,
        is_adapter=is_adapter,
        base=tell_base(header, recognized),
        ranks=recognized.layout.count_ranks() if recognized.layout else {},
        alpha=alpha,
        alpha_told_by=told_by,
        reads_peft_config=is_adapter and reads_peft_config(path.name, header),
        modules=recognized.layout.count_modules() if recognized.layout else {},
        tokens=recognized.tokens,
        vectors=recognized.vectors,
        dtypes=count_parameters(header),
        tensors=len(header.tensors),
        training=notes,
        metadata=expand(header.metadata),
        faults=tuple(_find_faults(path, header, recognized)),
    )


def _find_alpha(path: Path, header: Header, notes: TrainingNotes) -> tuple[float | None, str | None]:
    """Return a LoRA's alpha and what tells it: its tensors before its metadata, as in the loader."""
    names = [name for name in header.tensors if (part := split_name(name)) and part.part == ALPHA]
    alphas = sorted(set(read_scalars(path, header, names)))
    if alphas and alphas[-1] > 0:
        least, most = alphas[0], alphas[-1]
        return (most, IN_TENSORS) if least == most else (None, f"{least:g} to {most:g}, in {IN_TENSORS}")
    if notes.alpha is not None:
        return notes.alpha, notes.alpha_told_by
    if alphas:
        return alphas[-1], IN_TENSORS
    return None, None


def _find_faults(path: Path, header: Header, recognized: Recognized) -> Iterator[str]:
    """Yield what is wrong with the rows of learned tokens."""
    for called, (first, second) in _list_pairs(header.tensors, recognized):
        before = f"{called}: " if called else ""
        widths = tuple(header.tensors[name].shape[-1:] for name in (first, second))
        if widths == tuple((width,) for width in reversed(SDXL_TEXT_WIDTHS)):
            found = " and ".join(str(width) for (width,) in widths)
            expected = " and ".join(map(str, SDXL_TEXT_WIDTHS))
            yield f"{before}{first} and {second} are {found} wide, expected {expected}: exchanged"
        for name in (first, second):
            if rows := find_infinite_rows(path, header, name):
                shown = ", ".join(map(str, rows[:MAX_NAMED_ROWS])) + (
                    ", ..." if rows[MAX_NAMED_ROWS:] else ""
                )
                yield f"{name}: inf or NaN in the rows {shown}"


def _list_pairs(
    tensors: Mapping[str, TensorInfo], recognized: Recognized
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the name of each embedding for both text encoders, "" for a file's own, and its two tensors."""
    if recognized.kind == "embedding" and (pair := find_pair(tensors)):
        yield "", pair.names
    by_name: dict[str, dict[str, str]] = {}
    for tensor in filter(is_bundled, tensors):
        called, part = split_bundled(tensor)
        by_name.setdefault(called, {})[part] = tensor
    for called, parts in by_name.items():
        if set(CLIP_PAIR.names) <= parts.keys():
            first, second = (parts[name] for name in CLIP_PAIR.names)
            yield called, (first, second)
