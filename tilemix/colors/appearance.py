"""How granules of one color look: a distribution over CIELAB, facets, shade and all.

An appearance says for every lightness how often it shows, and which a* and b* go with it. It is measured on a
picture of one color, or, where there is none, modeled around a swatch. Deep shadow is no part of it: what lies
below 0.6 of the median lightness says nothing about the color.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.look import STEP, Appearance

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

NODES = np.arange(0, 101, STEP, dtype=np.float64)
SHADOW = 0.6  # of the median lightness; what is darker is shadow
LIT = 40  # percentile: `as_seen` is the median of what is lighter
AS_SEEN = 0.7  # part of the granules that is darker than `as_seen`
WIDEST = 1.0  # added to every variance: the width of a place in the table of colors
# Percentiles of lightness minus that of `as_seen`, the mean over 29 colors of EPDM granules photographed by
# the maker of the tiles; darker colors vary less, in proportion.
PERCENTILES = (0, 2, 10, 25, 50, 75, 90, 98, 100)
DEVIATIONS = (-30, -25, -18, -10.5, -3.7, 1.3, 5, 10, 14)
FULL_AT = 55.0  # the lightness from which the deviations hold in full
# On the same photographs a* and b* stay as they are in the shade, and vary with the chroma by this much.
SPREAD = 0.7
SPREAD_OF_CHROMA = 0.05
TAIL, TAIL_WIDTH = 0.05, 3.0  # a twentieth of the pixels lies three times as far off
FAR_TAIL, FAR_WIDTH = 0.002, 10.0
FLOOR = 1e-5  # of the lightness's density: no lightness is impossible


def measure_appearance(lab: Floats, counts: ArrayLike | None = None) -> Appearance:
    """Return the appearance of a color from CIELAB values (n, 3) of its picture and how often each occurs."""
    weights = np.ones(len(lab)) if counts is None else np.asarray(counts, np.float64)
    lit = lab[:, 0] >= SHADOW * weighted_quantile(lab[:, 0], weights, 0.5)
    lab, weights = lab[lit], weights[lit]
    lightness, a, b = np.clip(lab[:, 0], 0, 100), lab[:, 1], lab[:, 2]
    moments = np.stack(
        [
            _smooth(_over_nodes(lightness, weights * value))
            for value in (np.ones(len(a)), a, b, a * a, b * b, a * b)
        ]
    )
    total = moments[0].sum()
    weight = moments[0] / total
    # A node that few pixels have leans on its neighbors, one that none have on the nearest that some have.
    wide = _smooth(_smooth(_smooth(moments)))
    lean = moments + 0.002 * total * wide / np.maximum(wide[0], 1e-12)
    filled = np.flatnonzero(wide[0] > 1e-6 * total)
    lean = lean[:, filled[np.abs(np.arange(len(NODES))[:, None] - filled).argmin(axis=1)]]
    mean_a, mean_b, aa, bb, ab = lean[1:] / lean[0]
    return _pack(weight, mean_a, mean_b, aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b)


def model_appearance(as_seen: Floats) -> Appearance:
    """Return the appearance of granules whose lit facets have the CIELAB `as_seen` (3,)."""
    lightness, a, b = (float(value) for value in as_seen)
    values = np.clip(lightness + deviate_lightness(np.arange(0.5, 100) / 100, lightness), 0, 100)
    weight = _smooth(_over_nodes(values, np.ones(len(values))))
    variance = (SPREAD + SPREAD_OF_CHROMA * np.hypot(a, b)) ** 2
    flat = np.ones(len(NODES))
    return _pack(weight / weight.sum(), a * flat, b * flat, variance * flat, variance * flat, 0 * flat)


def deviate_lightness(parts: Floats, lightness: float) -> Floats:
    """Return how far facets lie from the lightness of their color's `as_seen`.

    Args:
        parts: of the color's facets that are darker, 0 to 1.
        lightness: L* of `as_seen`.
    """
    reach = min(1.0, lightness / FULL_AT + 0.15)
    return np.asarray(reach * np.interp(100 * parts, PERCENTILES, DEVIATIONS))


def find_lightness(appearance: Appearance, parts: ArrayLike) -> Floats:
    """Return the L* below which these parts, 0 to 1, of the color's granules lie, in the shape of `parts`."""
    reached = np.cumsum(appearance.weight) / np.sum(appearance.weight)
    return np.asarray(np.interp(np.asarray(parts, np.float64), reached, NODES + STEP / 2))


