"""Correctness on the device: pictures, LoRA, tokens, VAE, requests. Each check has a control that must fail it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.figures import EQUIVALENT_PSNR, Figure, Gate, Row, equal_gate, measure_psnr
from bench.gpu.adapters import TOKENS, list_lora_modules
from bench.gpu.rows import fill_row
from bench.gpu.timing import time_calls, watch_memory
from bench.gpu.workshop import draw_latents
from bench.ours import encode_order
from bench.peers import ADAPTER
from bench.topology import read_config
from tilemix.errors import RenderError
from tilemix.pipelines.decoding import decode_latents
from tilemix.pipelines.parts import move

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import nn

    from bench.gpu.workshop import Workshop
    from bench.ours import Ours
    from tilemix.pipelines.loading import ReadyPipeline

LORA_SCALES = (0.0, 0.7, 1.0)
NEARER = 3.0  # dB; of half the error's square
TOLD_APART = 6.0  # dB between right and wrong
BF16_PSNR = 30.0
SAME_EMBEDDING = 0.01  # of an embedding's norm: what fp16 rounds on its way through 32 layers


class Cancelled(BaseException):
    """A cancellation, as a server raises it."""


def check_pictures(shop: Workshop) -> list[Row]:
    """Row C1: our picture against diffusers' own call in fp32, from the same noise, and the peers' against it."""
    order = shop.order(0)
    noise = draw_latents(order)
    truth = np.asarray(shop.truth.draw(order, latents=noise))
    pictures = {
        "ours": shop.ours.draw(order).pixels,
        "N": np.asarray(shop.naive.draw(order, latents=noise)),
        "S": np.asarray(shop.strong.draw(order, latents=noise)),
        "without the LoRA": shop.ours.draw(order, lora_scale=0).pixels,
    }
    psnrs = {name: measure_psnr(picture, truth) for name, picture in pictures.items()}
    needed = min(EQUIVALENT_PSNR, psnrs["N"] - NEARER)
    contrast = float(truth.std())
    return [
        Row(
            "C1",
            f"Picture against diffusers in fp32, {order.side}x{order.side}, {order.steps} steps",
            (
                *(Figure(f"{name}: PSNR", value, "dB") for name, value in psnrs.items()),
                Figure("ours against N", measure_psnr(pictures["ours"], pictures["N"]), "dB"),
                Figure("contrast", contrast, "levels"),
            ),
            (
                Gate(
                    "ours",
                    f"{psnrs['ours']:.1f} dB",
                    f"at least {needed:.1f} dB: {EQUIVALENT_PSNR:g}, or as N but for {NEARER:g}",
                    psnrs["ours"] >= needed,
                ),
                Gate(
                    "the LoRA shows",
                    f"{psnrs['without the LoRA']:.1f} dB without it",
                    f"{TOLD_APART:g} dB less than with it",
                    psnrs["without the LoRA"] <= psnrs["ours"] - TOLD_APART,
                ),
                Gate("a picture", f"{contrast:.1f} levels", "contrast of at least 5", contrast >= 5),
            ),
        )
    ]


def check_lora(shop: Workshop) -> list[Row]:
    """Row C2: the merged weights against PEFT's own change in fp32; row G6: how long merging takes."""
    ready = shop.ours.ready
    own, base = shop.ours.pipeline.unet, shop.parts["unet"]
    paths = list_lora_modules(base)
    errors = {}
    for scale in LORA_SCALES:
        apply_lora(ready, scale)
        errors[scale] = _find_largest_error(shop, paths, scale)
    wrong = _find_largest_error(shop, paths, LORA_SCALES[1])  # the last scale is still merged
    scales = cycle((0.35, 0.85))
    with watch_memory(shop.device) as peak:
        seconds = time_calls(shop.device, lambda: apply_lora(ready, next(scales)), rounds=shop.size.rounds)
    apply_lora(ready, 0)
    is_pristine = _equal_weights(own, base)
    apply_lora(ready, None)
    is_merged = not _equal_weights(own, base)
    return [
        Row(
            "C2",
            f"LoRA of {len(paths)} modules against load_lora_weights in fp32",
            tuple(Figure(f"error at {scale:g}, of a last place", error) for scale, error in errors.items()),
            (
                Gate("merged weights", f"{max(errors.values()):.2f}", "at most 1", max(errors.values()) <= 1),
                Gate("another scale is told", f"{wrong:.1f}", "more than 1", wrong > 1),
                equal_gate("taken away", is_equal=is_pristine),
                Gate("put back", "another" if is_merged else "the base", "another", is_merged),
            ),
        ),
        fill_row("G6", [seconds, None if peak.growth is None else peak.growth / 1e6]),
    ]


