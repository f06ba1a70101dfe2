"""The pictures and orders that the bench draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.peers import Order
from tilemix.pictures.files import read_pixels
from tilemix.system.project import ROOT
from tilemix.weights.manifest import load_manifest

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

TILE_WORDS = "photorealistic rubber tile, high quality, detailed texture"


def draw_noise_picture(side: int = 1024, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return a seeded picture (side, side, 3) with a 1/f spectrum like a photograph's, and grain of sigma 1.

    Plain noise cannot be compressed and would hide the cost of a PNG encoder.
    """
    random = np.random.default_rng(seed)
    across, down = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.maximum(np.hypot(across, down), 1 / side)
    channels = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * random.random(frequency.shape))
        channel = np.fft.irfft2(phases / frequency, (side, side))
        channels.append(channel / channel.std() * 40 + 128 + random.normal(0, 1, (side, side)))
    return np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)


def read_tile_picture() -> NDArray[np.uint8]:
    """Return the README's picture, 1024x1024, which the miniature drew."""
    return read_pixels(ROOT / "docs" / "tile.png")


def to_decoded(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return a decoded picture that rounds to `pixels`: (1, 3, h, w), fp32, -1 to 1, off the 8-bit grid."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    image += torch.rand(image.shape, generator=generator) * 0.8 - 0.4
    return image / 127.5 - 1


def order_tile(number: int, *, side: int = 512, steps: int = 25) -> Order:
    """Return order `number` for the miniature; each has another mix and seed."""
    red = 20 + number * 7 % 61
    return Order(
        prompt=f"ohwx_rubber_tile <s0><s1>, {red}% red, {100 - red}% black, {TILE_WORDS}",
        negative_prompt="",
        seed=number,
        side=side,
        steps=steps,
        guidance_scale=load_manifest("miniature", ROOT).defaults.guidance_scale,
    )


def order_topology(number: int, *, side: int = 256, steps: int = 4) -> Order:
    """Return order `number` for a model of `bench.topology`; each has another prompt and seed."""
    red = 20 + number * 7 % 61
    return Order(
        prompt=f"rubber_tile number {number}, {red}% red, {100 - red}% black, {TILE_WORDS}",
        negative_prompt="blurry",
        seed=number,
        side=side,
        steps=steps,
        guidance_scale=5.0,
    )
