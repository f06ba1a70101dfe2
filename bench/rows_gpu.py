"""On a GPU: full-size SDXL with random weights in fp16, 1024x1024, 25 steps, CFG, the LoRA at 0.7.

Random weights take as long as trained ones. Without CUDA these rows are "not measured".
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch

from bench import peers
from bench.figures import Figure, Row, interleave
from bench.ours import Ours, find_peer_files, load_ours
from bench.pictures import order_topology
from bench.processes import run_module
from bench.topology import MODEL, REAL, Shape, write_project
from tilemix.pipelines.speed import Speed

TERA_PER_STEP = (
    13.522  # operations of a CFG step at 1024x1024, 2 x multiply-add: convolutions, products, attention
)
TITLE = "GPU, SDXL in its real size"


def list_unmeasured() -> list[Row]:
    """Return the rows for a machine without a GPU."""
    return [
        Row(
            "G1",
            f"{TITLE}: prompt to PNG",
            (
                Figure("N / ours", None, "x", at_least=2.5),
                Figure("S / ours", None, "x", at_least=1.1),
                Figure("ours", None, "s", at_most=0.85),
            ),
        ),
        Row("G2", f"{TITLE}: UNet loop", (Figure("rate", None, "TFLOP/s", at_least=425),)),
        Row(
            "G3",
            f"{TITLE}: the rest",
            (
                Figure("share that is not UNet", None, "%", at_most=7),
                Figure("VAE decode", None, "ms", at_most=30),
            ),
        ),
        Row("G4", f"{TITLE}: warm start of compiled code", (Figure("warm / cold", None, "x", at_most=0.2),)),
    ]


def measure_gpu(
    root: Path,
    shape: Shape = REAL,
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.float16,
    side: int = 1024,
    steps: int = 25,
    rounds: int = 5,
) -> list[Row]:
    """Rows G1 to G4. Arguments other than the defaults are for trying the code without such a GPU."""
    torch.set_default_device(device)  # 3.5 billion random numbers take minutes on a CPU
    try:
        write_project(root, shape, dtype=dtype, side=side)
    finally:
        torch.set_default_device(None)
    files = find_peer_files(MODEL, root)
    starts = [_start_with_cache(root, root / "compiled") for _ in range(2)]
    ours = load_ours(MODEL, root, Speed.EQUIVALENT, device=device)
    if device == "cuda":
        ours.renderer.compile()
    naive = peers.load_naive(files, dtype=dtype, device=device)
    strong = peers.load_strong(files, dtype=dtype, device=device, compiled=device == "cuda")

    def order(number: int) -> peers.Order:
        return order_topology(number, side=side, steps=steps)

    best = {
        name: timing.best
        for name, timing in interleave(
            {
                name: partial(lambda number, predict: predict(order(number)), predict=one.predict)
                for name, one in (("N", naive), ("S", strong), ("ours", ours))
            },
            rounds,
            warm_ups=2,
        ).items()
    }
    del naive, strong
    loop, decode = (
        min(taken) for taken in zip(*(_time_parts(ours, order(n)) for n in range(rounds)), strict=True)
    )
    whole = best["ours"]
    figures = {
        "G1": (best["N"] / whole, best["S"] / whole, whole),
        "G2": (TERA_PER_STEP * steps / loop,),
        "G3": (100 * (whole - loop) / whole, 1e3 * decode),
        "G4": (starts[1] / starts[0],),
    }
    note = f"{torch.cuda.get_device_name() if device == 'cuda' else device}; {side}x{side}, {steps} steps, {dtype}"
    return [
        Row(
            row.key,
            row.title,
            tuple(
                Figure(one.name, value, one.unit, one.at_least, one.at_most)
                for one, value in zip(row.figures, figures[row.key], strict=True)
            ),
            notes=(note,),
        )
        for row in list_unmeasured()
    ]


def _time_parts(ours: Ours, order: peers.Order) -> tuple[float, float]:
    """Return the seconds of the UNet's loop and of the VAE's decoder; the GPU is synchronized only at their ends."""
    marks: list[float] = []
    steps = 0

    def mark(*_: object) -> None:
        if ours.ready.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    def begin_loop(*_: object) -> None:
        if not marks:
            mark()

    def end_step() -> None:
        nonlocal steps
        steps += 1
        if steps == order.steps:
            mark()

    pipeline = ours.ready.pipeline
    hooks = [
        pipeline.unet.register_forward_pre_hook(begin_loop),
        pipeline.vae.decoder.register_forward_pre_hook(mark),
        pipeline.vae.decoder.register_forward_hook(mark),
    ]
    try:
        ours.draw(order, on_step=end_step)
    finally:
        for hook in hooks:
            hook.remove()
    return marks[1] - marks[0], marks[3] - marks[2]


def _start_with_cache(root: Path, cache: Path) -> float:
    """Return the seconds from a process's start to its first picture, with compiled code cached in `cache`."""
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    told = run_module(
        "bench.cold_ours", root, MODEL, "--draw", "--compile", timeout=3600, environment=environment
    )
    return told["ready_at"] - told["started_at"]
