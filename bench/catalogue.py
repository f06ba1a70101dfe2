"""What a catalogue costs beside drawing: per row, with Ray, and whether several pictures at once pay.

`rows`: a stand-in that takes 0.1 ms for a picture draws N rows; the run is killed after a third and after two thirds,
and resumed twice. Printed are the processor time of a row beside the drawing, of a row that is only found again, and
the driver's peak memory.

`ray`: the miniature draws N rows as it is served, in turns with two actors and with two processes of its own, half the
rows each. Start-up is printed apart. Compared is processor time, because that depends least on what else the machine
does. What Ray's own processes take is printed apart, because they take it by the clock: on a busy machine, more a row.

`batch`: a step of the miniature's UNet for 1, 2 and 4 pictures at once, and the VAE, in processor time a picture.

    python -m bench.catalogue rows [--count 1000000]
    python -m bench.catalogue ray [--count 100] [--size 512] [--turns 2]
    python -m bench.catalogue batch [--sizes 256 512]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from tests.catalogue_parts import QuickWorker, draw, load_quick
from tilemix.catalogue.cluster import RayEngine
from tilemix.catalogue.engines import LocalEngine
from tilemix.catalogue.folder import Folder
from tilemix.catalogue.mixes import MixRange, pick_colors
from tilemix.catalogue.results import write_results
from tilemix.catalogue.rows import RowFile
from tilemix.catalogue.worker import RendererWorker
from tilemix.pipelines.sdxl import Sdxl
from tilemix.pipelines.settings import Settings
from tilemix.pipelines.speed import Precision
from tilemix.render import Renderer
from tilemix.system.project import ROOT

TICKS = os.sysconf("SC_CLK_TCK")
ACTORS = 2
REPEATS = 5


def write_mixes(path: Path, count: int) -> Path:
    """Write a list of so many mixes."""
    mixes = MixRange(pick_colors(None, None), most_colors=5)
    with path.open("w") as file:
        file.write("mix,seed\n")
        seed = 0
        while count > 0:  # the mixes again, by another seed
            lines = [f'"{mix}",{seed}\n' for mix in islice(mixes, count)]
            file.writelines(lines)
            count -= len(lines)
            seed += 1
    return path


class RunCost(NamedTuple):
    """What a run with the stand-in took."""

    drawn: int  # rows
    kept: int  # rows
    seconds: float  # of processor, until the last row was drawn
    results_seconds: float  # of processor, for the results and the page
    peak_mb: float  # of the process


def draw_rows(listing: Path, out: Path) -> None:
    """Draw a list with the stand-in, and print what it took as JSON."""
    began = time.process_time()
    rows, folder = RowFile(listing), Folder(out)
    engine = LocalEngine(load_quick(), folder)
    progress = draw(rows, folder, engine)
    drawing = time.process_time() - began
    write_results(folder, progress, engine.describe())
    folder.close()
    results = time.process_time() - began - drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps(RunCost(progress.drawn, progress.kept, drawing, results, peak)))


def run_rows(count: int) -> None:
    """Draw, be killed twice, resume twice."""
    with tempfile.TemporaryDirectory() as name:
        listing, out = write_mixes(Path(name, "list.csv"), count), Path(name, "out")
        command = [sys.executable, "-m", "bench.catalogue", "--draw", str(listing), str(out)]
        for part in (1, 2):
            run = subprocess.Popen(command, cwd=ROOT)  # noqa: S603  our own module
            while run.poll() is None and count_pictures(out) < part * count // 3:
                time.sleep(1)
            peak = read_peak(run.pid)
            run.send_signal(signal.SIGKILL)
            run.wait()
            show(f"killed at {count_pictures(out)} pictures, peak {peak:.0f} MB")
        resumed = []
        for _ in range(2):  # the rest, and then nothing
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)  # noqa: S603  the same
            cost = RunCost(*json.loads(done.stdout))
            resumed.append(cost)
            show(
                f"resumed: {cost.drawn} drawn, {cost.kept} found again, {cost.seconds:.1f} s of processor, "
                f"{cost.results_seconds:.1f} s more for the results, peak {cost.peak_mb:.0f} MB"
            )
        rest, nothing = resumed
        again = nothing.seconds / nothing.kept
        drawn = (rest.seconds - again * rest.kept) / rest.drawn - QuickWorker.SECONDS
        show(
            f"a drawn row costs {1000 * drawn:.2f} ms beside the drawing, one found again {1000 * again:.2f} ms"
        )
        size = (out / "ledger.sqlite3").stat().st_size / 2**20
        show(f"{count_pictures(out)} pictures, a ledger of {size:.0f} MB")


def show(line: str) -> None:
    """Print a line at once, because the next one may take an hour."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def read_peak(process: int) -> float:
    """Return the most memory that a running process has had, in MB; 0: it has ended."""
    found = re.search(r"VmHWM:\s*([0-9]+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def count_pictures(out: Path) -> int:
    """Return about how many pictures there are: a folder's, times 256."""
    folders = [out / "pictures" / f"{number:02x}" for number in range(0, 256, 16)]
    counts = [sum(1 for _ in os.scandir(folder)) for folder in folders if folder.is_dir()]
    return round(16 * sum(counts))


class Turn(NamedTuple):
    """What some rows took one of the two ways."""

    start_seconds: float  # of processor
    seconds: float  # of processor, by what draws
    ray_seconds: float  # of processor, by Ray's own processes
    wall: float  # seconds, without the start


def run_ray(count: int, size: int, turns: int) -> None:
    """Draw the same rows with two actors and with two processes, in turns."""
    with tempfile.TemporaryDirectory() as name:
        lines = write_mixes(Path(name, "all.csv"), count).read_text().splitlines()
        on_ray, alone = [], []
        for number in range(turns):
            folder = Path(name, f"turn-{number}")
            folder.mkdir()
            rows = lines[1 + number :: turns]
            on_ray.append(draw_on_ray(write_list(folder / "ray.csv", lines[0], rows), folder / "ray", size))
            alone.append(draw_alone(lines[0], rows, folder, size))
            show_turns(f"turn {number + 1}, {len(rows)} rows", on_ray[-1:], alone[-1:])
        show_turns(f"{count} rows of {size}x{size}", on_ray, alone)


def show_turns(name: str, on_ray: list[Turn], alone: list[Turn]) -> None:
    """Print what turns took, and what Ray adds to them."""
    parts = []
    for way, found in (("on Ray", on_ray), (f"in {ACTORS} processes", alone)):
        start, seconds, ray, wall = (sum(values) for values in zip(*found, strict=True))
        own = f", {ray:.1f} s more of Ray's own" if ray else ""
        parts.append(
            f"{seconds:.1f} s of processor {way}{own} ({wall:.0f} s by the clock, the start {start:.1f} s)"
        )
    base = sum(turn.seconds for turn in alone)
    drawing = sum(turn.seconds for turn in on_ray) / base - 1
    ray = sum(turn.ray_seconds for turn in on_ray) / base
    show(f"{name}: {', '.join(parts)}: {100 * drawing:+.1f}%, and {100 * ray:.1f}% of Ray's own")


def write_list(path: Path, header: str, rows: list[str]) -> Path:
    """Write a part of the list."""
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def draw_on_ray(listing: Path, out: Path, size: int) -> Turn:
    """Draw a list with two actors."""
    rows, folder = RowFile(listing, {"width": size, "height": size}), Folder(out)
    load = partial(RendererWorker.load, "miniature", Settings(threads=1, precision=Precision.FP32))
    started = count_processor_seconds(os.getpid())
    with RayEngine(load, threads=1, actors=ACTORS) as engine:
        engine.load_all()
        before, began = count_processor_seconds(os.getpid()), time.perf_counter()
        own = time.process_time()
        draw(rows, folder, engine)
        wall = time.perf_counter() - began
        show(f"the driver took {1000 * (time.process_time() - own) / rows.count:.1f} ms of processor a row")
        used = count_processor_seconds(os.getpid())
    folder.close()
    return Turn(sum(before) - sum(started), used.drawing - before.drawing, used.ray - before.ray, wall)


def draw_alone(header: str, rows: list[str], folder: Path, size: int) -> Turn:
    """Draw a list in two processes."""
    runs = []
    for part in range(ACTORS):
        half = write_list(folder / f"{part}.csv", header, rows[part::ACTORS])
        command = [sys.executable, "-m", "bench.catalogue", "--half", str(half), f"{half}.out", str(size)]
        runs.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))  # noqa: S603  our own module
    halves = [Turn(*json.loads(run.communicate()[0])) for run in runs]
    start, seconds, *_ = (sum(values) for values in zip(*halves, strict=True))
    return Turn(start, seconds, 0.0, max(half.wall for half in halves))


