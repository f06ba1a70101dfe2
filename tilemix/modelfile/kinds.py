"""What a model file is, told from the names and shapes in its header: kind, format, base model.

Nothing here trusts the file's name or its metadata alone: shapes go first, and where the metadata says
otherwise, that is reported.

Sources: the key names of the published checkpoints and of the converters of diffusers; the block tables of
SDXL's and Stable Diffusion's configurations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tilemix.modelfile.adapter_layout import AdapterLayout, read_layout

if TYPE_CHECKING:
    from tilemix.modelfile.header import Header, TensorInfo

Kind = Literal[
    "lora", "embedding", "checkpoint", "vae", "unet", "text encoder", "controlnet", "diffusers", "unknown"
]
Tensors = Mapping[str, "TensorInfo"]

EMBEDDING_PAIRS = {
    ("clip_l", "clip_g"): "SDXL embedding (clip_l, clip_g)",
    ("text_encoders_0", "text_encoders_1"): "SDXL embedding (cog-sdxl)",
}
HALF_EMBEDDINGS = {name for pair in EMBEDDING_PAIRS for name in pair}
EMBEDDING_BASES = {768: "SD 1", 1024: "SD 2", 1280: "SDXL, second text encoder only"}
MAX_EMBEDDING_ROWS = 512


@dataclass(frozen=True, slots=True)
class Recognized:
    """What a header's names and shapes say."""

    kind: Kind
    format: str
    layout: AdapterLayout | None = None  # a LoRA's
    tokens: tuple[str, ...] = ()  # an embedding's placeholder tokens
    vectors: int | None = None  # how many rows an embedding has


def recognize(header: Header) -> Recognized:
    """Tell the kind and the format of a model file from its header. Never fails: "unknown" is an answer."""
    tensors = header.tensors
    if (layout := read_layout(tensors)) is not None:
        return Recognized("lora", layout.describe_format(), layout, tokens=_bundled_tokens(layout))
    if embedding := _recognize_embedding(tensors):
        return embedding
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
    names = set(tensors)
    for pair, words in EMBEDDING_PAIRS.items():
        if names == set(pair):
            vectors = max(_rows(tensors[name]) for name in pair)
            return Recognized("embedding", words, tokens=number_tokens(vectors), vectors=vectors)
    if len(names) == 1 and names <= HALF_EMBEDDINGS:
        (name,) = names
        rows = _rows(tensors[name])
        words = f"half an SDXL embedding ({name} only)"
        return Recognized("embedding", words, tokens=number_tokens(rows), vectors=rows)
    if names == {"emb_params"}:
        return Recognized("embedding", "kohya embedding (emb_params)", vectors=_rows(tensors["emb_params"]))
    if len(names) == 1:
        ((name, tensor),) = tensors.items()
        if name.startswith("string_to_param"):
            return Recognized("embedding", "A1111 embedding (string_to_param)", vectors=_rows(tensor))
        rows = _rows(tensor)
        if (
            "." not in name
            and tensor.shape
            and tensor.shape[-1] in EMBEDDING_BASES
            and 1 <= rows <= MAX_EMBEDDING_ROWS
        ):
            return Recognized("embedding", "diffusers embedding", tokens=(name,), vectors=rows)
    return None


def number_tokens(count: int) -> tuple[str, ...]:
    """Return the names that learned tokens have by custom: <s0>, <s1>, ... At most 64 of them."""
    return tuple(f"<s{i}>" for i in range(min(count, 64)))


def _rows(tensor: TensorInfo) -> int:
    return tensor.shape[0] if len(tensor.shape) == 2 else 1


def _bundled_tokens(layout: AdapterLayout) -> tuple[str, ...]:
    """Return the tokens of `bundle_emb.TOKEN.clip_l` and `bundle_emb.TOKEN.string_to_param.*`, in order."""
    tokens = {
        name.split(".")[1]: None
        for name in layout.left_over
        if name.startswith("bundle_emb.") and name.count(".") >= 2
    }
    return tuple(tokens)
