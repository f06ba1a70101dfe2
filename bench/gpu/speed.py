"""Speed on the device: ours, against the peers, in batches, and from a cold start."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from bench import peers
from bench.figures import Figure, Row, interleave
from bench.gpu import changes
from bench.gpu.rows import Card, fill_row
from bench.gpu.timing import (
    MemoryPeak,
    synchronize,
    take_medians,
    time_calls,
    time_picture,
    watch_memory,
)
from bench.ours import encode_order, replaced
from bench.processes import run_module
from bench.topology import MODEL
from tilemix.pictures.files import encode_image
from tilemix.pipelines.decoding import decode_latents

if TYPE_CHECKING:
    from bench.gpu.workshop import Workshop
    from bench.ours import Ours
    from bench.peers import Peer

BATCHES = (1, 2, 4)
COMPILED_START = 3600.0  # seconds that a start may take; the run's own time ends before


def measure_ours(shop: Workshop) -> list[Row]:
    """Rows G2, G3, G5 and G7: where the time of one picture goes, and its memory."""
    ours, size = shop.ours, shop.size
    time_picture(ours, shop.order(0))
    with watch_memory(shop.device) as peak:
        times = take_medians([time_picture(ours, shop.order(1 + n)) for n in range(size.rounds)])
    rendered = ours.draw(shop.order(0))
    png = time_calls(
        torch.device("cpu"),
        lambda: encode_image(rendered.pixels, rendered.record, output_format="png"),
        rounds=size.rounds,
    )
    order = shop.order(0)
    encoding = time_calls(
        shop.device,
        lambda: encode_order(ours.pipeline, order),
        rounds=size.rounds,
    )
    note = f"{size.side}x{size.side}, {size.steps} steps, {shop.dtype}; medians of {size.rounds}"
    return [
        fill_row("G2", [shop.find_rate(times.loop)], notes=[note]),
        fill_row("G3", [100 * (times.whole - times.loop) / times.whole, 1e3 * times.decode, 1e3 * png]),
        fill_row("G5", [_count_own_memory(shop, peak)]),
        fill_row("G7", [1e3 * encoding]),
    ]


def _count_own_memory(shop: Workshop, peak: MemoryPeak) -> float | None:
    """Return the gigabytes of our model and of what drawing adds, whatever else is on the card."""
    if peak.growth is None:
        return None
    pipeline = shop.ours.pipeline
    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    return (sum(storages.values()) + peak.growth) / 1e9


def measure_peers(shop: Workshop, card: Card) -> list[Row]:
    """Row G1: nobody's code is compiled."""
    shop.forget("truth")
    return [_compare(shop, "G1", card)]


def measure_regions(shop: Workshop, card: Card) -> list[Row]:
    """Row G1r: what compiles in seconds is compiled, by us and by S; the loop's rate with it."""
    try:
        with compiling(shop.device):
            peers.compile_regions(shop.strong)
            with changes.stacked(shop.ours):
                row = _compare(shop, "G1r", card)
                drawn = [time_picture(shop.ours, shop.order(n)) for n in range(shop.size.few_rounds)]
    finally:
        shop.forget("strong")  # the next one compiles it otherwise
    times = take_medians(drawn)
    rest = 100 * (times.whole - times.loop) / times.whole
    figures = (
        Figure("UNet loop", shop.find_rate(times.loop), "TFLOP/s", at_least=425),
        Figure("share that is not UNet", rest, "%", at_most=7),
        Figure("VAE decode", 1e3 * times.decode, "ms", at_most=30),
    )
    return [Row(row.key, row.title, (*row.figures, *figures), notes=row.notes)]


def measure_whole_networks(shop: Workshop, card: Card) -> list[Row]:
    """Row G1c: as TILEMIX_COMPILE and S's recipe compile them. Ours stays compiled: this part is the last one."""
    with compiling(shop.device):
        shop.ours.renderer.compile()
        peers.compile_strong(shop.strong)
        return [_compare(shop, "G1c", card)]


def compiling(device: torch.device) -> AbstractContextManager[object]:
    """Compile as torch does on a GPU; on a CPU run what is traced as it is, for writing code takes minutes."""
    if device.type == "cuda":
        return nullcontext()
    return replaced(torch, "compile", partial(torch.compile, backend="eager"))


def _compare(shop: Workshop, key: str, card: Card) -> Row:
    """Time the peers and ours in turn; the first rounds compile what is to be compiled."""

    def draw(number: int, *, by: Peer | Ours) -> None:
        by.predict(shop.order(number))

    variants: dict[str, Peer | Ours] = {"N": shop.naive, "S": shop.strong, "ours": shop.ours}
    timings = interleave(
        {name: partial(draw, by=one) for name, one in variants.items()},
        shop.size.few_rounds,
        warm_ups=shop.size.warm_ups,
    )
    seconds = {name: median(timing.seconds) for name, timing in timings.items()}
    whole = seconds["ours"]
    spread = ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
    return fill_row(key, [seconds["N"] / whole, seconds["S"] / whole, whole], card=card, notes=[spread])


def measure_batches(shop: Workshop) -> list[Row]:
    """Row G8: pictures drawn together."""
    figures = []
    for count in BATCHES:
        _draw_batch(shop, count)
        synchronize(shop.device)
        with watch_memory(shop.device) as peak:
            began = time.perf_counter()
            _draw_batch(shop, count)
            synchronize(shop.device)
            taken = time.perf_counter() - began
        figures.append(Figure(f"{count}: each", taken / count, "s"))
        figures.append(Figure(f"{count}: peak", _count_own_memory(shop, peak), "GB"))
    return [Row("G8", "Pictures drawn together, without their PNGs", tuple(figures))]


def _draw_batch(shop: Workshop, count: int) -> None:
    order, pipeline = shop.order(0), shop.ours.pipeline
    pipeline.scheduler = shop.ours.ready.make_scheduler()
    side = order.side // 8
    noise = torch.randn((count, 4, side, side), generator=torch.Generator("cpu").manual_seed(0))
    with torch.inference_mode(), shop.ours.base.text_keys.kept():
        conditioning = encode_order(pipeline, order)
        latents = pipeline(
            **conditioning,
            latents=noise.to(shop.device),
            num_images_per_prompt=count,
            width=order.side,
            height=order.side,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance_scale,
            output_type="latent",
        ).images
    for one in latents.split(1):
        decode_latents(pipeline.vae, one)


def measure_start(shop: Workshop) -> list[Row]:
    """Row G4: from the start of a process to its first picture, without and with what torch keeps of a compilation."""
    shop.forget("truth")
    options = ["--draw", "--compile"] if shop.device.type == "cuda" else ["--draw"]
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(shop.folder / "compiled")}
    cold, warm = (
        run_module(
            "bench.cold_ours", shop.root, MODEL, *options, timeout=COMPILED_START, environment=environment
        )
        for _ in range(2)
    )
    taken = [told["ready_at"] - told["started_at"] for told in (cold, warm)]
    return [fill_row("G4", [taken[1] / taken[0], *taken])]