def draw_half(listing: Path, out: Path, size: int) -> None:
    """Draw a list in this process; print the turn as JSON."""
    rows, folder = RowFile(listing, {"width": size, "height": size}), Folder(out)
    worker = RendererWorker.load("miniature", Settings(threads=1, precision=Precision.FP32))
    started, began = time.process_time(), time.perf_counter()
    draw(rows, folder, LocalEngine(worker, folder))
    turn = Turn(started, time.process_time() - started, 0.0, time.perf_counter() - began)
    sys.stdout.write(json.dumps(turn))
    folder.close()


class Used(NamedTuple):
    """Processor time, in seconds."""

    drawing: float  # by the driver and its workers
    ray: float  # by Ray's own processes


def count_processor_seconds(driver: int) -> Used:
    """Return the processor time of a process and of all that descend from it."""
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    workers = {driver}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                    workers.add(int(folder.name))
            except OSError:  # it has just ended
                continue
            parents[int(folder.name)] = int(fields[1])
            times[int(folder.name)] = sum(map(int, fields[11:15])) / TICKS
    drawing = ray = 0.0
    for process, seconds in times.items():
        ancestor = process
        while ancestor in parents and ancestor != driver:
            ancestor = parents[ancestor]
        if ancestor == driver:
            drawing += seconds if process in workers else 0.0
            ray += 0.0 if process in workers else seconds
    return Used(drawing, ray)


