"""Rows 1 to 5: the parts of a prediction, each against the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file

from bench import peers
from bench.figures import Figure, Gate, Row, count_within_one, equal_gate, exact_gate, interleave
from bench.ours import Ours, encode_order, find_peer_files, load_ours
from bench.pictures import draw_noise_picture, order_topology, read_tile_picture, to_decoded
from bench.steps import count_operations, time_steps
from bench.topology import LORA_SCALE, MODEL, TINY, write_project
from tilemix.pictures.files import encode_image
from tilemix.pipelines.decoding import decode_latents
from tilemix.pipelines.speed import Speed

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from tilemix.pictures.record import Record

SAME_EMBEDDING = 1e-4  # of an embedding's standard deviation


def measure_tail(record: Record, rounds: int = 12) -> Row:
    """Row 1: from the decoded tensor to the bytes of the PNG, for a 1/f picture and a real one."""
    figures: list[Figure] = []
    gates: list[Gate] = []
    processor = VaeImageProcessor(vae_scale_factor=8)
    for name, pixels in (("1/f", draw_noise_picture()), ("tile", read_tile_picture())):
        decoded = to_decoded(pixels)
        # tilemix's VAE runs, and so answers, with channels last.
        vae = hand_over(decoded.contiguous(memory_format=torch.channels_last))
        files: dict[str, bytes] = {}

        def naive(_: int, decoded: torch.Tensor = decoded, files: dict[str, bytes] = files) -> None:
            files["N"] = peers.save_png(processor.postprocess(decoded, output_type="pil")[0])

        def ours(_: int, vae: AutoencoderKL = vae, files: dict[str, bytes] = files) -> None:
            pixels = decode_latents(vae, torch.zeros(1, 4, 1, 1))
            files["ours"] = encode_image(pixels, record, output_format="png")

        timings = interleave({"N": naive, "ours": ours}, rounds)
        figures += [
            Figure(f"{name}: N / ours", timings["N"].best / timings["ours"].best, "x", at_least=8),
            Figure(f"{name}: ours", 1e3 * timings["ours"].best, "ms"),
            Figure(f"{name}: file", len(files["ours"]) / len(files["N"]), "x", at_most=1.05),
        ]
        theirs, own = (np.asarray(Image.open(BytesIO(files[one]))) for one in ("N", "ours"))
        gates.append(equal_gate(f"{name}: pixels", is_equal=np.array_equal(theirs, own)))
    return Row("1", "Tail: decoded tensor to PNG bytes, 1024x1024", tuple(figures), tuple(gates))


def hand_over(decoded: torch.Tensor) -> AutoencoderKL:
    """Return a stand-in for a VAE that decodes anything to `decoded` at no cost."""
    return cast(
        "AutoencoderKL",
        SimpleNamespace(
            dtype=torch.float32,
            config={"scaling_factor": 1.0},
            decode=lambda *_, **__: SimpleNamespace(sample=decoded),
        ),
    )


def measure_steps(root: Path, rounds: int = 5) -> list[Row]:
    """Rows 2 and 3: operations and seconds of a denoising step with the LoRA at 0.7 and CFG."""
    files = find_peer_files(MODEL, root)
    naive, strong, ours = (
        peers.load_naive(files),
        peers.load_strong(files),
        load_ours(MODEL, root, Speed.EXACT),
    )
    order = order_topology(0)
    draws: dict[str, Callable[[Callable[[], None]], object]] = {
        "N": lambda on_step: naive.draw(order, on_step=on_step),
        "S": lambda on_step: strong.draw(order, on_step=on_step),
        "ours": lambda on_step: ours.draw(order, on_step=on_step),
    }
    picture = np.asarray(naive.draw(order))
    gates = (exact_gate("ours against N", [count_within_one(ours.draw(order).pixels, picture)]),)
    counts = {name: count_operations(draw) for name, draw in draws.items()}
    operations = {name: count.computing for name, count in counts.items()}
    seconds = time_steps(draws, rounds)
    note = "fp32, 70 transformer blocks, 256x256; S is eager here"
    return [
        Row(
            "2",
            "Tensor operations of a denoising step, LoRA 0.7, CFG",
            (
                Figure("ours / N", operations["ours"] / operations["N"], "x", at_most=0.43),
                Figure("ours / S", operations["ours"] / operations["S"], "x", at_most=0.96),
                *(Figure(name, count) for name, count in operations.items()),
            ),
            gates,
            (note, "views: " + ", ".join(f"{name} {count.views}" for name, count in counts.items())),
        ),
        Row(
            "3",
            "Time of a denoising step, LoRA 0.7, CFG",
            (
                Figure("N / ours", seconds["N"] / seconds["ours"], "x", at_least=1.6),
                Figure("S / ours", seconds["S"] / seconds["ours"], "x", at_least=1.05),
                *(Figure(name, 1e3 * taken, "ms") for name, taken in seconds.items()),
            ),
            gates,
            (note,),
        ),
    ]


def measure_prompts(rounds: int = 12) -> Row:
    """Row 4: a prompt and a negative prompt through both text encoders, new and repeated."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_project(Path(folder), TINY)
        peer = peers.load_naive(find_peer_files(MODEL, root))
        ours = load_ours(MODEL, root, Speed.EXACT)
        seconds: dict[str, list[float]] = {"new": [], "repeated": []}

        def draw_ours(number: int) -> None:
            order = order_topology(number, steps=1)
            for kind in seconds:  # the second time the prompt is a repeated one
                seconds[kind].append(ours.draw(order).seconds["encode_prompt"])

        naive = interleave(
            {"N": lambda number: peer.encode(order_topology(number)), "ours": draw_ours}, rounds
        )["N"].best
        best = {kind: min(taken[1:]) for kind, taken in seconds.items()}
        order = order_topology(1000, steps=1)
        with count_encoder_runs(peer.pipe.text_encoder, peer.pipe.text_encoder_2) as theirs:
            embeddings = peer.encode(order)
        pipeline = ours.pipeline
        with count_encoder_runs(pipeline.text_encoder, pipeline.text_encoder_2) as own:
            ours.draw(order)
        conditioning = encode_order(pipeline, order)
        difference = max(
            float((conditioning[name] - tensor).abs().max() / tensor.std())
            for name, tensor in embeddings.items()
        )
    rule = f"at most {SAME_EMBEDDING:g} standard deviations"
    return Row(
        "4",
        "Prompt encoding, tiny text encoders",
        (
            Figure("encoder runs, ours", len(own), at_most=2),
            Figure("encoder runs, N", len(theirs)),
            Figure("N / ours", naive / best["new"], "x", at_least=5),
            Figure("N / ours, repeated prompt", naive / best["repeated"], "x", at_least=100),
            Figure("ours", 1e3 * best["new"], "ms"),
        ),
        (Gate("embeddings against N", f"{difference:.1e}", rule, difference <= SAME_EMBEDDING),),
    )


