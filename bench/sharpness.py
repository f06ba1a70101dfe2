"""How sharp pictures are, and how like photographs: neighboring pixels, spectrum, and a critic that learns to tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from miniature.stages.critic import PatchCritic
from miniature.stages.vae import to_tensor
from tilemix.colors.cielab import srgb_to_lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bench.tiles import Pixels

REAL = Path(__file__).with_name("photographs.json")  # figures of the maker's tiles
RINGS, LOWEST, NYQUIST = 20, 1 / 300, 0.5  # cycles a pixel
UNEVEN_LIGHT = 150.0  # pixels: a Gaussian of this size is the light, not the tile
CROP = 64  # pixels: what the critic sees
STEPS, BATCH, LEARNING_RATE = 400, 32, 1e-3


def measure_sharpness(pixels: Pixels) -> float:
    """Return the mean absolute difference of neighboring pixels (h, w, 3), in sRGB units."""
    values = pixels.astype(np.float32)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in (0, 1)]))


def measure_spectrum(pixels: Pixels) -> NDArray[np.float64]:
    """Return log10 of the power (20,) at rising frequencies; white noise has 0, and NaN is a ring without a sample."""
    lightness = srgb_to_lab(pixels)[..., 0]
    lightness = lightness - ndimage.gaussian_filter(lightness, UNEVEN_LIGHT)
    side = min(lightness.shape)
    square = lightness[:side, :side] / lightness.std()
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = np.abs(np.fft.fft2(square * window)) ** 2 / np.sum(window**2)
    axis = np.fft.fftfreq(side)
    ring = np.digitize(np.hypot(axis[:, None], axis), np.geomspace(LOWEST, NYQUIST, RINGS + 1))
    found = [power[ring == number + 1] for number in range(RINGS)]
    return np.array([np.log10(one.mean()) if one.size else np.nan for one in found])


def find_spectrum_error(pixels: Pixels) -> float:
    """Return how far the spectrum lies from that of the maker's photographs at worst, in dB.

    The frequencies run from one cycle in 32 pixels, two granules, to half of the Nyquist frequency.
    """
    real = json.loads(REAL.read_text(encoding="utf-8"))
    frequencies = np.array(real["frequencies"])
    compared = (frequencies >= 1 / 32) & (frequencies <= NYQUIST / 2)
    off = 10 * (measure_spectrum(pixels) - np.array(real["log_power"]))
    return float(np.abs(off[compared]).max())


def tell_apart(drawn: Sequence[Pixels], photographs: Sequence[Pixels], seed: int = 0) -> float:
    """Return the part of crops that a critic assigns rightly: 0.5 is guessing, 1 is never wrong.

    It is trained on half of the pictures and tested on the other half, on crops of 64 pixels.

    Args:
        drawn: pictures of the same mixes as `photographs`, in the same order.
        photographs: as many.
        seed: of the critic's weights and crops.
    """
    half = len(drawn) // 2
    random = np.random.default_rng(seed)
    critic = PatchCritic(seed)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=LEARNING_RATE)

    def draw(kinds: Sequence[Sequence[Pixels]], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        crops, answers = [], []
        for number in range(count):
            kind = number % 2
            picture = kinds[kind][int(random.integers(len(kinds[kind])))]
            top, left = (int(random.integers(0, side - CROP + 1)) for side in picture.shape[:2])
            crops.append(picture[top : top + CROP, left : left + CROP])
            answers.append(float(kind))
        return to_tensor(np.stack(crops)), torch.tensor(answers)

    for _ in range(STEPS):
        crops, answers = draw((drawn[:half], photographs[:half]), BATCH)
        loss = F.binary_cross_entropy_with_logits(critic(crops).mean(dim=(1, 2, 3)), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        crops, answers = draw((drawn[half:], photographs[half:]), 512)
        given = critic(crops).mean(dim=(1, 2, 3)) > 0
    return float((given == answers.bool()).float().mean())