def density(appearance: Appearance, lab: Floats, shift: ArrayLike = (0.0, 0.0, 0.0)) -> tuple[Floats, Floats]:
    """Return the density of CIELAB values (n, 3), and how far each lies from the mean (n, 3).

    The distances are those of a* and b* to the mean at the value's lightness, and of the lightness to the mean
    of all. `shift` is added to the appearance's means.
    """
    moved = lab - np.asarray(shift)
    lightness = moved[:, 0]
    table = np.array(
        [appearance.weight, appearance.a, appearance.b, appearance.aa, appearance.bb, appearance.ab]
    )
    place = np.clip(lightness / STEP, 0, len(NODES) - 1.001)
    lower = place.astype(np.intp)
    part = place - lower
    weight, a, b, aa, bb, ab = table[:, lower] * (1 - part) + table[:, lower + 1] * part
    off_a, off_b = moved[:, 1] - a, moved[:, 2] - b
    determinant = np.maximum(aa * bb - ab**2, 0.05 * aa * bb)
    squared = (bb * off_a**2 - 2 * ab * off_a * off_b + aa * off_b**2) / determinant
    bell = (1 - TAIL) * np.exp(-squared / 2)
    for part, width in ((TAIL, TAIL_WIDTH), (FAR_TAIL, FAR_WIDTH)):
        bell += part / width**2 * np.exp(-squared / (2 * width**2))
    bell /= 2 * np.pi * np.sqrt(determinant)
    mean = float(np.average(NODES, weights=appearance.weight))
    return (weight / STEP + FLOOR) * bell, np.stack([lightness - mean, off_a, off_b], axis=-1)


def seen_color(lab: Floats, counts: ArrayLike, *, shaded: float = 0.0) -> Floats:
    """Return the median of the lighter 60 % of CIELAB values (n, 3): granules without their shade.

    `shaded` is the part of the picture, 0 to 1, that lies in shadow and was left out of the values already.
    """
    weights = np.asarray(counts, np.float64)
    darker = max(0.0, 1 - (1 - LIT / 100) / max(1 - shaded, 1e-6))
    lit = lab[:, 0] >= weighted_quantile(lab[:, 0], weights, darker)
    return np.array([weighted_quantile(lab[lit, axis], weights[lit], 0.5) for axis in range(3)])


@cache
def measure_overlap(one: Appearance, other: Appearance) -> float:
    """Return the part of two colors' granules, 0 to 1, that could be either by their color alone."""
    parts = []
    for own, foreign in ((one, other), (other, one)):
        lab, weights = _sample(own)
        odds = density(foreign, lab)[0] / density(own, lab)[0]
        parts.append(float(weights @ np.minimum(odds, 1)))
    return sum(parts) / 2


def _sample(appearance: Appearance) -> tuple[Floats, Floats]:
    """Return CIELAB values that stand for the distribution, nine at each lightness, and their weights, in sum 1.

    Three along each axis of the ellipse of a* and b*, as for Gauss-Hermite quadrature.
    """
    spots, weights = [], []
    across = np.array([-np.sqrt(3), 0, np.sqrt(3)])
    odds = np.outer([1, 4, 1], [1, 4, 1]).ravel() / 36
    offsets = np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)
    for number, weight in enumerate(appearance.weight):
        ab = appearance.ab[number]
        values, axes = np.linalg.eigh([[appearance.aa[number], ab], [ab, appearance.bb[number]]])
        moved = offsets * np.sqrt(np.maximum(values, 0)) @ axes.T
        lightness = np.full((len(moved), 1), NODES[number])
        spots.append(np.hstack([lightness, moved + np.array([appearance.a[number], appearance.b[number]])]))
        weights.append(weight * odds)
    total = np.concatenate(weights)
    return np.concatenate(spots), total / total.sum()


def weighted_quantile(values: Floats, weights: Floats, quantile: float) -> float:
    """Return the value below which `quantile` of the weight lies, halfway within the value that holds it."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(quantile * weights.sum(), reached, values[order]))


def _over_nodes(lightness: Floats, values: Floats) -> Floats:
    """Share each value between the two nodes that its lightness lies between."""
    lower = np.minimum((lightness / STEP).astype(np.intp), len(NODES) - 2)
    part = lightness / STEP - lower
    count = len(NODES)
    return np.asarray(
        np.bincount(lower, (1 - part) * values, count) + np.bincount(lower + 1, part * values, count)
    )


def _smooth(values: Floats) -> Floats:
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(1, 1)])
    return np.asarray((padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4)


def _pack(weight: Floats, a: Floats, b: Floats, aa: Floats, bb: Floats, ab: Floats) -> Appearance:
    def rounded(values: Floats, digits: int) -> tuple[float, ...]:
        return tuple(float(value) for value in np.round(values, digits) + 0.0)

    return Appearance(
        weight=rounded(weight, 4),
        a=rounded(a, 1),
        b=rounded(b, 1),
        aa=rounded(np.maximum(aa, 0) + WIDEST, 1),
        bb=rounded(np.maximum(bb, 0) + WIDEST, 1),
        ab=rounded(ab, 1),
    )
