"""Granules in pixels: samples of a picture, where it is flat, where it lies in shadow, what stands around."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

BLOCK = 128  # samples; a large picture is looked at in squares of so many
GOLDEN = 0.6180339887  # steps of this part of the width never fall into the same columns for long
AROUND = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
# A closing fills dark places up to four samples wide: gaps, cracks, cast shadows.
CLOSING = 5
REGROWN = 2  # samples that a dark place as wide as a granule wins back at its rim, where it tapers
DARK, DIM = 0.7, 0.9  # of the closed picture: darker than the one is shadow, lighter than the other is not
DISTANCES = (1, 2, 4, 8)  # samples, over which the width of granules is found
LEAST_ALIKE = 0.3  # of the pairs that are alike side by side; with less the distance is too far
BRIGHTENED = 80  # levels added to three channels in sum, or noise would make black the steepest color
RAISED = 50  # levels added to both, or the facets of black granules would be shadow


def take_samples(pixels: Bytes, stride: int, most: int) -> Bytes:
    """Return every `stride`th pixel, copied and not averaged; of more than `most` samples some squares only.

    The squares lie evenly over the picture and come back one below the other, (n * 128, 128, 3).
    """
    samples = pixels[::stride, ::stride]
    height, width = samples.shape[:2]
    if height * width <= most or min(height, width) < BLOCK:
        return np.ascontiguousarray(samples[: max(1, most // width), :most])
    rows, columns, count = height // BLOCK, width // BLOCK, most // BLOCK**2
    spots = {(number * rows // count, int(number * GOLDEN % 1 * columns)) for number in range(count)}
    return np.concatenate(
        [samples[y * BLOCK : (y + 1) * BLOCK, x * BLOCK : (x + 1) * BLOCK] for y, x in sorted(spots)]
    )


def find_flattest(samples: Bytes) -> NDArray[np.int32]:
    """Return for each sample the number of the flattest of the 3x3 around it, (h, w).

    An edge between two granules shows colors of neither. The flattest neighbor lies inside of one of them. Steps
    count in parts of the brightness: those inside dark granules are small, and every edge would go to them.
    """
    lightest = over_windows(samples, 3, np.maximum)
    spans = lightest - over_windows(samples, 3, np.minimum)
    steepness = spans.sum(axis=2, dtype=np.int32)
    steepness <<= 9
    steepness //= lightest.sum(axis=2, dtype=np.int32) + BRIGHTENED
    del lightest, spans
    height, width = steepness.shape
    padded = np.pad(steepness, 1, mode="edge") << 8
    best = np.full((height, width), np.iinfo(np.int32).max, np.int32)
    for number, (down, right) in enumerate(AROUND):
        distance = abs(down) + abs(right)
        rank = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width] + (distance << 4 | number)
        np.minimum(best, rank, out=best)
    chosen = best & 15
    downs, rights = (np.array(steps, np.int8)[chosen] for steps in zip(*AROUND, strict=True))
    rows = np.clip(np.arange(height, dtype=np.int32)[:, None] + downs, 0, height - 1)
    columns = np.clip(np.arange(width, dtype=np.int32) + rights, 0, width - 1)
    return np.asarray(rows * np.int32(width) + columns)


def find_shadow(lightness: Bytes) -> Bytes:
    """Return how surely each sample lies in a thin dark place, 0 to 255, from its largest channel (h, w)."""
    closed = over_windows(over_windows(lightness, CLOSING, np.maximum), CLOSING, np.minimum)
    for _ in range(REGROWN):
        closed = np.maximum(over_windows(closed, 3, np.minimum), lightness)
    part = (lightness.astype(np.float32) + RAISED) / (closed.astype(np.float32) + RAISED)
    return np.asarray(np.clip((DIM - part) * (255 / (DIM - DARK)), 0, 255).astype(np.uint8))


def sum_around(image: Bytes) -> NDArray[np.uint16]:
    """Return the sum over the 3x3 samples around each; the borders are repeated outward."""
    height, width = image.shape
    padded = np.pad(image, 1, mode="edge").astype(np.uint16)
    rows = padded[:height] + padded[1 : height + 1] + padded[2:]
    return np.asarray(rows[:, :width] + rows[:, 1 : width + 1] + rows[:, 2:])


def measure_chord(labels: NDArray[np.integer]) -> float:
    """Return how many samples a granule is wide, in the mean over its rows, from a map of colors.

    Over a distance r two samples are of one granule with the odds exp(-r / chord); of two granules they are of one
    color by the shares. Gaps that pass for a color make near samples differ, but add nothing from r to 2 r once
    both are wider than the gap; so the largest answer of several distances holds. A map of one color has no answer
    and gives inf.
    """
    shares = np.bincount(labels.ravel()) / labels.size
    by_chance = float(1 - (shares**2).sum())  # of two samples far apart
    if not by_chance:
        return float("inf")
    chords = [by_chance / max(_differing(labels, 1), 1e-9)]
    for distance in DISTANCES:
        alike, still_alike = (by_chance - _differing(labels, one) for one in (distance, 2 * distance))
        if alike > still_alike > LEAST_ALIKE * by_chance:
            chords.append(distance / float(np.log(alike / still_alike)))
    return max(chords)


def _differing(labels: NDArray[np.integer], distance: int) -> float:
    """Return the part of pairs of samples, `distance` apart in a row or a column, that differ."""
    pairs = [(labels[:, distance:], labels[:, :-distance]), (labels[distance:], labels[:-distance])]
    return float(np.mean([np.mean(one != other) if one.size else 0.0 for one, other in pairs]))


def over_windows(image: Bytes, size: int, combine: np.ufunc) -> Bytes:
    """Return `combine` over the `size` x `size` samples around each (`size` odd); borders are repeated outward."""
    reach = size // 2
    padded = np.pad(image, [(reach, reach), (reach, reach)] + [(0, 0)] * (image.ndim - 2), mode="edge")
    height, width = image.shape[:2]
    rows = reduce(combine, (padded[start : start + height] for start in range(size)))
    return np.asarray(reduce(combine, (rows[:, start : start + width] for start in range(size))))
