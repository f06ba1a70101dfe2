"""Rows 6 and 9, each measured in processes of their own: the cold start, the weights, a thousand predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from bench.figures import Figure, Row, equal_gate
from bench.image_packages import link_image_packages
from bench.ours import find_peer_files
from bench.processes import CPU_ALONE, evict, read_last_line, read_through, run_module
from bench.steady import Steadiness
from bench.topology import MODEL, Shape, write_project

WIDE = Shape(widths=(96, 192, 384), heads=(3, 6, 12))  # 0.9 GB in fp32
WARM_PART = 3  # the first third of the predictions may still fill caches
MEMORY_GROWTH = 16.0  # MB; normal fluctuation of the allocator


def time_starts(
    starts: Mapping[str, Callable[[], dict[str, float]]], rounds: int, *, warm_ups: Iterable[str]
) -> dict[str, float]:
    """Return the minimum seconds of each start, from process start to ready, over `rounds` rounds in turn.

    The starts in `warm_ups` run once before, to fill the page cache and Python's bytecode cache for all.
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
    """Row 6, the time from process start to ready, with the files in the page cache; and its lever.

    `image` is an empty folder, to be filled with the image's packages.
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
    """Row 6, the weights: how fast 0.9 GB are read against a sequential read, and the peak memory; and its levers.

    `root` and `narrow` are empty folders, for the wide model and for the same model in the topology's own widths.
    The narrow one's time and memory are subtracted, which leaves the share of the weights.
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


def measure_steadiness(root: Path, count: int = 1000) -> Row:
    """Row 9: many predictions in a separate process with one torch thread, beside whatever else runs.

    `root` holds a tiny model.
    """
    environment = {**CPU_ALONE, "OMP_NUM_THREADS": "1"}
    line = read_last_line("bench.steady", root, MODEL, count, environment=environment)
    told = msgspec.json.decode(line, type=Steadiness)
    samples = told.samples[len(told.samples) // WARM_PART :]
    first, last = samples[0], samples[-1]
    growth = (last.memory_bytes - first.memory_bytes) / 1e6
    return Row(
        "9",
        f"{count} predictions in one process",
        (
            Figure("memory", growth, "MB more", at_most=MEMORY_GROWTH),
            Figure("resident at the end", last.memory_bytes / 1e6, "MB"),
        ),
        (
            equal_gate("open files", is_equal=last.files <= first.files),
            equal_gate("threads", is_equal=last.threads <= first.threads),
            equal_gate("first and last picture of one request", is_equal=len(set(told.hashes)) == 1),
        ),
        (f"from prediction {first.predictions} on: prompts, seeds, LoRA scales and formats change",),
    )
