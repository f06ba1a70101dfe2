"""What a model file is, told from the names and shapes in its header: kind, format, base model.

Neither the file's name nor its metadata decides: shapes count first, and where the metadata disagrees, that is
reported.

Sources: the key names of the published checkpoints and of the converters of diffusers; the block tables of
SDXL's and Stable Diffusion's configurations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tilemix.modelfile.adapter_layout import AdapterLayout, read_layout
from tilemix.modelfile.embedding_names import (
    A1111_ROWS,
    HALVES,
    KOHYA_ROWS,
    find_pair,
    is_bundled,
    name_bundled_tokens,
    number_tokens,
    split_bundled,
)
from tilemix.modelfile.widths import TEXT_WIDTHS

if TYPE_CHECKING:
    from tilemix.modelfile.header import Header, TensorInfo

Kind = Literal[
    "lora",
    "embedding",
    "checkpoint",
    "vae",
    "unet",
    "text encoder",
    "controlnet",
    "hypernetwork",
    "diffusers",
    "unknown",
]
Tensors = Mapping[str, "TensorInfo"]

HYPERNETWORK = re.compile(r"\d+\.[01]\.linear")  # as `tilemix weights convert` names the tensors
MAX_EMBEDDING_ROWS = 512
MAX_NAMED_ROWS = 64  # of an embedding; a broken file may claim millions


@dataclass(frozen=True, slots=True)
class Recognized:
    """What the names and shapes in a header tell."""

    kind: Kind
    format: str
    layout: AdapterLayout | None = None  # a LoRA's
    tokens: tuple[str, ...] = ()  # an embedding's placeholder tokens
    vectors: int | None = None  # how many rows an embedding has


def recognize(header: Header, folder: str = "") -> Recognized:
    """Tell the kind and the format of a model file in the folder `folder` from its header; it may be "unknown"."""
    tensors = header.tensors
    if (layout := read_layout(tensors, folder)) is not None:
        return Recognized("lora", layout.describe_format(), layout, tokens=_bundled_tokens(layout, tensors))
    if embedding := _recognize_embedding(tensors):
        return embedding
    if tensors and all(HYPERNETWORK.match(name) for name in tensors):
        return Recognized("hypernetwork", "converted from the web UI's")
    starts = {name.split(".", 1)[0] for name in tensors}
    if "model" in starts and any(name.startswith("model.diffusion_model.") for name in tensors):
        if starts & {"first_stage_model", "conditioner", "cond_stage_model", "text_encoders", "vae"}:
            return Recognized("checkpoint", "one file, original names")
        return Recognized("unet", "original names, without text encoder and VAE")
    if "control_model" in starts:
        return Recognized("controlnet", "original names")
    if starts & {"controlnet_cond_embedding", "controlnet_down_blocks", "input_hint_block"}:
        return Recognized(
            "controlnet", "diffusers" if "controlnet_cond_embedding" in starts else "original names"
        )
    bare = {name.removeprefix("first_stage_model.") for name in tensors}
    if {"encoder.conv_in.weight", "decoder.conv_in.weight"} & bare:
        is_diffusers = any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in bare)
        return Recognized("vae", "diffusers" if is_diffusers else "original names")
    if starts & {"down_blocks", "up_blocks"}:
        return Recognized("unet", "diffusers")
    if starts & {"input_blocks", "double_blocks", "joint_blocks", "transformer_blocks"}:
        return Recognized("unet", "diffusers" if "transformer_blocks" in starts else "original names")
    if starts & {"text_model", "transformer", "text_projection", "token_embedding", "encoder"} and any(
        re.search(r"(?:^|\.)(?:token_embedding\.weight|embed_tokens\.weight|shared\.weight)$", n)
        for n in tensors
    ):
        return Recognized("text encoder", "transformers" if "text_model" in starts else "original names")
    return Recognized("unknown", f"{len(tensors)} tensors" if tensors else "no tensors")


def _recognize_embedding(tensors: Tensors) -> Recognized | None:
    if pair := find_pair(tensors):
        vectors = max(_rows(tensors[name]) for name in pair.names)
        words = f"SDXL embedding ({pair.writer})"
        return Recognized("embedding", words, tokens=_number_tokens(vectors), vectors=vectors)
    if len(tensors) != 1:
        return None
    ((name, tensor),) = tensors.items()
    rows = _rows(tensor)
    if name in HALVES:
        words = f"half an SDXL embedding ({name} only)"
        return Recognized("embedding", words, tokens=_number_tokens(rows), vectors=rows)
    if name == KOHYA_ROWS:
        return Recognized("embedding", f"kohya embedding ({KOHYA_ROWS})", vectors=rows)
    if name.startswith(A1111_ROWS):
        return Recognized("embedding", f"A1111 embedding ({A1111_ROWS})", vectors=rows)
    is_wide = tensor.shape and tensor.shape[-1] in TEXT_WIDTHS
    if "." not in name and is_wide and 1 <= rows <= MAX_EMBEDDING_ROWS:
        return Recognized("embedding", "diffusers embedding", tokens=(name,), vectors=rows)
    return None


def _number_tokens(rows: int) -> tuple[str, ...]:
    return number_tokens(min(rows, MAX_NAMED_ROWS))


def _rows(tensor: TensorInfo) -> int:
    return tensor.shape[0] if len(tensor.shape) == 2 else 1


def _bundled_tokens(layout: AdapterLayout, tensors: Tensors) -> tuple[str, ...]:
    """Return the tokens that the embeddings bundled with a LoRA bring, in the order of their rows."""
    rows = {
        split_bundled(name)[0]: min(_rows(tensors[name]), MAX_NAMED_ROWS)
        for name in layout.left_over
        if is_bundled(name)
    }
    return name_bundled_tokens(rows)
