"""The speed modes: what each gains over `exact`, and how its pictures differ."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from bench.figures import Figure, Gate, Row, equivalent_gate, measure_psnr
from bench.ours import load_ours
from bench.peers import Order
from bench.pictures import TILE_WORDS
from bench.tiles import SEED, Colors, draw_basic_mix
from tilemix.pipelines.speed import Speed
from tilemix.system.project import ROOT

SHARE_POINTS = 0.5  # allowed difference between the share errors of `equivalent` and `exact`


def measure_modes(mixes: int = 20, *, side: int = 256, steps: int = 25) -> list[Row]:
    """Draw the same mixes with the miniature in each mode in turn, and measure the pictures."""
    modes = {mode: load_ours("miniature", ROOT, mode) for mode in (Speed.EXACT, Speed.EQUIVALENT, Speed.FAST)}
    guidance_scale = modes[Speed.EXACT].ready.model.manifest.defaults.guidance_scale
    colors = {mode: Colors() for mode in modes}
    psnrs: dict[Speed, list[float]] = {mode: [] for mode in modes}
    seconds: dict[Speed, list[float]] = {mode: [] for mode in modes}
    for number in range(mixes):
        mix = draw_basic_mix(number)
        prompt = f"ohwx_rubber_tile <s0><s1>, {mix}, {TILE_WORDS}"
        order = Order(prompt, "", SEED + number, side, steps, guidance_scale)
        reference = None
        for mode, ours in modes.items():
            began = time.perf_counter()
            pixels = ours.draw(order).pixels
            seconds[mode].append(time.perf_counter() - began)
            reference = pixels if reference is None else reference
            psnrs[mode].append(measure_psnr(pixels, reference))
            colors[mode].add(mix, pixels)
    errors = {mode: one.mean_error for mode, one in colors.items()}
    return [
        _make_row(
            mode,
            psnrs[mode],
            errors,
            seconds,
            mixes,
            f"{side}x{side}, {steps} steps, {str(modes[mode].ready.dtype).removeprefix('torch.')}",
        )
        for mode in modes
    ]


def _make_row(
    mode: Speed,
    psnrs: list[float],
    errors: Mapping[Speed, float],
    seconds: Mapping[Speed, list[float]],
    mixes: int,
    size: str,
) -> Row:
    figures = [Figure("share error", errors[mode], "points")]
    gates: list[Gate] = []
    if mode != Speed.EXACT:
        figures = [
            Figure("exact / this", min(seconds[Speed.EXACT]) / min(seconds[mode]), "x"),
            Figure("PSNR, mean", float(np.mean(psnrs)), "dB"),
            Figure("PSNR, lowest", min(psnrs), "dB"),
            *figures,
        ]
    if mode == Speed.EQUIVALENT:
        difference = abs(errors[mode] - errors[Speed.EXACT])
        rule = f"less than {SHARE_POINTS:g} points"
        gates = [
            equivalent_gate("against exact", psnrs),
            Gate("share error against exact", f"{difference:.2f} points", rule, difference < SHARE_POINTS),
        ]
    return Row(f"M-{mode}", f"Mode {mode}: {mixes} mixes, miniature {size}", tuple(figures), tuple(gates))