def run_batch(sizes: list[int]) -> None:
    """Time a step and the decoding for several pictures at once."""
    ready = Renderer.load("miniature", Settings(threads=1, precision=Precision.FP32)).ready
    assert isinstance(ready.base, Sdxl)
    pipeline = ready.base.pipeline
    width = pipeline.unet.config["cross_attention_dim"]  # what the text is does not matter here
    pooled = pipeline.text_encoder_2.text_projection.out_features
    for size in sizes:
        base: dict[str, float] = {}
        for count in (1, 2, 4):
            pictures = 2 * count  # with and without the prompt, as guidance has it
            latents = torch.randn(pictures, pipeline.unet.config["in_channels"], size // 8, size // 8)
            conditions = {
                "encoder_hidden_states": torch.zeros(pictures, 77, width),
                "added_cond_kwargs": {
                    "text_embeds": torch.zeros(pictures, pooled),
                    "time_ids": torch.tensor([[size, size, 0, 0, size, size]] * pictures),
                },
            }
            step = partial(pipeline.unet, latents, 500, **conditions)
            decode = partial(pipeline.vae.decode, latents[:count].to(ready.dtype))
            found = {"step": time_each(step, count), "decode": time_each(decode, count)}
            base = base or found
            shown = ", ".join(
                f"{part} {1000 * seconds:.0f} ms ({seconds / base[part]:.2f})"
                for part, seconds in found.items()
            )
            sys.stdout.write(f"{size} px, {count} at once, for each picture: {shown}\n")
            sys.stdout.flush()


def time_each(work: partial[object], count: int) -> float:
    """Return the processor time of a picture's part, the median of some tries."""
    tries = []
    with torch.inference_mode():
        work()
        for _ in range(REPEATS):
            began = time.process_time()
            work()
            tries.append((time.process_time() - began) / count)
    return statistics.median(tries)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a catalogue costs beside drawing.")
    parser.add_argument("part", nargs="?", choices=("rows", "ray", "batch"))
    parser.add_argument("--count", type=int, help="rows; default: 1000000, and 100 for ray")
    parser.add_argument("--size", type=int, default=512, help="pixels, for ray")
    parser.add_argument("--turns", type=int, default=2, help="for ray, which share the rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="pixels, for batch")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("LIST", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--half", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw_rows(*options.draw)
    elif options.half:
        listing, out, size = options.half
        draw_half(Path(listing), Path(out), int(size))
    elif options.part == "rows":
        run_rows(options.count or 1_000_000)
    elif options.part == "ray":
        run_ray(options.count or 100, options.size, options.turns)
    elif options.part == "batch":
        run_batch(options.sizes)
    else:
        parser.error("name a part")
    return 0


if __name__ == "__main__":
    sys.exit(main())
