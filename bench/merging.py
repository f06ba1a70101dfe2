"""How fast a LoRA is merged at another scale, on a stand-in of about 1 GB for SDXL's UNet.

    .venv/bin/python -m bench.merging [--folder .] [--runs 3]

The stand-in has SDXL's module names and widths, a few of its transformer blocks, and random weights. Each adapter
changes every linear layer of those blocks, as trainers do by default; only these layers are read and written. Sizes in
GB are of these layers in the base's fp16. The time at the real size, 4.4 GB, assumes the same rate. CPU seconds are
those of all threads together: on a busy machine they say more than the clock.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from bench.topology import REAL, build_unet
from tilemix.adapters import BaseWeights, LoraMerger
from tilemix.modelfile.spellings import KOHYA_UNET
from tilemix.pipelines.parts import move

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

RANK = 16
STAND_IN_DEPTHS = (1, 1, 2)  # transformer blocks in each attention of a resolution
SCALES = (0.7, 0.35, 1.0, 0.5, 0.85)  # a different one each time
NEEDED_DISK = 3 * 2**30
NEEDED_MEMORY = 8 * 2**30
METHODS = ("low-rank", "LoHa", "DoRA")
BOUND = 1.5  # seconds for the real size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to put the files; default: the temporary folder")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs of each measurement; the best counts"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure_merging(Path(folder), options.runs)


def measure_merging(folder: Path, runs: int) -> None:
    """Print the rate of each method, for a model in fp32 and in fp16, with one thread and with all."""
    if shutil.disk_usage(folder).free < NEEDED_DISK or available_memory() < NEEDED_MEMORY:
        needed = f"{NEEDED_DISK >> 30} GiB of disk and {NEEDED_MEMORY >> 30} GiB of memory"
        print_line(f"\nmerging: not measured, it needs {needed}")
        return
    real = sum(2 * layer.weight.numel() for layer in touched(build(REAL.depths)).values())
    unet = fill(build(STAND_IN_DEPTHS))
    base = folder / "unet.safetensors"
    save_file(unet.state_dict(), base)
    layers = touched(unet)
    size = sum(2 * layer.weight.numel() for layer in layers.values())
    print_line(
        f"\nanother scale on a stand-in UNet of {base.stat().st_size / 1e9:.2f} GB: {len(layers)} linear layers, "
        f"{size / 1e9:.2f} GB; in the real one they have {real / 1e9:.2f} GB, and the bound is {BOUND} s"
    )
    threads = torch.get_num_threads()
    files = {method: write_adapter(folder, method, layers) for method in METHODS}
    for dtype in (torch.float32, torch.float16):
        move(unet, dtype=dtype)
        merger = LoraMerger({"unet": unet}, {"unet": BaseWeights((base,))})
        for method, path in files.items():
            merger.load(method, path)
            merger.apply({method: 1.5})  # the base is in the page cache from here on
            for count in sorted({1, threads}):
                torch.set_num_threads(count)
                clock, cpu = measure(merger, method, runs)
                print_line(
                    f"{method:8} into {str(dtype).removeprefix('torch.')}, {count:2} threads: "
                    f"{size / clock / 1e9:5.2f} GB/s, real size {real / size * clock:5.2f} s; "
                    f"{size / cpu / 1e9:5.2f} GB per CPU second"
                )
            merger.apply({})


def available_memory() -> int:
    """Return the bytes that can be had without swapping, the page cache's among them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def measure(merger: LoraMerger, method: str, runs: int) -> tuple[float, float]:
    """Return the least seconds, of the clock and of the CPU, that another scale takes."""
    taken = []
    for run in range(runs):
        clock, cpu = time.perf_counter(), time.process_time()
        merger.apply({method: SCALES[run % len(SCALES)]})
        taken.append((time.perf_counter() - clock, time.process_time() - cpu))
    return min(clock for clock, _ in taken), min(cpu for _, cpu in taken)


def build(depths: tuple[int, int, int]) -> UNet2DConditionModel:
    """Return SDXL's UNet on the meta device, with `depths` transformer blocks."""
    with torch.device("meta"):
        return build_unet(replace(REAL, depths=depths))


def fill(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Fill it with random fp16 numbers, repeating the same four million."""
    move(unet, dtype=torch.float16).to_empty(device="cpu")
    numbers = (torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    with torch.no_grad():
        for parameter in unet.parameters():
            for part in torch.split(parameter.view(-1), len(numbers)):
                part.copy_(numbers[: len(part)])
    return unet


def touched(unet: UNet2DConditionModel) -> dict[str, torch.nn.Linear]:
    """Return the linear layers in and around the transformer blocks."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attentions." in name
    }


def write_adapter(folder: Path, method: str, layers: dict[str, torch.nn.Linear]) -> Path:
    """Write a random fp16 adapter of the method for these layers; return its path."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    tensors = {}
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        if method == "LoHa":
            module = KOHYA_UNET.spell(name)
            for factor in ("w1", "w2"):
                tensors[f"{module}.hada_{factor}_a"] = draw(rows, RANK // 2)
                tensors[f"{module}.hada_{factor}_b"] = draw(RANK // 2, columns)
            continue
        tensors[f"unet.{name}.lora_A.weight"] = draw(RANK, columns)
        tensors[f"unet.{name}.lora_B.weight"] = draw(rows, RANK)
        if method == "DoRA":
            tensors[f"unet.{name}.lora_magnitude_vector"] = torch.full((rows,), 0.7)
    path = folder / f"{method}.safetensors"
    save_file(tensors, path)
    return path


def print_line(line: str) -> None:
    """Print a line and flush it, so that a slow bench shows its progress."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
