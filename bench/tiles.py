"""Measures of tile pictures (shares of colors, repeats), and the mixes that the bench draws."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tilemix.colors.answers import find_answer
from tilemix.colors.chart import basic_colors
from tilemix.colors.palette import load_palette
from tilemix.pictures.measure import find_share_errors, measure_shares
from tilemix.prompts.mix import ColorMix, ColorShare

Pixels: TypeAlias = NDArray[np.uint8]  # (height, width, 3), sRGB

PALETTE = load_palette("rubber-tile")
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
        measured = measure_shares(pixels, mix, PALETTE)
        self.color_errors += measured.color_errors.values()
        self.not_asked.append(measured.not_asked)
        percents = {share.color: float(share.percent) for share in mix.shares}
        for word, error in find_share_errors(measured, mix, PALETTE).items():
            self.errors[word].append(error)
            if percents[word] >= FROM:
                self.within.append(error <= WITHIN)

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
    """Return unseen mix `number`: 1 to 4 of the palette's words for the basic colors, in multiples of 5 %."""
    random = np.random.default_rng([SEED, number])
    count = 1 + number % 4
    answers = (find_answer(PALETTE, color.name) for color in basic_colors())
    words = sorted({answer.color.word for answer in answers if answer is not None})
    names = random.choice(words, count, replace=False)
    cuts = np.sort(random.choice(np.arange(1, 20), count - 1, replace=False)) * 5
    percents = np.diff(np.concatenate([[0], cuts, [100]]))
    return ColorMix(tuple(ColorShare(str(n), Decimal(int(p))) for n, p in zip(names, percents, strict=True)))


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