def apply_lora(ready: ReadyPipeline, scale: float | None) -> None:
    """Merge the LoRA at a scale, or at the manifest's own for None."""
    own = ready.lora_scales
    ready.loras.apply(own if scale is None else dict.fromkeys(own, scale))


def _find_largest_error(shop: Workshop, paths: Sequence[str], scale: float) -> float:
    """Return the largest error of our merged weights, in units of their last place."""
    pipe = shop.truth.pipe
    pipe.set_adapters([ADAPTER], [scale])
    own = shop.ours.pipeline.unet
    worst = 0.0
    with torch.inference_mode():
        for path in paths:
            layer = pipe.unet.get_submodule(path)
            change = layer.get_delta_weight(ADAPTER).float()
            base = layer.get_base_layer().weight.float()
            error = (own.get_parameter(f"{path}.weight").float() - (base + change)).abs()
            # The sum is rounded to the weights' dtype; the change itself was summed in fp32 in another order.
            kind = torch.finfo(shop.dtype)
            place = kind.eps * (base.abs() + change.abs())
            slack = 4 * torch.finfo(torch.float32).eps * change.abs().amax() + max(
                kind.eps * kind.tiny, 1e-30
            )
            worst = max(worst, float((error / (place + slack)).amax()))
    return worst


def _equal_weights(network: nn.Module, pristine: nn.Module) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in pristine.state_dict().items())


def check_tokens(shop: Workshop) -> list[Row]:
    """Row C3: both tokens in both vocabularies, and the prompt's embedding against compel's in fp32."""
    order, pipeline = shop.order(0), shop.ours.pipeline
    base = read_config("text_encoder")["vocab_size"]
    ids = [
        tokenizer("".join(TOKENS)).input_ids[1:3] for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
    ]
    truth = shop.truth.encode(order)
    plain = order.prompt.replace("".join(TOKENS), "")
    errors = {}
    for name, prompt in (("ours", order.prompt), ("without the tokens", plain)):
        tensors = encode_order(pipeline, dataclasses.replace(order, prompt=prompt))
        errors[name] = max(
            float((tensors[key].float() - wanted.float()).norm() / wanted.float().norm())
            for key, wanted in truth.items()
        )
    return [
        Row(
            "C3",
            "Two tokens on both encoders, the embedding against compel's in fp32",
            tuple(Figure(f"{name}: error", 100 * error, "%") for name, error in errors.items()),
            (
                Gate("ids", str(ids), f"{base} and {base + 1} twice", ids == [[base, base + 1]] * 2),
                Gate(
                    "embedding",
                    f"{100 * errors['ours']:.3f} %",
                    f"at most {100 * SAME_EMBEDDING:g} %",
                    errors["ours"] <= SAME_EMBEDDING,
                ),
                Gate(
                    "the tokens show",
                    f"{100 * errors['without the tokens']:.3f} % without them",
                    f"more than {100 * SAME_EMBEDDING:g} %",
                    errors["without the tokens"] > SAME_EMBEDDING,
                ),
            ),
        ),
    ]


