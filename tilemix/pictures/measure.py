"""How much of each color a picture of granules shows: the shares of a mix, measured.

A pixel belongs to the color with the nearest swatch, as seen, among the colors of the mix and
the twelve basic ones. Three things stand between that rule and what a person would count:

* Shade. A granule lit from the side is darker on the other; so lightness counts half.
* Dark gaps. They would pass for black, and the dim rims beside them for other colors (a dim
  orange is a red). So light granules are grown over the gaps and shrunk again (a gray closing);
  a place that is darker than the result is gap or rim, and its own color does not count.
* Soft edges. Between red and white lies pink; so a place takes the color of most places around
  it, not counting gaps and rims.

On procedural photographs of granules (cells of 16 to 20 pixels, 1 to 4 of the basic colors,
512x512) a share is 1.0 points off on average, and 0.9% of the picture counts as colors that are
not there. The method is made for such granules. Specks under 8 pixels hardly count, and where
pieces meet without a gap, light colors come out too large: dark squares of 20 pixels on a lighter
ground cover 44% and measure 36%.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.chart import basic_colors, get_color
from tilemix.colors.cielab import delta_e_2000, parse_hex, srgb_to_lab
from tilemix.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.chart import Color
    from tilemix.prompts.mix import ColorMix

STEP = 2  # every second pixel of every second row: copied, because averaging makes new colors
GROW = 4  # pixels of the reduced copy by which light granules grow, both sides together
SHRINK = 3  # one less, so that the rims beside a gap are covered too
DROP_PART = 10  # what is darker than the closed picture by more than a tenth is gap or rim
SMALLEST_DROP = 14  # of 255; less is the grain of dark granules
VOTERS = 5  # a place gets its color from the 5x5 places around it
LIGHTNESS_WEIGHT = 0.5
# Basic colors are at least this far apart; one that is nearer to a color of the mix cannot be told from it.
NEAREST_OTHER = 12.0  # delta E 2000
LEVELS = 64  # of each channel, in the table of colors
NO_VOTE = np.uint8(255)  # in place of a color's number


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a picture shows of the mix that was asked for; `shares` and `others` total 100."""

    shares: dict[str, float]  # color of the mix -> percent of the picture, in the mix's order
    others: dict[str, float]  # basic color that was not asked for -> percent, largest first; only those found
    not_asked: float  # the total of `others`, percent
    mean_delta_e: float  # delta E 2000 to the nearest swatch asked for, mean over the pixels of granules


def has_swatch(mix: ColorMix) -> bool:
    """Return whether a color of `mix` is on the chart, so that there is something to measure by."""
    return any(get_color(share.color) is not None for share in mix.shares)


