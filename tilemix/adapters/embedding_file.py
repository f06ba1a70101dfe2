"""A textual inversion file for SDXL -> one row per placeholder token, for both text encoders.

Spellings that are read: `clip_l` / `clip_g` (diffusers' advanced trainer, kohya),
`text_encoders_0` / `text_encoders_1` (cog-sdxl's embeddings.pti, which is safetensors by another name), and
`bundle_emb.NAME.clip_l` / `bundle_emb.NAME.clip_g` inside of a LoRA file.

Where the manifest names no tokens, the file's own names hold: those in cog-sdxl's `special_params.json`
beside it, those of the bundle, or else `<s0>`, `<s1>` and so on, one a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tilemix.adapters.deltas import FLOATS
from tilemix.errors import AdapterError
from tilemix.modelfile import read_header
from tilemix.modelfile.companions import NAMES_FILE, read_token_names
from tilemix.prompts.checks import PLACEHOLDER_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = ("text_encoder", "text_encoder_2")
# spelling -> (the rows of text_encoder, the rows of text_encoder_2)
SPELLINGS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
BUNDLED = re.compile(r"bundle_emb\.(?P<name>.+)\.(?P<part>clip_l|clip_g)")
BUNDLE = "bundle_emb."
BASES = {768: "SD 1.5", 1024: "SD 2"}  # the width of the one text encoder of older models


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """The learned vectors of an embedding file."""

    name: str  # the file's name
    rows: dict[str, torch.Tensor]  # "text_encoder" and "text_encoder_2" -> (tokens, width), as stored
    tokens: tuple[str, ...]  # the names that the file gives its rows, one each


def read_embedding(
    path: Path, widths: Mapping[str, int] | None = None, *, token_count: int | None = None
) -> EmbeddingFile:
    """Read the embedding file `path`.

    Args:
        path: a safetensors file, whatever its extension.
        widths: the width of each text encoder's token embeddings, 768 and 1280 in SDXL; None: not looked at.
        token_count: how many rows each encoder must get; None: as many as there are.

    Raises:
        ModelFileError: no safetensors file.
        AdapterError: another format, a missing encoder, other widths or counts, a number that is not finite.
    """
    header = read_header(path)
    spelling = next((pair for pair in SPELLINGS if set(pair) == set(header.tensors)), None)
    if spelling is None:
        shapes = {name: info.shape for name, info in header.tensors.items()}
        raise AdapterError(f"{path.name}: {_describe_foreign(shapes)}")
    by_encoder = dict(zip(ENCODERS, spelling, strict=True))
    _check_shapes(path.name, {e: header.tensors[n].shape for e, n in by_encoder.items()}, widths, token_count)

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        rows = {encoder: file.get_tensor(name) for encoder, name in by_encoder.items()}
    _check_numbers(path.name, rows)
    count = rows["text_encoder"].shape[0]
    names = path.with_name(NAMES_FILE)
    tokens = tuple(f"<s{place}>" for place in range(count))
    if token_count is None and names.is_file():
        tokens = read_token_names(names)
        if len(tokens) != count:
            raise AdapterError(f"{path.name}: {count} rows, {NAMES_FILE} names {len(tokens)} tokens")
    return EmbeddingFile(path.name, rows, tokens)


def is_bundled(tensor: str) -> bool:
    """Say whether a tensor of a LoRA file belongs to an embedding bundled with it."""
    return tensor.startswith(BUNDLE)


def read_bundle(name: str, tensors: Mapping[str, torch.Tensor]) -> EmbeddingFile | None:
    """Read the embeddings of the LoRA file `name` from its bundled tensors; None if there are none.

    The embeddings stand in the order of their names. One called `tile` with one row gives the token `<tile>`,
    with more `<tile_0>`, `<tile_1>` and so on.

    Raises:
        AdapterError: a missing encoder, a name that no token can have, a number that is not finite.
    """
    embeddings: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = BUNDLED.fullmatch(key)
        if not match:
            raise AdapterError(
                f"{name}: bundled {key!r}: only an SDXL embedding's clip_l with clip_g is supported"
            )
        embeddings.setdefault(match["name"], {})[match["part"]] = tensor
    if not embeddings:
        return None
    collected: dict[str, list[torch.Tensor]] = {encoder: [] for encoder in ENCODERS}
    tokens: list[str] = []
    for called in sorted(embeddings):
        parts = embeddings[called]
        if len(parts) != 2:
            raise AdapterError(f"{name}: the bundled embedding {called!r} has {next(iter(parts))} alone")
        rows = {
            encoder: parts[part][None] if parts[part].ndim == 1 else parts[part]  # one row may be flat
            for encoder, part in zip(ENCODERS, SPELLINGS[0], strict=True)
        }
        _check_shapes(name, {encoder: tuple(tensor.shape) for encoder, tensor in rows.items()}, None, None)
        _check_numbers(name, rows)
        count, word = rows["text_encoder"].shape[0], called.strip("<>")
        names = [f"<{word}>"] if count == 1 else [f"<{word}_{place}>" for place in range(count)]
        if not all(PLACEHOLDER_TOKEN.fullmatch(token) for token in names):
            raise AdapterError(f"{name}: the bundled embedding {called[:80]!r} cannot be a token's name")
        tokens += names
        for encoder, tensor in rows.items():
            collected[encoder].append(tensor.float())
    if any(len({tensor.shape[1] for tensor in found}) > 1 for found in collected.values()):
        raise AdapterError(f"{name}: the bundled embeddings have different widths")
    return EmbeddingFile(name, {e: torch.cat(found) for e, found in collected.items()}, tuple(tokens))


def check_fit(file: EmbeddingFile, widths: Mapping[str, int], token_count: int) -> None:
    """Refuse embeddings that the loaded text encoders or the named tokens do not fit.

    Raises:
        AdapterError: other widths or counts.
    """
    shapes = {encoder: tuple(tensor.shape) for encoder, tensor in file.rows.items()}
    _check_shapes(file.name, shapes, widths, token_count)


def _describe_foreign(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say what an embedding file holds that is none of SDXL's, from its tensors."""
    known = " or ".join(" with ".join(pair) for pair in SPELLINGS)
    spelled = {name for pair in SPELLINGS for name in pair}
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        if name in spelled:
            return f"an embedding for one text encoder, {name!r} alone; expected {known}"
        if shape and len(shape) <= 2:
            base = BASES.get(shape[-1], "one text encoder")
            return f"an embedding for {base}, {shape[-1]} wide ({name!r}); expected {known}"
    found = ", ".join(repr(name) for name in list(shapes)[:5]) or "nothing"
    return f"holds {found}; expected {known}"


