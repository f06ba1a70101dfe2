"""Model files: the time to read a header, hashing against plain reading, loading against diffusers.

    .venv/bin/python -m bench.model_files                  # 1 GiB in the system's temporary folder
    .venv/bin/python -m bench.model_files --gigabytes 4 --folder .

Ratios hold for one run on one machine, so both sides of each are measured in turn. "Cold" means that the kernel
was asked to drop the file's pages; a virtual disk may still cache them.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from bench.merging import measure_merging
from bench.processes import evict, read_through
from tilemix.adapters import BaseWeights, LoraMerger
from tilemix.modelfile.hashes import BLOCK, compute_hashes
from tilemix.modelfile.header import read_header
from tilemix.modelfile.inspection import read

RANK = 16
SCALE = 0.7
WIDTHS = (320, 640, 1280)  # of SDXL's three resolutions
DEPTHS = (0, 2, 10)  # transformer blocks in each attention of a resolution
CONTEXT = 2048


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to put the files; default: the temporary folder")
    parser.add_argument("--gigabytes", type=float, default=1.0, metavar="N", help="size of the file to hash")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="runs of each measurement; the best counts"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the libraries warn of a file without text encoder keys
    warnings.simplefilter("ignore")
    print_line(f"{os.cpu_count()} CPUs, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure_headers(Path(folder), options.runs)
        measure_hashing(Path(folder), int(options.gigabytes * 2**30), options.runs)
        measure_loading(Path(folder), options.runs)
        measure_merging(Path(folder), min(options.runs, 3))


def measure_headers(folder: Path, runs: int) -> None:
    """Print how long it takes to read and to inspect a header: a LoRA of SDXL's 560 attention layers."""
    path = folder / "header.safetensors"
    save_file(make_lora(WIDTHS, CONTEXT), path, metadata={"ss_network_alpha": "8"})
    tensors = len(read_header(path).tensors)
    print_line(f"\nSDXL LoRA, rank {RANK}, {tensors} tensors, {path.stat().st_size / 1e6:.0f} MB")
    print_line(f"header read and checked: {1000 * best(lambda: read_header(path), runs):.1f} ms")
    inspected = best(lambda: read(path, hashes="none"), runs)
    print_line(f"inspected without hashes: {1000 * inspected:.1f} ms")
    path.unlink()


def measure_hashing(folder: Path, size: int, runs: int) -> None:
    """Print the rates of reading and hashing one file, in turn, with a cold and a warm page cache."""
    path = folder / "large.bin"
    block = os.urandom(2**24)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    size = path.stat().st_size
    print_line(f"\nfile of {size / 1e9:.2f} GB, blocks of {BLOCK >> 10} KiB")
    ways: dict[str, Callable[[], object]] = {
        "plain reading": lambda: read_through(path, block=BLOCK),
        "SHA256": lambda: compute_hashes(path),
        "all six hashes": lambda: compute_hashes(path, every=True),
        "SHA256 of memory": lambda: hash_memory(block, size),
    }
    for state in ("cold", "warm"):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, way in ways.items():
                if state == "cold":
                    evict([path])
                seconds[name].append(measure(way))
        plain, memory = min(seconds["plain reading"]), min(seconds["SHA256 of memory"])
        for name, measured in seconds.items():
            took = min(measured)
            print_line(
                f"{state}: {name:16} {size / took / 1e9:5.2f} GB/s, {100 * plain / took:4.0f} % of reading"
            )
        limit = max(plain, memory) / min(seconds["SHA256"])
        print_line(f"{state}: SHA256 runs at {100 * limit:.0f} % of the slower of reading and hashing memory")
        if plain < 0.8 * memory:
            print_line(
                f"{state}: 80 % of reading is out of reach: SHA256 is sequential, and this processor computes "
                f"{size / memory / 1e9:.2f} GB/s; that keeps up with a disk of {size / memory / 0.8e9:.2f} GB/s at most"
            )
    path.unlink()


