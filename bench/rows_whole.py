"""Rows 6 to 9: the process and the whole prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bench import peers
from bench.figures import (
    Figure,
    Row,
    count_within_one,
    equal_gate,
    equivalent_gate,
    exact_gate,
    interleave,
    measure_psnr,
)
from bench.image_packages import link_image_packages
from bench.ours import find_peer_files, load_ours
from bench.pictures import order_tile
from bench.topology import MODEL, Shape, write_project
from tilemix.pictures.files import encode_image
from tilemix.pictures.measure import measure_shares
from tilemix.pictures.record import png_chunks
from tilemix.pipelines.speed import Speed
from tilemix.prompts.mix import parse_mix
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from bench.ours import Ours

WIDE = Shape(widths=(96, 192, 384), heads=(3, 6, 12))  # 0.9 GB in fp32
CPU_ALONE = {"CUDA_VISIBLE_DEVICES": ""}
MIX = "50% red, 50% black"
BLOCK = 8 * 2**20
WARM_UP_STEPS = 4  # of a picture that is not timed
WARM_PART = 3  # the first third of the predictions may still fill what is kept
MEMORY_GROWTH = 16.0  # MB; an allocator's own ups and downs


def run_module(
    module: str,
    *arguments: object,
    timeout: float = 600,
    environment: Mapping[str, str] = CPU_ALONE,
    packages: Path | None = None,
) -> dict[str, float]:
    """Run `python -m module` from the project's folder and return the JSON of its last line, with its `started_at`.

    `packages` is a folder of packages in the place of the environment's own.
    """
    own = ["-S"] if packages else []  # no site-packages
    path = os.pathsep.join([str(ROOT), *([str(packages)] if packages else [])])
    started_at = time.monotonic()
    done = subprocess.run(  # noqa: S603
        [sys.executable, *own, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"started_at": started_at}


def time_starts(
    starts: Mapping[str, Callable[[], dict[str, float]]], rounds: int, *, warm_ups: Iterable[str]
) -> dict[str, float]:
    """Return each start's least seconds from its process to ready, over `rounds` in turn.

    Those named in `warm_ups` run once before, to fill the page cache and Python's own for all.
    """
    for name in warm_ups:
        starts[name]()
    best = dict.fromkeys(starts, float("inf"))
    for _ in range(rounds):
        for name, start in starts.items():
            told = start()
            best[name] = min(best[name], told["ready_at"] - told["started_at"])
    return best


def measure_cold_start(root: Path, image: Path, rounds: int = 2) -> list[Row]:
    """Row 6, the time: from the start of the process to ready, files in the page cache; and its own lever.

    `image` is an empty folder, for the packages that the image has.
    """
    files = find_peer_files(MODEL, root)
    link_image_packages(image)
    starts = {
        "N": partial(run_module, "bench.cold_naive", files.base, files.lora, files.lora_scale),
        "ours": partial(run_module, "bench.cold_ours", root, MODEL),
        "ours in the image": partial(run_module, "bench.cold_ours", root, MODEL, packages=image),
        "imports": partial(run_module, "bench.cold_ours", root, MODEL, "--imports"),
        "collected": partial(run_module, "bench.cold_ours", root, MODEL, "--collect"),
    }
    best = time_starts(starts, rounds, warm_ups=("N", "ours", "ours in the image"))
    start = Row(
        "6",
        "Cold start: start of the process to ready, tiny weights",
        (
            Figure("ours / N", best["ours"] / best["N"], "x", at_most=0.6),
            Figure("ours with the image's packages / N", best["ours in the image"] / best["N"], "x"),
            Figure("the libraries' imports alone / N", best["imports"] / best["N"], "x"),
            Figure("N", best["N"], "s"),
            Figure("ours", best["ours"], "s"),
        ),
        notes=("the image has no peft and no scipy, which diffusers imports where they are",),
    )
    lever = Row(
        "L14",
        "Cold start with the garbage collector still; without: as it is",
        (Figure("without / with", best["collected"] / best["ours"], "x"),),
    )
    return [start, lever]


def measure_weights(root: Path, narrow: Path, rounds: int = 3) -> list[Row]:
    """Row 6, the weights: how fast 0.9 GB are read, beside a plain sequential read, and the peak of memory.

    `root` and `narrow` are empty folders: for the wide model, and for the same one in the topology's own widths,
    whose load and whose memory are taken off, so that what is left is the weights'. And the levers of it.
    """
    write_project(root, WIDE, lora=False)
    plain = write_project(narrow, lora=False)
    wide_files, narrow_files = (sorted(one.rglob("*.safetensors")) for one in (root, plain))
    wide_bytes, narrow_bytes = (
        sum(file.stat().st_size for file in some) for some in (wide_files, narrow_files)
    )
    loads = {
        "wide": (root, wide_files, ()),
        "narrow": (plain, narrow_files, ()),
        "late": (root, wide_files, ("--late",)),
        "mapped": (root, wide_files, ("--mapped",)),
    }
    best = dict.fromkeys(("read", *loads), float("inf"))
    peaks = dict.fromkeys(loads, 0.0)
    for _ in range(rounds):
        evict(wide_files)
        began = time.monotonic()
        for file in wide_files:
            read_through(file)
        best["read"] = min(best["read"], time.monotonic() - began)
        for name, (folder, files, options) in loads.items():
            evict(files)
            told = run_module("bench.cold_ours", folder, MODEL, *options)
            best[name] = min(best[name], told["load"])
            peaks[name] = max(peaks[name], told["peak_bytes"])
    weights_bytes = wide_bytes - narrow_bytes
    read_rate = wide_bytes / best["read"]
    took = max(best["wide"] - best["narrow"], 1e-3)

    def find_peak(name: str) -> float:
        return (peaks[name] - peaks["narrow"]) / weights_bytes

    weights = Row(
        "6w",
        f"Weights of {wide_bytes / 1e9:.2f} GB, out of the page cache: read rate and peak of memory",
        (
            Figure("of a sequential read", 100 * weights_bytes / took / read_rate, "%", at_least=80),
            Figure("peak / weights", find_peak("wide"), "x", at_most=1.15),
            Figure("sequential read", read_rate / 1e9, "GB/s"),
            Figure("ours", best["wide"], "s"),
        ),
        notes=("the load and the memory of the same model with narrow weights are taken off",),
    )
    ahead = Row(
        "L16",
        "Those weights read ahead while the libraries are imported; without: when they are loaded",
        (Figure("without / with", best["late"] / best["wide"], "x"),),
    )
    streamed = Row(
        "L17",
        "Those weights' UNet read tensor by tensor, each in its dtype; without: the file mapped",
        (
            Figure("without / with", best["mapped"] / best["wide"], "x"),
            Figure("peak / weights without", find_peak("mapped"), "x"),
        ),
    )
    return [weights, ahead, streamed]


def evict(files: list[Path]) -> None:
    """Ask the system to drop files from its page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(file: Path) -> None:
    """Read a file from its beginning to its end into one buffer."""
    buffer = bytearray(BLOCK)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def measure_predictions(
    meanwhile: Future[Row], rounds: int = 3, *, side: int = 512, steps: int = 25
) -> list[Row]:
    """Rows 7 and 8: prompt to PNG with the miniature, and what of it is neither UNet nor VAE.

    Nothing is timed before `meanwhile` is done; until then the networks are compiled.
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
        except Exception as error:  # noqa: BLE001 the compiler's errors are many, and the peer's own
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
    """Row 8: what of a prediction is neither UNet nor VAE; and apart, the record and the measuring of the colors."""
    mix = parse_mix(MIX).mix
    assert mix is not None
    best = dict.fromkeys(("share", "record", "colors"), float("inf"))
    for number in range(100, 100 + rounds):
        order = order_tile(number, side=side, steps=steps)
        with clock_networks(ours.ready.pipeline) as spans:
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
def clock_networks(pipeline: object) -> Iterator[list[float]]:
    """Yield a list that gets the seconds of every run of the UNet and of the VAE's decoder."""
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


def measure_steadiness(root: Path, count: int = 1000) -> Row:
    """Row 9: many predictions in one process of their own, of one thread of torch beside whatever else runs.

    `root` holds a tiny model.
    """
    environment = {**CPU_ALONE, "OMP_NUM_THREADS": "1"}
    told: Mapping[str, list] = run_module("bench.steady", root, MODEL, count, environment=environment)
    samples = told["samples"][len(told["samples"]) // WARM_PART :]
    first, last = samples[0], samples[-1]
    growth = (last["memory_bytes"] - first["memory_bytes"]) / 1e6
    return Row(
        "9",
        f"{count} predictions in one process",
        (
            Figure("memory", growth, "MB more", at_most=MEMORY_GROWTH),
            Figure("resident at the end", last["memory_bytes"] / 1e6, "MB"),
        ),
        (
            equal_gate("open files", is_equal=last["files"] <= first["files"]),
            equal_gate("threads", is_equal=last["threads"] <= first["threads"]),
            equal_gate("first and last picture of one request", is_equal=len(set(told["hashes"])) == 1),
        ),
        (f"from prediction {first['predictions']} on: prompts, seeds, LoRA scales and formats change",),
    )