def measure_shares(pixels: NDArray[np.uint8], mix: ColorMix) -> Measurement:
    """Measure the colors of `mix` in `pixels` (h, w, 3), sRGB.

    A color that is not on the chart has no swatch, so its pixels count for the nearest other color. A mix of
    such colors alone cannot be measured, and the result is empty.

    Raises:
        InputError: the pixels have another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InputError("picture-bad-pixels", dtype=str(pixels.dtype), shape=str(pixels.shape))
    asked = [color for share in mix.shares if (color := get_color(share.color)) is not None]
    if not asked:
        return Measurement(shares={}, others={}, not_asked=0.0, mean_delta_e=0.0)
    others = _tell_apart(asked)

    red, green, blue = (pixels[::STEP, ::STEP, channel] for channel in range(3))
    on_granule = _find_granules(np.maximum(np.maximum(red, green), blue))
    places = _table_places(red, green, blue)
    counts = np.bincount(places[on_granule], minlength=LEVELS**3)
    found = np.flatnonzero(counts)
    lab = _lab_of_places(found)
    nearest = np.zeros(LEVELS**3, np.uint8)
    nearest[found] = _find_nearest(lab, _swatches(asked + others))
    labels = np.where(on_granule, nearest[places], NO_VOTE)
    percents = _count_votes(labels, len(asked) + len(others))

    shares = {color.name: percent for color, percent in zip(asked, percents, strict=False)}
    strays = {
        color.name: percent for color, percent in zip(others, percents[len(asked) :], strict=True) if percent
    }
    differences = delta_e_2000(lab[:, None], _swatches(asked)).min(axis=1)
    return Measurement(
        shares=shares,
        others=dict(sorted(strays.items(), key=lambda item: -item[1])),
        not_asked=sum(strays.values()),
        mean_delta_e=float(np.average(differences, weights=counts[found])),
    )


def _tell_apart(asked: list[Color]) -> list[Color]:
    """Return the basic colors that were not asked for and cannot be taken for one that was."""
    basic = [color for color in basic_colors() if color not in asked]
    if not basic:
        return []
    distances = delta_e_2000(_swatches(basic)[:, None], _swatches(asked)).min(axis=1)
    return [color for color, distance in zip(basic, distances, strict=True) if distance >= NEAREST_OTHER]


def _swatches(colors: list[Color]) -> NDArray[np.float64]:
    return srgb_to_lab([parse_hex(color.as_seen) for color in colors])


def _find_granules(lightness: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pixels are neither dark gap nor the rim beside one; `lightness` is the largest channel."""
    closed = _over_windows(_over_windows(lightness, GROW, np.maximum), SHRINK, np.minimum)
    # The closed picture is nowhere darker, so the difference fits into 8 bits.
    return np.asarray(closed - lightness <= np.maximum(closed // DROP_PART, SMALLEST_DROP))


def _over_windows(image: NDArray[np.uint8], size: int, combine: np.ufunc) -> NDArray[np.uint8]:
    """Return `combine` over the `size` x `size` pixels around each pixel; the borders are repeated outward."""
    before, after = size // 2, size - 1 - size // 2
    padded = np.pad(image, (before, after), mode="edge")
    height, width = image.shape
    rows = reduce(combine, (padded[start : start + height] for start in range(size)))
    return reduce(combine, (rows[:, start : start + width] for start in range(size)))


def _table_places(*channels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return each color's place in the table: the upper six bits of its channels."""
    red, green, blue = ((channel >> 2).astype(np.int32) for channel in channels)
    return np.asarray(red << 12 | green << 6 | blue)


def _lab_of_places(places: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the CIELAB of the middle of each place, (n, 3)."""
    channels = np.stack([places >> 12, places >> 6 & 63, places & 63], axis=-1)
    return srgb_to_lab(channels * 4 + 1.5)


def _find_nearest(lab: NDArray[np.float64], swatches: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the number of the nearest swatch for each color, (n,)."""
    weights = np.array([LIGHTNESS_WEIGHT, 1, 1])
    distances = (((lab[:, None] - swatches) * weights) ** 2).sum(axis=-1)
    return np.asarray(distances.argmin(axis=1))


def _count_votes(labels: NDArray[np.uint8], colors: int) -> list[float]:
    """Return the percent of each color, 0 to `colors` - 1, once every place took the commonest color around it.

    Ties split the place. A place with no vote around it, such as the middle of a hole, does not count.
    """
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=NO_VOTE)[:NO_VOTE])
    votes = [_over_windows((labels == color).view(np.uint8), VOTERS, np.add) for color in present]
    most = np.maximum(reduce(np.maximum, votes), 1)  # at least 1, so that no color wins where none has a vote
    wins = [count == most for count in votes]
    equals = np.asarray(np.sum(wins, axis=0, dtype=np.uint8))
    percents = np.zeros(colors)
    for color, is_won in zip(present, wins, strict=True):
        places = np.bincount(equals[is_won])  # won alone, in a tie of two, of three, ...
        percents[color] = (places[1:] / np.arange(1, len(places))).sum()
    return [float(percent) for percent in percents * 100 / np.count_nonzero(equals)]