def measure_loading(folder: Path, runs: int) -> None:
    """Print how long a LoRA of 560 modules takes in a narrow SDXL with all its layers, here and in diffusers.

    Both sides end with the adapter applied at the same scale; the difference of their predictions is printed.
    """
    torch.manual_seed(0)
    widths, context = (32, 64, 128), 64
    unet = make_unet(widths, context)
    pipeline = make_pipeline(unet)
    base = folder / "unet.safetensors"
    save_file(unet.state_dict(), base)
    path = folder / "lora.safetensors"
    save_file(make_lora(widths, context), path)
    ours, theirs = [], []
    for _ in range(runs):
        plain = copy.deepcopy(unet)
        merger = LoraMerger({"unet": plain}, {"unet": BaseWeights((base,))})
        began = time.perf_counter()
        merger.load("bench", path)
        loaded = time.perf_counter()
        merger.apply({"bench": SCALE})
        ours.append((loaded - began, time.perf_counter() - loaded))
        wrapped = copy.deepcopy(pipeline)
        began = time.perf_counter()
        wrapped.load_lora_weights(path, adapter_name="bench")
        loaded = time.perf_counter()
        wrapped.set_adapters(["bench"], [SCALE])
        theirs.append((loaded - began, time.perf_counter() - loaded))
    difference = (predict(plain, context) - predict(wrapped.unet, context)).abs().max()
    size = path.stat().st_size / 1e6
    print_line(
        f"\nLoRA of 560 modules, {size:.1f} MB, on an SDXL of widths {widths}; predictions differ by {difference:.1e}"
    )
    for name, measured in (("tilemix", ours), ("diffusers", theirs)):
        load, use = min(measured, key=sum)
        print_line(
            f"{name:10} load {1000 * load:6.0f} ms, apply {1000 * use:5.0f} ms, both {load + use:5.2f} s"
        )
    faster = min(map(sum, theirs)) / min(map(sum, ours))
    print_line(f"diffusers takes {faster:.1f} times as long")


def make_unet(widths: tuple[int, ...], context: int) -> UNet2DConditionModel:
    """Return a random UNet with SDXL's blocks, depths and key names in these widths."""
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, *DEPTHS[1:]),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=context,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
        norm_num_groups=8,
    )
    unet.eval()
    return unet


def make_pipeline(unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """Return a pipeline around `unet` with minimal other parts."""
    text = CLIPTextConfig(
        vocab_size=64,
        projection_dim=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    absent: Any = None  # the pipeline is never called, so these parts are not needed
    return StableDiffusionXLPipeline(
        vae=absent,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=absent,
        tokenizer_2=absent,
        unet=unet,
        scheduler=absent,
        add_watermarker=False,
    )


def make_lora(widths: tuple[int, ...], context: int) -> dict[str, torch.Tensor]:
    """Return a kohya LoRA of every attention layer of SDXL, 560 modules, with the original block names."""
    generator = torch.Generator().manual_seed(1)
    places = [(f"input_blocks_{i}_1", 1) for i in (4, 5)] + [(f"input_blocks_{i}_1", 2) for i in (7, 8)]
    places += [("middle_block_1", 2)]
    places += [(f"output_blocks_{i}_1", 2) for i in (0, 1, 2)] + [
        (f"output_blocks_{i}_1", 1) for i in (3, 4, 5)
    ]
    tensors = {}
    for block, level in places:
        width = widths[level]
        for i in range(DEPTHS[level]):
            for attention, layer in (
                (a, n) for a in ("attn1", "attn2") for n in ("to_q", "to_k", "to_v", "to_out_0")
            ):
                module = f"lora_unet_{block}_transformer_blocks_{i}_{attention}_{layer}"
                wide = context if attention == "attn2" and layer in ("to_k", "to_v") else width
                tensors[f"{module}.lora_down.weight"] = torch.randn((RANK, wide), generator=generator) * 0.02
                tensors[f"{module}.lora_up.weight"] = torch.randn((width, RANK), generator=generator) * 0.02
                tensors[f"{module}.alpha"] = torch.tensor(8.0)
    return tensors


@torch.inference_mode()
def predict(unet: UNet2DConditionModel, context: int) -> torch.Tensor:
    """Return the UNet's prediction for one fixed random input."""
    generator = torch.Generator().manual_seed(2)
    conditions = {"text_embeds": torch.randn((1, 32), generator=generator), "time_ids": torch.ones((1, 6))}
    predicted: torch.Tensor = unet(
        torch.randn((1, 4, 16, 16), generator=generator),
        500,
        torch.randn((1, 8, context), generator=generator),
        added_cond_kwargs=conditions,
    ).sample
    return predicted


def hash_memory(block: bytes, size: int) -> None:
    """Hash `size` bytes without reading a file: SHA256 is sequential, so hashing a file cannot be faster."""
    digest, part = hashlib.sha256(), block[:BLOCK]  # stays in the CPU's caches, as hashing's buffers do
    for _ in range(size // BLOCK):
        digest.update(part)


def best(way: Callable[[], object], runs: int) -> float:
    """Return the minimum seconds of `runs` calls, since other load can only add to them."""
    return min(measure(way) for _ in range(runs))


def measure(way: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def print_line(line: str) -> None:
    """Print a line and flush it, so that a slow bench shows its progress."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
