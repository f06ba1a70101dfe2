"""A textual inversion file for SDXL -> one row per placeholder token, for both text encoders.

Spellings that are read: `clip_l` / `clip_g` (diffusers' advanced trainer, kohya) and
`text_encoders_0` / `text_encoders_1` (cog-sdxl's embeddings.pti, which is safetensors by another name).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilemix.errors import AdapterError
from tilemix.lora_file import FLOATS
from tilemix.modelfile import read_header

if TYPE_CHECKING:
    from pathlib import Path

    import torch

# spelling -> (the rows of text_encoder, the rows of text_encoder_2)
SPELLINGS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """The learned vectors of an embedding file."""

    name: str  # the file's name
    rows: dict[str, torch.Tensor]  # "text_encoder" and "text_encoder_2" -> (tokens, width), as stored


def read_embedding(path: Path, widths: Mapping[str, int], *, token_count: int) -> EmbeddingFile:
    """Read the embedding file `path`.

    Args:
        path: a safetensors file, whatever its extension.
        widths: the width of each text encoder's token embeddings, 768 and 1280 in SDXL.
        token_count: how many rows each encoder must get.

    Raises:
        ModelFileError: no safetensors file.
        AdapterError: another format, a missing encoder, other widths or counts, a number that is not finite.
    """
    header = read_header(path)
    spelling = next((pair for pair in SPELLINGS if set(pair) == set(header.tensors)), None)
    if spelling is None:
        found = ", ".join(repr(name) for name in list(header.tensors)[:5]) or "nothing"
        expected = " or ".join(" with ".join(pair) for pair in SPELLINGS)
        raise AdapterError(f"{path.name}: holds {found}; expected {expected}")
    for component, name in zip(widths, spelling, strict=True):
        shape = header.tensors[name].shape
        if len(shape) != 2 or shape[1] != widths[component]:
            raise AdapterError(
                f"{path.name}: made for another model: {name!r} is {'x'.join(map(str, shape))} in the file, "
                f"{component} of this model is {widths[component]} wide"
            )
        if shape[0] != token_count:
            raise AdapterError(f"{path.name}: {name!r} has {shape[0]} rows for {token_count} tokens")

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        rows = {component: file.get_tensor(name) for component, name in zip(widths, spelling, strict=True)}
    for component, tensor in rows.items():
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{path.name}: the rows of {component} are {tensor.dtype}, expected a float of 16 bits or more"
            )
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"{path.name}: the rows of {component} hold a number that is not finite")
    return EmbeddingFile(path.name, rows)
