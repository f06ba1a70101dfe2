"""Which color each sample of a picture shows: the weights that explain the picture best, and what is around.

Each color has an appearance: a distribution over CIELAB, facets and shade included. The weights of the colors
are those with which the picture's samples are likeliest (expectation-maximization). Five things stand between
that and what a person would count:

* Soft edges. Between red and white lies pink; so a sample stands for the flattest of its neighbors, which lies
  inside a granule.
* Shadow. It would pass for black; so a thin place that is darker than all around it says nothing about its
  color, and the granules beside it decide.
* Likeness. A dim orange facet looks like a red one; so a sample leans on those around it, for granules are pieces.
* Drift. A drawn picture may be lighter or warmer than the photographs; so each appearance may move a little.
* Other colors. The palette's colors that were not asked for are tried first, and stay only where they explain
  more than the asked colors' own shade and drift would leave to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.appearance import density
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.pictures.granules import find_flattest, find_shadow, sum_around

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import PaletteColor

    Floats = NDArray[np.float64]
    Bytes = NDArray[np.uint8]

BITS = 5  # of each channel, in the table of colors; the mean of what falls into a place is kept
ROUNDS, TURNS = 3, 15  # of moving the appearances, and of finding the weights in each
MOST_SHIFT = 6.0  # of CIELAB, either way
NEARER = 0.06  # of the way to the nearest other color of the mix, at most: colors do not change places
STIFF = 0.1  # part of the picture that an appearance must explain to move half as far as its samples say
PASSES = 3  # of leaning on the neighbors
DOUBT = 1e-3  # a color may begin where none of the neighbors has it
UNKNOWN = 5e-9  # density of what is like no color
UNASKED = 0.3  # as likely as a color asked for is any other, before the picture is seen
# A color that was not asked for shows from this percent on, by its delta E 2000 to the nearest that was: the
# drift of the maker's blue in his mixes leaves 12 % to sky blue.
OTHER_DISTANCES, LEAST_PERCENTS = (15, 25, 36), (20, 12, 2)
# An asked color whose samples another color explains almost as well, in the mean of the logarithm, has been
# drawn into its place: on the maker's 30 mixes no other color comes nearer than -1.4, on whole tiles of a wrong
# color the right one lies between -0.9 and 0.9.
STAND_IN = -1.0
LEAST_SHOWN = 0.01  # of the picture; less says nothing about a color
ROWS = 64  # samples are worked on in bands of so many rows, to hold few at a time


@dataclass(slots=True)
class View:
    """The samples of a picture, each standing for its flattest neighbor, by their place in a table of colors."""

    places: NDArray[np.uint16]  # (h, w), numbers of `lab`
    shadow: Bytes  # (h, w), how surely it lies in shadow, 0 to 255
    lab: Floats  # (n, 3), the mean color of each place that occurs
    counts: Floats  # (n,), how many samples show it; in sum 1


@dataclass(slots=True)
class Fit:
    """How well each place is explained by the colors asked for and, in the last row, by what else there is."""

    densities: Floats  # (colors + 1, n)
    weights: Floats  # (colors + 1,), in sum 1
    shifts: Floats  # (colors, 3), CIELAB
    other: NDArray[np.intp]  # (n,), the number of the likeliest other color; past the last: like no color
    parts: Floats  # (others,), the weight of each other color
    strange: Floats  # (others, n), the density of each, times its odds


def view_samples(samples: Bytes) -> View:
    """Sort samples (h, w, 3), sRGB, into a table of colors."""
    shadow = find_shadow(np.maximum(np.maximum(samples[..., 0], samples[..., 1]), samples[..., 2]))
    flattest = find_flattest(samples)
    red, green, blue = (samples[..., channel].ravel()[flattest] for channel in range(3))
    np.maximum(shadow, find_shadow(np.maximum(np.maximum(red, green), blue)), out=shadow)
    drop = 8 - BITS
    places = (red >> drop).astype(np.uint16) << 2 * BITS
    places |= (green >> drop).astype(np.uint16) << BITS
    places |= blue >> drop
    flat = places.ravel()
    counts = np.bincount(flat, minlength=1 << 3 * BITS)
    taken = np.flatnonzero(counts)
    sums = [np.bincount(flat, channel.ravel(), 1 << 3 * BITS)[taken] for channel in (red, green, blue)]
    numbers = np.zeros(1 << 3 * BITS, np.uint16)
    numbers[taken] = np.arange(len(taken))
    return View(
        places=numbers[places],
        shadow=shadow,
        lab=srgb_to_lab(np.stack(sums, axis=-1) / counts[taken, None]),
        counts=counts[taken] / flattest.size,
    )


def explain(
    view: View, asked: list[PaletteColor], others: dict[PaletteColor, float], shifts: Floats | None = None
) -> Fit:
    """Find the weights with which the appearances explain the samples best, and how far each has moved.

    Args:
        view: the samples.
        asked: the colors that should show; their appearances may move.
        others: the colors that may show besides, with the odds against those asked for; theirs stay.
        shifts: how far the appearances have moved at first, (colors, 3); None: not at all.
    """
    count = len(asked)
    looks = [color.look() for color in asked]
    shifts = np.zeros((count, 3)) if shifts is None else shifts.copy()
    limits = np.minimum(MOST_SHIFT, NEARER * _gaps_between(asked))
    strange = [odds * density(color.look(), view.lab)[0] for color, odds in others.items()]
    strange.append(np.full(len(view.lab), UNKNOWN))
    weights = np.full(count + len(strange), 1 / (count + 1))
    weights[count:] /= len(strange)
    for turn in range(ROUNDS + 1):
        pairs = [density(look, view.lab, shift) for look, shift in zip(looks, shifts, strict=True)]
        densities = np.stack([*(values for values, _ in pairs), *strange])
        for _ in range(TURNS):
            parts = densities * weights[:, None]
            parts *= view.counts / parts.sum(axis=0)
            weights = parts.sum(axis=1)
        if turn == ROUNDS:
            break
        for number, (_, offsets) in enumerate(pairs):
            moved = parts[number] @ offsets / (weights[number] + STIFF)
            shifts[number] = np.clip(shifts[number] + moved, -limits[number], limits[number])
    strange_parts = densities[count:] * weights[count:, None]
    strange_weight = weights[count:].sum()
    return Fit(
        densities=np.vstack([densities[:count], strange_parts.sum(axis=0) / max(strange_weight, 1e-12)]),
        weights=np.append(weights[:count], strange_weight),
        shifts=shifts,
        other=strange_parts.argmax(axis=0),
        parts=weights[count:-1],
        strange=densities[count:-1],
    )


def find_others(
    view: View, asked: list[PaletteColor], candidates: list[PaletteColor]
) -> tuple[Fit, dict[PaletteColor, float]]:
    """Return the fit with all `candidates`, and those that show, with their odds for `explain`."""
    fit = explain(view, asked, dict.fromkeys(candidates, UNASKED))
    found = {}
    swatches = np.stack([color.lab for color in asked])
    for color, part in zip(candidates, fit.parts, strict=True):
        apart = float(delta_e_2000(color.lab, swatches).min())
        if 100 * part >= np.interp(apart, OTHER_DISTANCES, LEAST_PERCENTS):
            found[color] = UNASKED
    if candidates:
        shown = fit.densities * fit.weights[:, None]
        shown *= view.counts / shown.sum(axis=0)
        logs = np.log(fit.strange / UNASKED)
        for own, part in zip(fit.densities[:-1], shown, strict=False):
            if (total := part.sum()) >= LEAST_SHOWN:
                gains = (logs - np.log(own)) @ part / total
                if gains.max() > STAND_IN:
                    found[candidates[int(gains.argmax())]] = 1.0
    return fit, found


def lean_on_neighbors(view: View, fit: Fit) -> Bytes:
    """Return how surely each sample shows each color, 0 to 255, (colors + 1, h, w), by its own and those around."""
    count, height = len(fit.densities), len(view.places)
    table = fit.densities.astype(np.float32)
    table /= table.max(axis=0)  # only ratios count
    beliefs = np.empty((count, *view.places.shape), np.uint8)
    for step in range(PASSES + 1):
        around = [sum_around(belief) for belief in beliefs] if step else []
        for top in range(0, height, ROWS):
            rows = slice(top, top + ROWS)
            places, shadow = view.places[rows], view.shadow[rows].astype(np.float32) / 255
            parts = np.empty((count, *places.shape), np.float32)
            for number in range(count):
                known = (
                    around[number][rows] * np.float32(1 / (9 * 255)) + DOUBT if step else fit.weights[number]
                )
                # Shadow says nothing about the color: there the neighbors alone decide.
                parts[number] = (table[number][places] * (1 - shadow) + shadow) * known
            parts *= 255 / np.maximum(parts.sum(axis=0), np.float32(1e-20))
            if not step:
                parts *= 1 - shadow
            beliefs[:, rows] = np.rint(parts)
    return beliefs


def _gaps_between(colors: list[PaletteColor]) -> Floats:
    """Return each color's distance in CIELAB to the nearest of the others; inf where there is none."""
    lab = np.stack([color.lab for color in colors])
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances.min(axis=1))
