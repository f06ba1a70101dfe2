"""What a catalogue costs beside drawing: per row, with Ray, and whether several pictures at once pay.

`rows`: a stand-in that takes 0.1 ms for a picture draws N rows; the run is killed after a third and after two thirds,
and resumed twice. Printed are the processor time of a row beside the drawing, of a row that is only found again, and
the driver's peak memory.

`ray`: the miniature draws N rows with two actors, and then with two processes of its own, half the rows each. Start-up
is left out. Compared is the processor time of all processes, Ray's daemons included, because that depends least on
what else the machine does.

`batch`: a step of the miniature's UNet for 1, 2 and 4 pictures at once, and the VAE, in processor time a picture.

    python -m bench.catalogue rows [--count 1000000]
    python -m bench.catalogue ray [--count 100] [--size 512] [--steps 4]
    python -m bench.catalogue batch [--sizes 256 512]
"""

from __future__ import annotations

import argparse
import os
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


def draw_rows(listing: Path, out: Path) -> None:
    """Draw a list with the stand-in, and print what it took."""
    began = time.process_time()
    rows, folder = RowFile(listing), Folder(out)
    engine = LocalEngine(load_quick(), folder)
    progress = draw(rows, folder, engine)
    drawing = time.process_time() - began
    write_results(folder, progress, engine.describe())
    folder.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"{progress.drawn} drawn, {progress.kept} found again, {drawing:.1f} s of processor, "
        f"{time.process_time() - began - drawing:.1f} s more for the results, peak {peak:.0f} MB\n"
    )
    sys.stdout.flush()


def run_rows(count: int) -> None:
    """Draw, be killed twice, resume twice."""
    with tempfile.TemporaryDirectory() as name:
        listing, out = write_mixes(Path(name, "list.csv"), count), Path(name, "out")
        command = [sys.executable, "-m", "bench.catalogue", "--draw", str(listing), str(out)]
        for part in (1, 2):
            run = subprocess.Popen(command, cwd=ROOT)  # noqa: S603  our own module
            while run.poll() is None and count_pictures(out) < part * count // 3:
                time.sleep(1)
            run.send_signal(signal.SIGKILL)
            run.wait()
            sys.stdout.write(f"killed at {count_pictures(out)} pictures\n")
        for _ in range(2):  # the rest, and then nothing
            subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603
        size = (out / "ledger.sqlite3").stat().st_size / 2**20
        sys.stdout.write(f"{count_pictures(out)} pictures, a ledger of {size:.0f} MB\n")
        sys.stdout.write(f"of each drawn row the stand-in itself takes {1000 * QuickWorker.SECONDS:.1f} ms\n")


def count_pictures(out: Path) -> int:
    """Return about how many pictures there are: a folder's, times 256."""
    folders = [out / "pictures" / f"{number:02x}" for number in range(0, 256, 16)]
    counts = [sum(1 for _ in os.scandir(folder)) for folder in folders if folder.is_dir()]
    return round(16 * sum(counts))


def run_ray(count: int, inputs: dict[str, int]) -> None:
    """Draw the same rows with two actors and with two processes."""
    load = partial(RendererWorker.load, "miniature", Settings(threads=1, precision=Precision.FP32))
    with tempfile.TemporaryDirectory() as name:
        folder_of = partial(Path, name)
        listing = write_mixes(folder_of("all.csv"), count)
        rows, folder = RowFile(listing, inputs), Folder(folder_of("ray"))
        with RayEngine(load, threads=1, actors=ACTORS) as engine:
            engine.load_all()
            before, began = count_processor_seconds(os.getpid()), time.perf_counter()
            draw(rows, folder, engine)
            on_ray = count_processor_seconds(os.getpid()) - before
            wall = time.perf_counter() - began
        folder.close()
        lines = listing.read_text().splitlines()
        halves = [folder_of(f"{part}.csv") for part in range(ACTORS)]
        for part, half in enumerate(halves):
            half.write_text("\n".join([lines[0], *lines[1 + part :: ACTORS]]) + "\n")
        command = [sys.executable, "-m", "bench.catalogue", "--half"]
        options = [str(value) for value in inputs.values()]
        began = time.perf_counter()
        runs = [
            subprocess.Popen(  # noqa: S603  our own module
                [*command, str(half), str(half) + ".out", *options], cwd=ROOT, stdout=subprocess.PIPE
            )
            for half in halves
        ]
        parts = [float(run.communicate()[0]) for run in runs]
        alone = sum(parts)
        sys.stdout.write(
            f"{count} rows: {on_ray:.1f} s of processor on Ray ({wall:.0f} s by the clock), {alone:.1f} s in "
            f"{ACTORS} processes: {100 * (on_ray / alone - 1):+.1f}%\n"
        )


def draw_half(listing: Path, out: Path, width: int, height: int, steps: int) -> None:
    """Draw a list in this process; print the processor time without the start."""
    rows = RowFile(listing, {"width": width, "height": height, "num_inference_steps": steps})
    folder = Folder(out)
    engine = LocalEngine(
        RendererWorker.load("miniature", Settings(threads=1, precision=Precision.FP32)), folder
    )
    began = time.process_time()
    draw(rows, folder, engine)
    sys.stdout.write(f"{time.process_time() - began}\n")
    folder.close()


def count_processor_seconds(driver: int) -> float:
    """Return the processor time of a process and of all that descend from it."""
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(folder.name)] = int(fields[1])
            times[int(folder.name)] = sum(map(int, fields[11:15])) / TICKS
    total = 0.0
    for process, seconds in times.items():
        ancestor = process
        while ancestor in parents and ancestor != driver:
            ancestor = parents[ancestor]
        total += seconds if ancestor == driver else 0.0
    return total


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
    parser.add_argument("--steps", type=int, default=4, help="for ray")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="pixels, for batch")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("LIST", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--half", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw_rows(*options.draw)
    elif options.half:
        listing, out, *numbers = options.half
        draw_half(Path(listing), Path(out), *map(int, numbers))
    elif options.part == "rows":
        run_rows(options.count or 1_000_000)
    elif options.part == "ray":
        size = {"width": options.size, "height": options.size, "num_inference_steps": options.steps}
        run_ray(options.count or 100, size)
    elif options.part == "batch":
        run_batch(options.sizes)
    else:
        parser.error("name a part")
    return 0


if __name__ == "__main__":
    sys.exit(main())
