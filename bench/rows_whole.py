"""Rows 7 and 8: the whole prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bench import peers
from bench.figures import (
    Figure,
    Row,
    count_within_one,
    equivalent_gate,
    exact_gate,
    interleave,
    measure_psnr,
)
from bench.ours import find_peer_files, load_ours
from bench.pictures import order_tile
from tilemix.pictures.files import encode_image
from tilemix.pictures.measure import measure_shares
from tilemix.pictures.record import png_chunks
from tilemix.pipelines.speed import Speed
from tilemix.prompts.mix import parse_mix
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from bench.ours import Ours
    from tilemix.pipelines.sdxl import SdxlPipeline

MIX = "50% red, 50% black"
WARM_UP_STEPS = 4  # of a picture that is not timed


def measure_predictions(
    meanwhile: Future[Row], rounds: int = 3, *, side: int = 512, steps: int = 25
) -> list[Row]:
    """Rows 7 and 8: from prompt to PNG with the miniature, and the part that is neither UNet nor VAE.

    The networks are compiled while `meanwhile` runs; timing starts when it is done.
    """
    files = find_peer_files("miniature", ROOT)
    naive = peers.load_naive(files)
    exact, equivalent = (
        load_ours("miniature", ROOT, Speed.EXACT),
        load_ours("miniature", ROOT, Speed.EQUIVALENT),
    )
    pictures: dict[str, dict[int, bytes]] = {}

    def keep(name: str, predict: Callable[[peers.Order], bytes]) -> Callable[[int], None]:
        def run(number: int) -> None:
            order = order_tile(number, side=side, steps=steps if number else WARM_UP_STEPS)
            pictures.setdefault(name, {})[number] = predict(order)

        return run

    variants = {
        "N": keep("N", naive.predict),
        "exact": keep("exact", exact.predict),
        "equivalent": keep("equivalent", equivalent.predict),
    }
    dtype = equivalent.ready.dtype
    notes = [
        f"N in fp32, equivalent and S in {str(dtype).removeprefix('torch.')}; {steps} steps, {side}x{side}"
    ]
    if peers.find_cxx_compiler() is None:
        notes.append("compiled and S not measured: torch.compile needs a C++ compiler, and there is none")
    else:
        began = time.perf_counter()
        compiled = load_ours("miniature", ROOT, Speed.EQUIVALENT)
        compiled.renderer.compile(side=side)
        notes.append(f"ours compiled for {time.perf_counter() - began:.0f} s")
        variants["compiled"] = keep("compiled", compiled.predict)
        began = time.perf_counter()
        try:
            strong = peers.load_strong(files, dtype=dtype, compiled=True)
            strong.predict(order_tile(0, side=side, steps=1))
        except Exception as error:  # noqa: BLE001 the compiler raises many kinds of errors
            notes.append(f"S not measured: torch.compile failed: {type(error).__name__}")
        else:
            notes.append(f"S compiled for {time.perf_counter() - began:.0f} s before its first picture")
            variants["S"] = keep("S", strong.predict)
    wait([meanwhile])
    best = {name: timing.best for name, timing in interleave(variants, rounds).items()}
    pixels = {
        name: [np.asarray(Image.open(BytesIO(file)).convert("RGB")) for file in files_of.values()]
        for name, files_of in pictures.items()
    }
    within_one = [count_within_one(*pair) for pair in zip(pixels["exact"], pixels["N"], strict=True)]
    gates = [exact_gate("exact against N", within_one)]
    for name in ("equivalent", "compiled"):
        if name in pixels:
            pairs = zip(pixels[name], pixels["exact"], strict=True)
            gates.append(equivalent_gate(f"{name} against exact", [measure_psnr(*pair) for pair in pairs]))

    def over(peer: str, name: str) -> float | None:
        return best[peer] / best[name] if peer in best and name in best else None

    whole = Row(
        "7",
        f"Whole prediction, prompt to PNG, miniature {side}x{side}, {steps} steps",
        (
            Figure("equivalent: N / ours", over("N", "equivalent"), "x", at_least=1.7),
            Figure("equivalent, compiled: S / ours", over("S", "compiled"), "x", at_least=1.1),
            Figure("equivalent: S / ours", over("S", "equivalent"), "x"),
            Figure("exact: N / ours", over("N", "exact"), "x", at_least=1.25),
            *(Figure(name, seconds, "s") for name, seconds in best.items()),
        ),
        tuple(gates),
        tuple(notes),
    )
    lever = Row(
        "L15",
        "The networks compiled, which is off unless asked for; without: plain modules",
        (Figure("without / with", over("equivalent", "compiled"), "x"),),
        tuple(gates[2:]),
    )
    return [whole, lever, *measure_rest(equivalent, side=side, steps=steps)]


def measure_rest(ours: Ours, rounds: int = 2, *, side: int, steps: int) -> list[Row]:
    """Row 8: the part of a prediction that is neither UNet nor VAE; and separately, the record and measuring colors."""
    mix = parse_mix(MIX).mix
    assert mix is not None
    best = dict.fromkeys(("share", "record", "colors"), float("inf"))
    for number in range(100, 100 + rounds):
        order = order_tile(number, side=side, steps=steps)
        with clock_networks(ours.pipeline) as spans:
            began = time.perf_counter()
            rendered = ours.draw(order)
            encode_image(rendered.pixels, rendered.record, output_format="png")
            took = time.perf_counter() - began
        began = time.perf_counter()
        png_chunks(rendered.record)
        recorded = time.perf_counter()
        measure_shares(rendered.pixels, mix)
        measured = time.perf_counter()
        taken = {
            "share": (took - sum(spans)) / took,
            "record": recorded - began,
            "colors": measured - recorded,
        }
        best = {name: min(best[name], seconds) for name, seconds in taken.items()}
    return [
        Row(
            "8",
            "Everything that is neither UNet nor VAE, of a whole prediction",
            (Figure("share", 100 * best["share"], "%", at_most=3),),
            notes=("a new prompt each time; the record is within the time, measuring the colors is not",),
        ),
        Row(
            "8r",
            "The record, as part of row 8; measuring the colors, after the bytes",
            (Figure("record", 1e3 * best["record"], "ms"), Figure("colors", 1e3 * best["colors"], "ms")),
        ),
    ]


@contextmanager
def clock_networks(pipeline: SdxlPipeline) -> Iterator[list[float]]:
    """Yield a list that collects the seconds of every run of the UNet and of the VAE's decoder."""
    spans: list[float] = []

    def begin(*_: object) -> None:
        spans.append(-time.perf_counter())

    def end(*_: object) -> None:
        spans[-1] += time.perf_counter()

    hooks = [
        hook
        for module in (pipeline.unet, pipeline.vae.decoder)
        for hook in (module.register_forward_pre_hook(begin), module.register_forward_hook(end))
    ]
    try:
        yield spans
    finally:
        for hook in hooks:
            hook.remove()
