"""A layout: a map of granules that wraps in both directions, and the color of each.

The same shares, size, granules and seed give the same layout on every machine. A picture of it is a draft: the
colors flat, with faint gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tilemix.drafts.pieces import SHAPES
from tilemix.drafts.shares import cut_to_size, deal_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from tilemix.colors.palette import Granules
    from tilemix.drafts.pieces import Labels

SCALES = {"small": 0.65, "medium": 1.0, "large": 1.5}  # granule_size -> factor on the diameter


@dataclass(frozen=True, slots=True)
class Layout:
    """Which granule, and so which color, shows at each pixel."""

    labels: Labels  # the granule at each pixel, (h, w)
    colors: NDArray[np.intp]  # the number of each granule's color, (n,)

    def shares(self, count: int) -> NDArray[np.float64]:
        """Return the shares of `count` colors by area, in sum 1."""
        numbers = np.bincount(self.colors[self.labels.ravel()], minlength=count)
        return np.asarray(numbers / self.labels.size)

    def paint(self, swatches: ArrayLike, gap: float) -> NDArray[np.uint8]:
        """Return the draft (h, w, 3), sRGB.

        Args:
            swatches: the colors (m, 3), sRGB 0 to 255.
            gap: brightness of the line between two granules, as a part of theirs.
        """
        return list_colors(swatches, gap)[self.number_colors(len(np.asarray(swatches)))]

    def number_colors(self, count: int) -> NDArray[np.uint8]:
        """Return the number of each pixel's color among `count` (h, w), plus `count` on a line between two granules."""
        is_edge = self.labels != np.roll(self.labels, 1, axis=0)
        is_edge |= self.labels != np.roll(self.labels, 1, axis=1)
        shown = self.colors.astype(np.uint8)[self.labels]
        shown += is_edge.view(np.uint8) * np.uint8(count)
        return shown


def list_colors(swatches: ArrayLike, gap: float) -> NDArray[np.uint8]:
    """Return the colors of a draft (2m, 3), sRGB: the swatches (m, 3), then those of the lines between granules."""
    lit = np.rint(np.asarray(swatches, np.float64)).clip(0, 255)
    return np.concatenate([lit, np.rint(lit * gap)]).astype(np.uint8)


def lay_out(
    shares: Sequence[float], width: int, height: int, granules: Granules, seed: int, *, size: str = "medium"
) -> Layout:
    """Lay out granules whose areas hold `shares` to 0.02 % of the picture.

    Args:
        shares: of the colors, of any sum; at most 100 colors.
        width: in pixels.
        height: in pixels.
        granules: their shape and size.
        seed: another one gives another layout.
        size: a key of SCALES.
    """
    random = np.random.default_rng(seed)
    parts = (np.array(shares, np.float64) / sum(shares)).tolist()
    diameter = granules.diameter * SCALES[size]
    labels, middles = SHAPES[granules.shape](width, height, diameter, granules.spread, random)
    areas = np.bincount(labels.ravel(), minlength=len(middles))
    colors = deal_colors(areas, middles, parts, diameter, random)
    return Layout(labels, cut_to_size(labels, colors, parts, random))