def check_vae(shop: Workshop) -> list[Row]:
    """Row C4: the VAE in fp16 and bf16 against fp32, whole and in tiles, and the guard against NaN."""
    vae = shop.ours.pipeline.vae
    side = shop.size.side // 8
    latents = torch.randn((1, 4, side, side), generator=torch.Generator("cpu").manual_seed(3))
    latents = latents.to(shop.device)
    reference = decode_latents(move(copy.deepcopy(vae), dtype=torch.float32), latents)
    psnrs, seconds = {}, {}
    for dtype, needed in ((torch.float16, EQUIVALENT_PSNR), (torch.bfloat16, BF16_PSNR)):
        one = move(copy.deepcopy(vae), dtype=dtype)
        psnrs[dtype] = (measure_psnr(decode_latents(one, latents), reference), needed)
        seconds[dtype] = time_calls(
            shop.device, partial(decode_latents, one, latents), rounds=shop.size.rounds
        )
    calls = {wide: _count_decodings(shop.ours, shop, wide) for wide in (shop.size.side, shop.size.tiled_side)}
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    return [
        Row(
            "C4",
            f"VAE at {shop.size.side} px",
            (
                *(Figure(f"{names[dtype]}: PSNR", psnr, "dB") for dtype, (psnr, _) in psnrs.items()),
                *(Figure(f"{names[dtype]}: decoded in", 1e3 * one, "ms") for dtype, one in seconds.items()),
            ),
            (
                *(
                    Gate(names[dtype], f"{psnr:.1f} dB", f"at least {needed:g} dB", psnr >= needed)
                    for dtype, (psnr, needed) in psnrs.items()
                ),
                Gate(
                    "tiles",
                    ", ".join(f"{count} at {wide} px" for wide, count in calls.items()),
                    f"1 at {shop.size.side} px, more at {shop.size.tiled_side}",
                    calls[shop.size.side] == 1 < calls[shop.size.tiled_side],
                ),
                *_check_guard(vae, latents),
            ),
        )
    ]


def _count_decodings(ours: Ours, shop: Workshop, side: int) -> int:
    """Return how often the decoder runs for a picture of so many pixels a side."""
    calls = []
    hook = ours.pipeline.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        ours.draw(shop.order(0, side=side, steps=1))
    finally:
        hook.remove()
    return len(calls)


def _check_guard(vae: AutoencoderKL, latents: torch.Tensor) -> tuple[Gate, Gate]:
    """Decode with a VAE that overflows in fp16, and decode what is not finite."""
    overflowing = move(copy.deepcopy(vae), dtype=torch.float16)
    # The first convolution then gives what fp32 holds and fp16 does not; the norms behind it scale it back.
    overflowing.decoder.conv_in.weight.data.mul_(torch.finfo(torch.float16).max)
    overflowing.decoder.conv_in.weight.data.clamp_(-65504, 65504)
    large = latents * 100
    with torch.inference_mode():
        plain = overflowing.decode(large.to(torch.float16) / vae.config["scaling_factor"]).sample
    pixels = decode_latents(overflowing, large)
    is_guarded = not bool(plain.isfinite().all()) and bool(pixels.std() > 0)
    try:
        decode_latents(vae, torch.full_like(latents, torch.nan))
        found = "a picture"
    except RenderError:
        found = "refused"
    return (
        Gate("overflow", "a picture" if is_guarded else "none", "a picture, decoded in fp32", is_guarded),
        Gate("NaN", found, "refused", found == "refused"),
    )


def check_requests(shop: Workshop) -> list[Row]:
    """Row C5: the same seed gives the same bytes, also after a cancellation; the device is healthy."""
    ours, order = shop.ours, shop.order(1)
    first, second = ours.predict(order), ours.predict(order)
    other = ours.predict(shop.order(2))
    steps: list[int] = []

    def cancel() -> None:
        steps.append(1)
        if len(steps) == max(1, order.steps // 2):
            raise Cancelled

    try:
        ours.predict(order, on_step=cancel)
        is_cancelled = False
    except Cancelled:
        is_cancelled = True
    after = ours.predict(order)
    is_healthy = ours.renderer.is_healthy()
    return [
        Row(
            "C5",
            "Requests",
            (Figure("PNG", len(first) / 1e6, "MB"),),
            (
                equal_gate("the same seed twice", is_equal=first == second),
                Gate("another seed", "another" if other != first else "the same", "another", other != first),
                Gate(
                    "cancelled in the middle",
                    f"after {len(steps)} of {order.steps} steps" if is_cancelled else "drew on",
                    "ends there",
                    is_cancelled and len(steps) < order.steps,
                ),
                equal_gate("the picture after it", is_equal=after == first),
                Gate("health", "computes" if is_healthy else "failed", "computes", is_healthy),
            ),
        )
    ]
