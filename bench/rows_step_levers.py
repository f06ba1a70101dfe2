"""The levers of the denoising step, each measured with and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from bench import peers
from bench.figures import (
    Figure,
    Row,
    count_within_one,
    exact_gate,
)
from bench.ours import Ours, find_peer_files, load_ours, replaced
from bench.pictures import order_topology
from bench.steps import count_operations, time_steps
from bench.topology import LORA_SCALE, MODEL
from tilemix.pipelines.speed import Speed

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline


EAGER = "from bench.cold_ours import import_needed_parts; import_needed_parts()"


def measure_step_levers(root: Path, rounds: int = 3) -> list[Row]:
    """Five levers of the denoising step, on the topology in fp32, each undone alone."""
    ours, wrapped, stock, apart, again = (load_ours(MODEL, root, Speed.EXACT) for _ in range(5))
    files = find_peer_files(MODEL, root)
    for one, undone in ((wrapped, ""), (stock, ""), (apart, "attn1.processor"), (again, "attn2.processor")):
        take_own_attention(one, undone)
    pipe = cast("StableDiffusionXLPipeline", wrapped.pipeline)
    peers.load_lora(pipe, files.only_lora)
    pipe.set_adapters([peers.ADAPTER], [LORA_SCALE])
    order = order_topology(0)

    def draw(
        on_step: Callable[[], None],
        *,
        by: Ours,
        scale: float | None = None,
        undo: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> np.ndarray:
        with undo():
            return by.draw(order, on_step=on_step, lora_scale=scale).pixels

    without_inference_mode = partial(replaced, torch, "inference_mode", torch.no_grad)
    two_calls = partial(replaced, stock.pipeline.unet, "forward", split_batch(stock))
    draws = {
        "ours": partial(draw, by=ours),
        "wrapped": partial(draw, by=wrapped, scale=0.0),  # nothing merged: PEFT's wrappers add the LoRA
        "stock": partial(draw, by=stock),
        "apart": partial(draw, by=apart),
        "again": partial(draw, by=again),
        "no_grad": partial(draw, by=ours, undo=without_inference_mode),
        "two calls": partial(draw, by=stock, undo=two_calls),
    }
    pictures = {name: one(lambda: None) for name, one in draws.items()}
    seconds = time_steps(draws, rounds)
    operations = {name: count_operations(one).computing for name, one in draws.items()}

    def make_row(key: str, title: str, without: str, kept: str = "ours") -> Row:
        figures = [Figure("without / with", seconds[without] / seconds[kept], "x")]
        if operations[without] != operations[kept]:
            figures.append(Figure("operations without / with", operations[without] / operations[kept], "x"))
        gate = exact_gate("same picture", [count_within_one(pictures[without], pictures[kept])])
        return Row(key, title, tuple(figures), (gate,))

    return [
        make_row(
            "L1", "LoRA merged into the weights; without: PEFT's wrappers beside them", "wrapped", "stock"
        ),
        make_row("L2", "The text's keys and values kept over the steps; without: computed in each", "again"),
        make_row("L3", "Both halves of CFG in one batch; without: two calls", "two calls", "stock"),
        make_row("L4", "inference_mode; without: no_grad", "no_grad"),
        make_row("L13", "Query, key and value from one product; without: from three", "apart"),
    ]


def take_own_attention(ours: Ours, ending: str) -> None:
    """Restore diffusers' own processor in the attentions whose names end with `ending`."""
    unet = ours.pipeline.unet
    unet.set_attn_processor(
        {
            name: AttnProcessor2_0() if name.endswith(ending) else processor
            for name, processor in unet.attn_processors.items()
        }
    )


def split_batch(ours: Ours) -> Callable[..., object]:
    """Return a forward of the UNet that runs the halves of its batch one after the other."""
    forward = ours.pipeline.unet.forward

    def run(sample: torch.Tensor, timestep: object, *args: object, **kwargs: object) -> object:
        halves = [
            forward(
                sample[half : half + 1],
                timestep,
                *(_take(one, half) for one in args),
                **{name: _take(one, half) for name, one in kwargs.items()},
            )
            for half in range(2)
        ]
        if isinstance(halves[0], tuple):
            return (torch.cat([half[0] for half in halves]),)
        return type(halves[0])(sample=torch.cat([half.sample for half in halves]))

    return run


def _take(value: object, half: int) -> object:
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == 2:
        return value[half : half + 1]
    if isinstance(value, Mapping):
        return {name: _take(one, half) for name, one in value.items()}
    return value
