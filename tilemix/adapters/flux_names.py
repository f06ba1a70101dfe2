"""How LoRA files name the modules of a Flux transformer in other ways than diffusers does.

The original model computes query, key and value with one matrix, and in its single blocks the first layer of the
feed-forward network too. diffusers has a matrix for each, so one module of a file is several modules here, each with
some of its rows.

Sources: the key names of the published checkpoints and of XLabs' LoRAs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Parts = list[
    tuple[str, tuple[slice, ...] | None]
]  # a module's path, and which rows of the file's it has; None: all

QKV, ADDED_QKV = (
    tuple(f"attn.{name}" for name in names)
    for names in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
)
# A module of the original model -> the modules that have its rows, in their order.
DOUBLE_BLOCK = {
    "img_attn.qkv": QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ADDED_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    # XLabs' processors
    "processor.qkv_lora1": QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": ADDED_QKV,
    "processor.proj_lora2": ("attn.to_add_out",),
}
SINGLE_BLOCK = {
    "linear1": (*QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    # XLabs' processors
    "processor.qkv_lora": QKV,
    "processor.proj_lora": ("proj_out",),
}
BLOCKS = (
    ("double_blocks", "transformer_blocks", DOUBLE_BLOCK),
    ("single_blocks", "single_transformer_blocks", SINGLE_BLOCK),
)
TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
} | {
    f"{original}.{layer}": f"time_text_embed.{name}.{linear}"
    for original, name in (
        ("time_in", "timestep_embedder"),
        ("vector_in", "text_embedder"),
        ("guidance_in", "guidance_embedder"),
    )
    for layer, linear in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
}
LAST_NORM = (
    "final_layer.adaLN_modulation.1",
    "norm_out.linear",
)  # shift and scale there, scale and shift here


def name_original_modules(transformer: nn.Module) -> Iterator[tuple[str, Parts]]:
    """Yield the path that each module has in the original model, or at XLabs, and what it is here."""
    rows = {name: len(module.weight) for name, module in _list_linear(transformer)}
    for original, name in TOP.items():
        if name in rows:  # schnell has no guidance
            yield original, [(name, None)]
    for original, blocks, table in BLOCKS:
        for number, _ in enumerate(getattr(transformer, blocks)):
            for module, names in table.items():
                paths = [f"{blocks}.{number}.{name}" for name in names]
                yield f"{original}.{number}.{module}", _share_rows(paths, [rows[path] for path in paths])
    original, name = LAST_NORM
    half = rows[name] // 2
    yield original, [(name, (slice(half, 2 * half), slice(0, half)))]


def _share_rows(paths: Sequence[str], counts: Sequence[int]) -> Parts:
    if len(paths) == 1:
        return [(paths[0], None)]
    ends = pairwise(accumulate(counts, initial=0))
    return [(path, (slice(start, end),)) for path, (start, end) in zip(paths, ends, strict=True)]


def _list_linear(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    from torch import nn

    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module
