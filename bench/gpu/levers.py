"""Each lever on our networks, with and without it, in one process: what it gains, and what it does to a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.figures import Figure, Row, measure_psnr
from bench.gpu import changes
from bench.gpu.speed import compiling
from bench.gpu.timing import PictureTimes, take_medians, time_picture

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

    from bench.gpu.workshop import Workshop
    from bench.ours import Ours

Change = Callable[["Ours"], AbstractContextManager[None]]


REFUSAL = re.compile("No (available kernel|viable backend)")  # as torch 2.11 and 2.13 say it
BACK_ENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


@dataclass(frozen=True, slots=True)
class Lever:
    """A change of how our networks run."""

    key: str
    title: str
    change: Change
    takes_away: bool = False  # it is how they run anyway, and the change is to do without
    also: Change | None = None  # what both sides have


def measure_lever(shop: Workshop, lever: Lever) -> list[Row]:
    """Measure plain, changed, plain; the faster of the plain ones counts, so a warmer card gains nothing."""
    ours = shop.ours

    def take() -> tuple[PictureTimes, NDArray[uint8]]:
        order = shop.order(0, steps=shop.size.lever_steps)
        pixels = ours.draw(order).pixels  # warms up, or compiles
        return take_medians([time_picture(ours, order) for _ in range(shop.size.few_rounds)]), pixels

    with compiling(shop.device), lever.also(ours) if lever.also else nullcontext():
        first, reference = take()
        with lever.change(ours):
            changed, pixels = take()
        last, _ = take()
    plain = PictureTimes(*(min(getattr(first, part), getattr(last, part)) for part in PictureTimes.__slots__))
    without, with_it = (changed, plain) if lever.takes_away else (plain, changed)
    steps = shop.size.lever_steps
    return [
        Row(
            lever.key,
            lever.title,
            (
                Figure("step, without / with", without.loop / with_it.loop, "x"),
                Figure("step with it", 1e3 * with_it.loop / steps, "ms"),
                Figure("decode, without / with", without.decode / with_it.decode, "x"),
                Figure("PSNR, with and without", measure_psnr(pixels, reference), "dB"),
            ),
        )
    ]


def measure_back_ends(shop: Workshop) -> list[Row]:
    """Measure each implementation of attention that the device has."""
    rows = []
    for name in BACK_ENDS:
        title = f"Attention: {name}"
        if reason := find_refusal(shop, name):
            rows.append(
                Row(f"A-{name[0]}", title, (Figure("step, without / with", None, "x"),), notes=(reason,))
            )
        else:
            rows += measure_lever(shop, Lever(f"A-{name[0]}", title, partial(changes.back_end, name=name)))
    return rows


def find_refusal(shop: Workshop, name: str) -> str | None:
    """Return why the device has no such implementation of attention for our pictures; None where it has."""
    try:
        with changes.back_end(shop.ours, name=name):
            shop.ours.draw(shop.order(0, steps=1))
    except RuntimeError as error:
        if not REFUSAL.search(str(error)):
            raise
        return str(error).splitlines()[0]
    return None


# The most promising first.
LEVERS = {
    "graph": Lever("L-graph", "The UNet as a CUDA graph", changes.graphed),
    "regions": Lever("L-regions", "Repeated blocks compiled", changes.compiled_regions),
    "decoder": Lever("L-decoder", "VAE decoder compiled", changes.compiled_decoder),
    "convolutions": Lever("L-convolutions", "cuDNN's own search", changes.searched_convolutions),
    "channels-last": Lever("L-channels", "channels_last", changes.contiguous, takes_away=True),
    "projections": Lever(
        "L-projections", "Fused projections, the text's keys once", changes.plain_attention, takes_away=True
    ),
    "fp8": Lever(
        "L-fp8", "FP8, where repeated blocks are compiled", changes.in_fp8, also=changes.compiled_regions
    ),
}
