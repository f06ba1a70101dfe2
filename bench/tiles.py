"""Measures of tile pictures (shares of colors, gaps, repeats), and the mixes that the bench draws."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tilemix.colors.chart import basic_colors
from tilemix.colors.palette import load_palette
from tilemix.pictures.measure import measure_shares
from tilemix.prompts.mix import ColorMix, ColorShare

Pixels: TypeAlias = NDArray[np.uint8]  # (height, width, 3), sRGB

SEED = 4_000_000  # of the mixes; above the seed of every training photograph
FROM, WITHIN = (
    15.0,
    3.0,
)  # percent and points: a share of 15 % or more is found if it measures within 3 points


@dataclass
class Colors:
    """The errors of the measured shares and colors over many pictures, by the miniature's palette."""

    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    color_errors: list[float] = field(default_factory=list)
    within: list[bool] = field(default_factory=list)
    not_asked: list[float] = field(default_factory=list)

    def add(self, mix: ColorMix, pixels: Pixels) -> None:
        """Measure one picture."""
        measured = measure_shares(pixels, mix, load_palette("miniature"))
        self.color_errors += measured.color_errors.values()
        self.not_asked.append(measured.not_asked)
        for share in mix.shares:
            percent = float(share.percent)
            self.errors[share.color].append(abs(measured.shares[share.color] - percent))
            if percent >= FROM:
                self.within.append(self.errors[share.color][-1] <= WITHIN)

    @property
    def mean_error(self) -> float:
        """The mean over every share of every mix, in percentage points."""
        return float(np.mean([error for errors in self.errors.values() for error in errors]))

    @property
    def worst(self) -> tuple[str, float]:
        """The color with the largest mean error, and that error."""
        means = {color: float(np.mean(errors)) for color, errors in self.errors.items()}
        return max(means.items(), key=lambda item: item[1])


def draw_basic_mix(number: int) -> ColorMix:
    """Return unseen mix `number`: 1 to 4 basic colors, in multiples of 5 %."""
    random = np.random.default_rng([SEED, number])
    count = 1 + number % 4
    names = random.choice([color.name for color in basic_colors()], count, replace=False)
    cuts = np.sort(random.choice(np.arange(1, 20), count - 1, replace=False)) * 5
    percents = np.diff(np.concatenate([[0], cuts, [100]]))
    return ColorMix(tuple(ColorShare(str(n), Decimal(int(p))) for n, p in zip(names, percents, strict=True)))


def find_gap_share(pixels: Pixels) -> float:
    """Return the percentage of gaps in a picture: more than a third darker than its closing over 9 pixels."""
    lightness = pixels.max(axis=2).astype(np.float32)
    closed = ndimage.grey_closing(lightness, size=(9, 9))
    return float((lightness < closed * (2 / 3)).mean() * 100)


def find_repeat(pixels: Pixels) -> float:
    """Return the largest autocorrelation of a picture at 96 pixels or more; 1 is an exact repetition."""
    lightness = pixels.mean(axis=2)
    lightness -= ndimage.gaussian_filter(lightness, 48)
    padded = np.zeros([2 * side for side in lightness.shape])
    padded[: lightness.shape[0], : lightness.shape[1]] = lightness
    overlap = np.zeros_like(padded)
    overlap[: lightness.shape[0], : lightness.shape[1]] = 1
    correlation = np.fft.irfft2(np.abs(np.fft.rfft2(padded)) ** 2, padded.shape)
    count = np.maximum(np.fft.irfft2(np.abs(np.fft.rfft2(overlap)) ** 2, padded.shape), 1)
    normed = correlation / count / lightness.var()
    y, x = (np.minimum(np.arange(side), side - np.arange(side)) for side in padded.shape)
    is_far = (np.hypot(y[:, None], x[None, :]) >= 96) & (count > lightness.size / 4)
    return float(normed[is_far].max())
