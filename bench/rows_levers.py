"""The levers outside the denoising step, each measured with and without."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from bench import peers
from bench.figures import (
    Figure,
    Row,
    equal_gate,
    equivalent_gate,
    interleave,
    measure_psnr,
)
from bench.ours import find_peer_files, load_ours
from bench.pictures import order_tile, order_topology, read_tile_picture, to_decoded
from bench.processes import run_module
from bench.topology import MODEL, TINY, write_project
from tilemix.pictures.files import encode_image
from tilemix.pipelines.decoding import to_pixels
from tilemix.pipelines.speed import Speed
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from tilemix.pictures.record import Record

EAGER = "from bench.cold_ours import import_needed_parts; import_needed_parts()"


def measure_tail_levers(record: Record, rounds: int = 6) -> list[Row]:
    """Levers of the tail: the conversion to 8 bits and the PNG encoder."""
    pixels = read_tile_picture()
    decoded = to_decoded(pixels)
    processor = VaeImageProcessor(vae_scale_factor=8)
    kept: dict[str, np.ndarray] = {}
    files: dict[str, bytes] = {}

    def convert_in_torch(_: int) -> None:
        kept["with"] = to_pixels(decoded)

    def convert_in_numpy(_: int) -> None:
        kept["without"] = np.asarray(processor.postprocess(decoded, output_type="pil")[0])

    def encode(_: int) -> None:
        files["with"] = encode_image(pixels, record, output_format="png")

    def encode_by_pillow(_: int, **options: int) -> None:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", **options)
        files["Huffman" if options else "without"] = buffer.getvalue()

    conversion = interleave({"with": convert_in_torch, "without": convert_in_numpy}, rounds)
    encoders = interleave(
        {
            "with": encode,
            "without": encode_by_pillow,
            "Huffman": partial(encode_by_pillow, compress_level=1, compress_type=2),
        },
        rounds,
    )
    same_file = all(np.array_equal(np.asarray(Image.open(BytesIO(file))), pixels) for file in files.values())
    return [
        Row(
            "L5",
            "8 bits made in torch; without: diffusers' way through numpy",
            (Figure("without / with", conversion["without"].best / conversion["with"].best, "x"),),
            (equal_gate("pixels", is_equal=np.array_equal(kept["with"], kept["without"])),),
        ),
        Row(
            "L6",
            "PNG by one filter and ISA-L's deflate; without: Pillow's default",
            (
                Figure("without / with", encoders["without"].best / encoders["with"].best, "x"),
                Figure("Pillow, Huffman codes / with", encoders["Huffman"].best / encoders["with"].best, "x"),
                Figure("file", len(files["with"]) / len(files["without"]), "x"),
            ),
            (equal_gate("pixels", is_equal=same_file),),
        ),
    ]


def measure_prompt_levers(rounds: int = 8) -> list[Row]:
    """Levers of prompt encoding: one pass per encoder instead of compel's, and the cache."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_project(Path(folder), TINY)
        ours = load_ours(MODEL, root, Speed.EXACT)
        peer = peers.load_naive(find_peer_files(MODEL, root))
        seconds: dict[str, list[float]] = {"new": [], "repeated": []}
        pictures: list[np.ndarray] = []

        def draw(number: int) -> None:
            for kind in seconds:
                rendered = ours.draw(order_topology(number, steps=1))
                seconds[kind].append(rendered.seconds["encode_prompt"])
                pictures.append(rendered.pixels)

        naive = interleave(
            {"with": draw, "without": lambda number: peer.encode(order_topology(number))}, rounds
        )["without"].best
    new, repeated = (min(taken[1:]) for taken in seconds.values())
    is_equal = all(np.array_equal(*pair) for pair in zip(pictures[::2], pictures[1::2], strict=True))
    return [
        Row(
            "L7",
            "A pass of each text encoder for a new text, others kept; without: compel",
            (Figure("without / with", naive / new, "x"),),
        ),
        Row(
            "L8",
            "Embeddings of a repeated prompt kept; without: encoded again",
            (Figure("without / with", new / repeated, "x"),),
            (equal_gate("same picture", is_equal=is_equal),),
        ),
    ]


def measure_import_lever(rounds: int = 1) -> Row:
    """What lazy imports save when a verb starts."""
    verb = interleave({"with": lambda _: run_verb(), "without": lambda _: run_verb(EAGER)}, rounds)
    return Row(
        "L9",
        "Start of a verb that draws nothing, with imports where they are needed; without: all at the top",
        (
            Figure("without / with", verb["without"].best / verb["with"].best, "x"),
            Figure("with", verb["with"].best, "s"),
        ),
    )


def run_verb(before: str = "") -> None:
    """Run `tilemix rewrite` in its own process, after the statements in `before`."""
    program = (
        f"{before}\nfrom tilemix.cli import main\nraise SystemExit(main(['rewrite', '50% red, 50% black']))"
    )
    subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=600
    )


def measure_memory_lever(rounds: int = 1) -> Row:
    """What keeping freed memory in the process saves, on a second picture of 1024x1024 in two steps."""
    best = {"with": float("inf"), "without": float("inf")}
    for _ in range(rounds):
        for name, options in (("with", ()), ("without", ("--give-back",))):
            told = run_module("bench.cold_ours", ROOT, "miniature", "--draw", *options)
            best[name] = min(best[name], told["again"])
    return Row(
        "L12",
        "Freed memory kept in the process; without: given back to the system each time",
        (Figure("without / with", best["without"] / best["with"], "x"),),
        notes=("one process each; in the other rows the peers keep it, too",),
    )


def measure_layout_levers(rounds: int = 2, *, side: int = 512, steps: int = 4) -> list[Row]:
    """What bf16 and channels_last save in denoising and decoding, on the miniature."""
    modes = {
        "with": load_ours("miniature", ROOT, Speed.EQUIVALENT),
        "fp32": load_ours("miniature", ROOT, Speed.EXACT),
        "channels first": load_ours("miniature", ROOT, Speed.EQUIVALENT),
    }
    has_bf16 = modes["with"].ready.dtype != modes["fp32"].ready.dtype
    if not has_bf16:
        del modes["fp32"]  # it would be the same as "with"
    for part in ("unet", "vae"):
        getattr(modes["channels first"].pipeline, part).to(memory_format=torch.contiguous_format)
    best: dict[str, dict[str, float]] = {name: {} for name in modes}
    pictures: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        for name, ours in modes.items():
            rendered = ours.draw(order_tile(number, side=side, steps=steps))
            pictures[name] = rendered.pixels
            for part, taken in rendered.seconds.items():
                if number:
                    best[name][part] = min(taken, best[name].get(part, taken))

    def make_row(key: str, title: str, without: str) -> Row:
        figures = tuple(
            Figure(f"{part}: without / with", best[without][part] / best["with"][part], "x")
            for part in ("denoise", "decode")
        )
        psnr = measure_psnr(pictures[without], pictures["with"])
        return Row(key, title, figures, (equivalent_gate("same picture", [psnr]),))

    title = "UNet and VAE in bfloat16; without: float32"
    if has_bf16:
        lever = make_row("L10", title, "fp32")
    else:
        unmeasured = tuple(Figure(f"{part}: without / with", None, "x") for part in ("denoise", "decode"))
        note = "this processor does not multiply bf16, so both modes compute in float32"
        lever = Row("L10", title, unmeasured, notes=(note,))
    return [
        lever,
        make_row("L11", "Channels last in UNet and VAE; without: channels first", "channels first"),
    ]
