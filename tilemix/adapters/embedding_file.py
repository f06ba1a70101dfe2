"""A textual inversion file -> one row per placeholder token, for each text encoder that has learned tokens.

Read are the tensors that `tilemix.modelfile.base_families` names, in a file of their own or bundled with a LoRA. Where
the manifest names no tokens, the file's own names count: those in cog-sdxl's `special_params.json` beside it, those of
the bundle, or else `<s0>`, `<s1>` and so on, one for each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tilemix.deltas import is_wide_float
from tilemix.errors import LIST_SEPARATOR, AdapterError
from tilemix.modelfile.base_families import BASE_FAMILIES, SDXL, BaseFamily
from tilemix.modelfile.companions import NAMES_FILE, read_token_names
from tilemix.modelfile.embedding_names import (
    CLIP_PAIR,
    HALVES,
    name_bundled_tokens,
    name_trained_word,
    number_tokens,
    split_bundled,
)
from tilemix.modelfile.header import read_header
from tilemix.modelfile.widths import SDXL_TEXT_WIDTHS, TEXT_WIDTHS
from tilemix.prompts.checks import PLACEHOLDER_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

MAX_SHOWN = 5  # tensors that a message names


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """The learned vectors of an embedding file."""

    name: str  # the file's name
    rows: dict[str, torch.Tensor]  # text encoder -> (tokens, width), as stored
    tokens: tuple[str, ...]  # the names that the file gives its rows, one each
    trained_words: Mapping[str, slice] = field(
        default_factory=dict
    )  # what the trainer called several rows together


def read_embedding(
    path: Path,
    widths: Mapping[str, int] | None = None,
    *,
    token_count: int | None = None,
    family: BaseFamily = SDXL,
) -> EmbeddingFile:
    """Read the embedding file `path`.

    Args:
        path: a safetensors file, whatever its extension.
        widths: the width of each text encoder's token embeddings, 768 and 1280 in SDXL; None: not checked.
        token_count: how many rows each encoder must get; None: as many as there are.
        family: of the base.

    Raises:
        ModelFileError: not a safetensors file.
        AdapterError: another format, another base model, a missing encoder, other widths or counts, an inf or a NaN.
    """
    header = read_header(path)
    names = family.find_embedding(header.tensors)
    if names is None:
        raise _refuse_foreign(path.name, {name: info.shape for name, info in header.tensors.items()}, family)
    by_encoder = dict(zip(family.encoders, names, strict=True))
    shapes = {encoder: header.tensors[name].shape for encoder, name in by_encoder.items()}
    if all(len(shape) == 1 for shape in shapes.values()):  # one row may be flat
        shapes = {encoder: (1, *shape) for encoder, shape in shapes.items()}
    _check_shapes(path.name, shapes, widths, token_count)

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        rows = {encoder: _as_rows(file.get_tensor(name)) for encoder, name in by_encoder.items()}
    _check_numbers(path.name, rows)
    count = len(next(iter(rows.values())))
    named = path.with_name(NAMES_FILE)
    tokens = number_tokens(count)
    if token_count is None and named.is_file():
        tokens = read_token_names(named)
        if len(tokens) != count:
            raise AdapterError(
                "embedding-names-count", file=path.name, rows=count, names=NAMES_FILE, tokens=len(tokens)
            )
    return EmbeddingFile(path.name, rows, tokens)


def read_bundle(
    name: str, tensors: Mapping[str, torch.Tensor], *, are_named: bool = False
) -> EmbeddingFile | None:
    """Read SDXL's embeddings of the LoRA file `name` from its bundled tensors; None if there are none.

    The tokens are named by `name_bundled_tokens`; with `are_named` those names do not count, as there are others.

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
    collected: dict[str, list[torch.Tensor]] = {encoder: [] for encoder in SDXL.encoders}
    counts: dict[str, int] = {}
    words: dict[str, slice] = {}
    for called in sorted(embeddings):
        parts = embeddings[called]
        if len(parts) != 2:
            raise AdapterError("embedding-bundle-half", file=name, name=called, tensor=next(iter(parts)))
        rows = {
            encoder: _as_rows(parts[part])
            for encoder, part in zip(SDXL.encoders, CLIP_PAIR.names, strict=True)
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
    for token in () if are_named else tokens:
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


def _refuse_foreign(file: str, shapes: Mapping[str, tuple[int, ...]], family: BaseFamily) -> AdapterError:
    """Return the error for a file without the tensors of an embedding for the family."""
    expected = LIST_SEPARATOR.join(" with ".join(names) for names in family.embeddings)
    for other in BASE_FAMILIES.values():
        if other is not family and len(shapes) > 1 and other.find_embedding(shapes):
            return AdapterError("adapter-other-family", file=file, base=other.base, expected=family.base)
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        if name in HALVES:
            return AdapterError("embedding-half", file=file, tensor=name, expected=expected)
        if shape and len(shape) <= 2:
            base, width = TEXT_WIDTHS.get(shape[-1]), shape[-1]
            if base in ("SD 1", "SD 2"):
                return AdapterError(
                    "embedding-other-base", file=file, base=base, width=width, tensor=name, expected=expected
                )
            return AdapterError(
                "embedding-one-encoder", file=file, width=width, tensor=name, expected=expected
            )
    if not shapes:
        return AdapterError("embedding-foreign", file=file, tensors="-", expected=expected)
    found = LIST_SEPARATOR.join(list(shapes)[:MAX_SHOWN])
    return AdapterError("embedding-foreign", file=file, tensors=found, expected=expected)


def _check_shapes(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    widths: Mapping[str, int] | None,
    token_count: int | None,
) -> None:
    for encoder, shape in shapes.items():
        if len(shape) != 2 or not all(shape):
            raise AdapterError(
                "embedding-shape", file=name, encoder=encoder, shape="x".join(map(str, shape)) or "-"
            )
    if widths is not None and any(shapes[encoder][1] != widths[encoder] for encoder in shapes):
        made = tuple(shape[1] for shape in shapes.values())
        if len(made) == 1:
            (width,) = widths.values()
            raise AdapterError("embedding-width", file=name, found=made[0], expected=width)
        raise AdapterError(
            "embedding-for-sdxl" if made == SDXL_TEXT_WIDTHS else "embedding-other-widths",
            file=name,
            first=made[0],
            second=made[1],
            expected_first=widths["text_encoder"],
            expected_second=widths["text_encoder_2"],
        )
    counts = [shape[0] for shape in shapes.values()]
    first = counts[0]
    if len(set(counts)) > 1:
        raise AdapterError("embedding-unequal", file=name, first=first, second=counts[1])
    if token_count is not None and first != token_count:
        raise AdapterError("embedding-token-count", file=name, rows=first, tokens=token_count)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return rows of which a single one may be flat."""
    return tensor[None] if tensor.ndim == 1 else tensor


def _check_numbers(name: str, rows: Mapping[str, torch.Tensor]) -> None:
    for encoder, tensor in rows.items():
        if not is_wide_float(tensor):
            raise AdapterError(
                "embedding-dtype", file=name, encoder=encoder, dtype=str(tensor.dtype).removeprefix("torch.")
            )
        if not bool(tensor.float().isfinite().all()):  # a double may be beyond what models hold
            raise AdapterError("embedding-not-finite", file=name, encoder=encoder)