def _check_shapes(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    widths: Mapping[str, int] | None,
    token_count: int | None,
) -> None:
    for encoder, shape in shapes.items():
        if len(shape) != 2:
            found = "x".join(map(str, shape)) or "one number"
            raise AdapterError(f"{name}: the rows of {encoder} are {found}, expected tokens x width")
    if widths is not None and any(shapes[encoder][1] != widths[encoder] for encoder in shapes):
        made, own = (
            " and ".join(map(str, numbers))
            for numbers in ([shapes[e][1] for e in ENCODERS], [widths[e] for e in ENCODERS])
        )
        base = "SDXL" if made == "768 and 1280" else "another model"
        raise AdapterError(f"{name}: made for {base}, {made} wide; this model's text encoders are {own} wide")
    counts = [shape[0] for shape in shapes.values()]
    if len(set(counts)) > 1:
        raise AdapterError(f"{name}: {counts[0]} rows for one text encoder and {counts[1]} for the other")
    if token_count is not None and counts[0] != token_count:
        raise AdapterError(f"{name}: {counts[0]} rows for {token_count} tokens")


def _check_numbers(name: str, rows: Mapping[str, torch.Tensor]) -> None:
    for encoder, tensor in rows.items():
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{name}: the rows of {encoder} are {tensor.dtype}, expected a float of 16 bits or more"
            )
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"{name}: the rows of {encoder} hold a number that is not finite")