@contextmanager
def count_encoder_runs(*encoders: torch.nn.Module) -> Iterator[list[int]]:
    """Yield a list that grows by one with every run of a text encoder."""
    runs: list[int] = []
    hooks = [
        module.register_forward_hook(lambda *_: runs.append(1))
        for encoder in encoders
        for name, module in encoder.named_modules()
        if name.endswith("encoder.layers.0")
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def measure_lora(root: Path, rounds: int = 3) -> Row:
    """Row 5: a LoRA of 560 modules, from its file to weights that are ready to draw with it."""
    files = find_peer_files(MODEL, root)
    pipes = {"N": peers.load_base(files), "S": peers.load_base(files)}
    ours = load_ours(MODEL, root, Speed.EXACT)
    (name,) = [adapter.file for adapter in ours.ready.model.manifest.adapters]
    loras = ours.ready.loras

    def naive(_: int) -> None:
        peers.load_lora(pipes["N"], files.only_lora)

    def strong(_: int) -> None:
        peers.load_lora(pipes["S"], files.only_lora)
        peers.fuse_lora(pipes["S"], LORA_SCALE)  # into the same weights again and again, which are never used

    def own(_: int) -> None:
        loras.load(name, files.only_lora)
        loras.apply({name: LORA_SCALE})

    best: dict[str, float] = {}
    for number in range(rounds + 1):
        timings = interleave({"N": naive, "S": strong, "ours": own}, 1, warm_ups=0)
        pipes["N"].unload_lora_weights()
        loras.apply({})
        if number:
            best = {one: min(timing.best, best.get(one, timing.best)) for one, timing in timings.items()}
    own(0)
    worst = {
        "fp32": find_merge_error(ours, files),
        "equivalent": find_merge_error(load_ours(MODEL, root, Speed.EQUIVALENT), files),
    }
    return Row(
        "5",
        "LoRA ready, 560 modules of rank 16",
        (
            Figure("N / ours", best["N"] / best["ours"], "x", at_least=10),
            Figure("S / ours", best["S"] / best["ours"], "x"),
            Figure("ours", 1e3 * best["ours"], "ms"),
        ),
        tuple(
            Gate(
                f"merged weights, {mode}",
                f"{error:.2f} ulp",
                "at most 1 ulp of merge, then round",
                error <= 1,
            )
            for mode, error in worst.items()
        ),
        ("N: load_lora_weights; S: the same, fuse_lora and unload_lora_weights",),
    )


def find_merge_error(ours: Ours, files: peers.PeerFiles) -> float:
    """Return the largest error of a merged weight in ulp, against a merge in fp64 that is rounded once.

    The rounding error of summing n terms in fp32 does not count: n parts in 2**24 of the terms' magnitudes, which is
    more than an ulp of the sum where terms cancel. Source: Higham, Accuracy and Stability of Numerical Algorithms, 3.1.
    """
    base = load_file(files.base / "unet" / "diffusion_pytorch_model.safetensors")
    lora = load_file(files.only_lora)
    worst = 0.0
    for key in lora:
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        weight = ours.pipeline.unet.get_parameter(f"{module}.weight").detach()
        before = base[f"{module}.weight"].double()
        up, down = lora[key.replace("lora_A", "lora_B")].double(), lora[key].double()
        merged = (before + files.lora_scale * up @ down).to(weight.dtype).double()
        terms = before.abs() + files.lora_scale * up.abs() @ down.abs()
        slack = terms * (len(down) + 2) * 2**-24
        size = torch.exp2(torch.floor(torch.log2(merged.abs().clamp(min=1e-30))))
        error = ((weight.double() - merged).abs() - slack).clamp(min=0)
        worst = max(worst, float((error / (size * torch.finfo(weight.dtype).eps)).max()))
    return worst
