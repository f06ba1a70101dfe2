"""How a picture's granules look, in figures that do not depend on where they lie: spectrum, contrast, gaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RINGS = 8  # of the radial spectrum, from 1/64 to 1/4 of a cycle a pixel
SHADE = 0.6  # of the median lightness; what is darker is gap or shadow
LEAST_SPREAD = 0.05  # of a figure between two pictures, in its own unit; all are logarithms or near 1


def describe_texture(pixels: NDArray[np.uint8]) -> Floats:
    """Return the figures of a picture (h, w, 3): log power in rings, log contrast, log share of the gaps."""
    lightness = pixels.max(axis=2).astype(np.float64)
    contrast = lightness.std() + 1.0
    flat = (lightness - lightness.mean()) / contrast
    window = np.hanning(flat.shape[0])[:, None] * np.hanning(flat.shape[1])
    power = np.abs(np.fft.rfft2(flat * window)) ** 2 / np.sum(window**2)
    frequency = np.hypot(np.fft.fftfreq(flat.shape[0])[:, None], np.fft.rfftfreq(flat.shape[1]))
    edges = np.geomspace(1 / 64, 1 / 4, RINGS + 1)
    ring = np.digitize(frequency, edges)
    spectrum = [np.log10(power[ring == number].mean() + 1e-6) for number in range(1, RINGS + 1)]
    gaps = float((lightness < SHADE * np.median(lightness)).mean())
    return np.array([*spectrum, np.log10(contrast), np.log10(gaps + 0.02)])


def find_texture_distance(pictures: Sequence[Floats], references: Sequence[Sequence[Floats]]) -> float:
    """Return how far pictures lie from references of the same mixes, in the references' spread.

    Args:
        pictures: the figures of one picture of each mix.
        references: the figures of at least two pictures of each mix.
    """
    spread = np.sqrt(np.mean([np.var(of_mix, axis=0, ddof=1) for of_mix in references], axis=0))
    off = np.mean(
        [one - np.mean(of_mix, axis=0) for one, of_mix in zip(pictures, references, strict=True)], axis=0
    )
    return float(np.sqrt(np.mean((off / np.maximum(spread, LEAST_SPREAD)) ** 2)))
