"""A textual inversion file for SDXL -> one row per placeholder token, for both text encoders.

Read are the pairs of `tilemix.modelfile.embedding_names`, in a file of their own or bundled with a LoRA. Where the
manifest names no tokens, the file's own names count: those in cog-sdxl's `special_params.json` beside it, those of
the bundle, or else `<s0>`, `<s1>` and so on, one for each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tilemix.deltas import is_wide_float
from tilemix.errors import LIST_SEPARATOR, AdapterError
from tilemix.modelfile.companions import NAMES_FILE, read_token_names
from tilemix.modelfile.embedding_names import (
    CLIP_PAIR,
    HALVES,
    PAIRS,
    find_pair,
    name_bundled_tokens,
    name_trained_word,
    number_tokens,
    split_bundled,
)
from tilemix.modelfile.header import read_header
from tilemix.modelfile.spellings import ENCODERS
from tilemix.modelfile.widths import SDXL_TEXT_WIDTHS, TEXT_WIDTHS
from tilemix.prompts.checks import PLACEHOLDER_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = LIST_SEPARATOR.join(" with ".join(pair.names) for pair in PAIRS)
MAX_SHOWN = 5  # tensors that a message names


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """The learned vectors of an embedding file."""

    name: str  # the file's name
    rows: dict[str, torch.Tensor]  # "text_encoder" and "text_encoder_2" -> (tokens, width), as stored
    tokens: tuple[str, ...]  # the names that the file gives its rows, one each
    trained_words: Mapping[str, slice] = field(
        default_factory=dict
    )  # what the trainer called several rows together


def read_embedding(
    path: Path, widths: Mapping[str, int] | None = None, *, token_count: int | None = None
) -> EmbeddingFile:
    """Read the embedding file `path`.

    Args:
        path: a safetensors file, whatever its extension.
        widths: the width of each text encoder's token embeddings, 768 and 1280 in SDXL; None: not checked.
        token_count: how many rows each encoder must get; None: as many as there are.

    Raises:
        ModelFileError: not a safetensors file.
        AdapterError: another format, a missing encoder, other widths or counts, an inf or a NaN.
    """
    header = read_header(path)
    pair = find_pair(header.tensors)
    if pair is None:
        raise _refuse_foreign(path.name, {name: info.shape for name, info in header.tensors.items()})
    by_encoder = dict(zip(ENCODERS, pair.names, strict=True))
    _check_shapes(path.name, {e: header.tensors[n].shape for e, n in by_encoder.items()}, widths, token_count)

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        rows = {encoder: file.get_tensor(name) for encoder, name in by_encoder.items()}
    _check_numbers(path.name, rows)
    count = rows["text_encoder"].shape[0]
    names = path.with_name(NAMES_FILE)
    tokens = number_tokens(count)
    if token_count is None and names.is_file():
        tokens = read_token_names(names)
        if len(tokens) != count:
            raise AdapterError(
                "embedding-names-count", file=path.name, rows=count, names=NAMES_FILE, tokens=len(tokens)
            )
    return EmbeddingFile(path.name, rows, tokens)


def read_bundle(name: str, tensors: Mapping[str, torch.Tensor]) -> EmbeddingFile | None:
    """Read the embeddings of the LoRA file `name` from its bundled tensors; None if there are none.

    The tokens are named by `name_bundled_tokens`.

    Raises:
        AdapterError: a missing encoder, two names that give one token, an inf or a NaN.
    """
    embeddings: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        called, part = split_bundled(key)
        if not called or part not in CLIP_PAIR.names:
            raise AdapterError("embedding-bundle-foreign", file=name, tensor=key)
        embeddings.setdefault(called, {})[part] = tensor
    if not embeddings:
        return None
    collected: dict[str, list[torch.Tensor]] = {encoder: [] for encoder in ENCODERS}
    counts: dict[str, int] = {}
    words: dict[str, slice] = {}
    for called in sorted(embeddings):
        parts = embeddings[called]
        if len(parts) != 2:
            raise AdapterError("embedding-bundle-half", file=name, name=called, tensor=next(iter(parts)))
        rows = {
            encoder: parts[part][None] if parts[part].ndim == 1 else parts[part]  # one row may be flat
            for encoder, part in zip(ENCODERS, CLIP_PAIR.names, strict=True)
        }
        _check_shapes(name, {encoder: tuple(tensor.shape) for encoder, tensor in rows.items()}, None, None)
        _check_numbers(name, rows)
        words[name_trained_word(called)] = slice(
            sum(counts.values()), sum(counts.values()) + len(rows["text_encoder"])
        )
        counts[called] = len(rows["text_encoder"])
        for encoder, tensor in rows.items():
            collected[encoder].append(tensor.float())
    if any(len({tensor.shape[1] for tensor in found}) > 1 for found in collected.values()):
        raise AdapterError("embedding-bundle-widths", file=name)
    joined = {encoder: torch.cat(found) for encoder, found in collected.items()}
    tokens = name_bundled_tokens(counts)
    for token in tokens:
        if tokens.count(token) > 1 or not PLACEHOLDER_TOKEN.fullmatch(token):
            raise AdapterError("embedding-bundle-name", file=name, name=token)
    return EmbeddingFile(name, joined, tokens, words)


def check_fit(file: EmbeddingFile, widths: Mapping[str, int], token_count: int) -> None:
    """Refuse embeddings that do not fit the loaded text encoders or the named tokens.

    Raises:
        AdapterError: other widths or counts.
    """
    shapes = {encoder: tuple(tensor.shape) for encoder, tensor in file.rows.items()}
    _check_shapes(file.name, shapes, widths, token_count)


def _refuse_foreign(file: str, shapes: Mapping[str, tuple[int, ...]]) -> AdapterError:
    """Return the error for a file without a pair of tensors for both text encoders."""
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        if name in HALVES:
            return AdapterError("embedding-half", file=file, tensor=name, expected=EXPECTED)
        if shape and len(shape) <= 2:
            base, width = TEXT_WIDTHS.get(shape[-1]), shape[-1]
            if base in ("SD 1", "SD 2"):
                return AdapterError(
                    "embedding-other-base", file=file, base=base, width=width, tensor=name, expected=EXPECTED
                )
            return AdapterError(
                "embedding-one-encoder", file=file, width=width, tensor=name, expected=EXPECTED
            )
    if not shapes:
        return AdapterError("embedding-foreign", file=file, tensors="-", expected=EXPECTED)
    found = LIST_SEPARATOR.join(list(shapes)[:MAX_SHOWN])
    return AdapterError("embedding-foreign", file=file, tensors=found, expected=EXPECTED)


def _check_shapes(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    widths: Mapping[str, int] | None,
    token_count: int | None,
) -> None:
    for encoder, shape in shapes.items():
        if len(shape) != 2:
            raise AdapterError(
                "embedding-shape", file=name, encoder=encoder, shape="x".join(map(str, shape)) or "-"
            )
    if widths is not None and any(shapes[encoder][1] != widths[encoder] for encoder in shapes):
        made = tuple(shapes[encoder][1] for encoder in ENCODERS)
        raise AdapterError(
            "embedding-for-sdxl" if made == SDXL_TEXT_WIDTHS else "embedding-other-widths",
            file=name,
            first=made[0],
            second=made[1],
            expected_first=widths["text_encoder"],
            expected_second=widths["text_encoder_2"],
        )
    first, second = (shapes[encoder][0] for encoder in ENCODERS)
    if first != second:
        raise AdapterError("embedding-unequal", file=name, first=first, second=second)
    if token_count is not None and first != token_count:
        raise AdapterError("embedding-token-count", file=name, rows=first, tokens=token_count)


def _check_numbers(name: str, rows: Mapping[str, torch.Tensor]) -> None:
    for encoder, tensor in rows.items():
        if not is_wide_float(tensor):
            raise AdapterError(
                "embedding-dtype", file=name, encoder=encoder, dtype=str(tensor.dtype).removeprefix("torch.")
            )
        if not bool(tensor.isfinite().all()):
            raise AdapterError("embedding-not-finite", file=name, encoder=encoder)
