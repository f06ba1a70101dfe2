"""How much of each color a picture of granules shows, how right the colors are, and what else it shows.

Each color has an appearance: a distribution over CIELAB, facets and shade included. The shares are the weights
that explain the picture's pixels best (expectation-maximization). Four things stand between that and what a person
would count:

* Soft edges. Between red and white lies pink; so a pixel stands for the flattest of its neighbors, which lies
  inside a granule.
* Shadow. It would pass for black; so a thin place that is darker than all around it says
  nothing about its color, and the granules beside it decide.
* Likeness. A dim orange facet looks like a red one; so a pixel leans on the pixels around it, for granules are pieces.
* Drift. A drawn picture may be lighter or warmer than the photographs; so each appearance may move a little.

Of large granules only every second or third pixel counts, so that a granule is about seven samples wide.

On the maker's 30 photographs of mixes, by the palette measured on his photographs of one color each, a share is
1.3 points off on average (3.8 at worst; black and white 1.3). On 300 mosaics known to the pixel it is 1.3 (5.9 at
worst), and 0.7 on those without gaps: beside a dark granule a dark gap counts as part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.appearance import SHADOW, density, seen_color
from tilemix.colors.cielab import delta_e_2000, format_hex, lab_to_srgb, srgb_to_lab
from tilemix.colors.palette import chart_palette, find_color
from tilemix.errors import InputError
from tilemix.pictures.granules import (
    BLOCK,
    find_flattest,
    find_shadow,
    measure_chord,
    sum_around,
    take_samples,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette, PaletteColor
    from tilemix.prompts.mix import ColorMix

    Floats = NDArray[np.float64]

FIRST_SAMPLES = 2**16  # to find the granules' size
SAMPLES = 2**18
CHORD = 7  # samples across a granule, to which large ones are brought
MOST_STRIDE = 12
BITS = 5  # of each channel, in the table of colors; the mean of what falls into a place is kept
ROUNDS, TURNS = 3, 15  # of moving the appearances, and of finding the weights in each
MOST_SHIFT = 6.0  # of CIELAB, either way
NEARER = 0.06  # of the way to the nearest other color of the mix, at most: colors do not change places
STIFF = 0.1  # part of the picture that an appearance must explain to move half as far as its pixels say
PASSES = 3  # of leaning on the neighbors
DOUBT = 1e-3  # a color may begin where none of the neighbors has it
UNKNOWN = 5e-9  # density of what is like no color
EXPLAINED = 1e-5  # what a color asked for explains so well is not held for another
CLEARLY = 1000  # times better must another color explain the rest: a dim red facet is a little like brown
# Colors of the palette nearer than this to one asked for cannot be told from it.
NEAREST_OTHER = 12.0  # delta E 2000
LEAST_SHOWN = 0.01  # of the picture; the color of less is not judged
LEAST_OTHER = 2.0  # percent; less is the ruler's own error
MOST_SHADOW = 8.0  # percent; a color darker than the shade of the mix is shadow up to here
ROWS = 64  # samples are worked on in bands of so many rows, to hold few at a time
# What makes the shares uncertain
ALIKE = 6.0  # delta E 2000 between two colors of a mix, about the spread of one
STRANGE = 15.0  # percent that is like no color
SPECKLE = 2.5  # pixels; white noise has 1.8, granules of 6 pixels 4.5
FLAT = 1.0  # standard deviation of the levels of a picture without granules


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a picture shows of the mix that was asked for; `shares` and `others` total 100."""

    shares: dict[str, float]  # color of the mix -> percent of the granules, in the mix's order
    others: dict[
        str, float
    ]  # color of the palette that was not asked for -> percent, largest first; only those found
    not_asked: float  # the total of `others`, percent
    mean_delta_e: float  # delta E 2000 to the nearest color asked for, mean over the pixels of granules
    # color of the mix that shows -> delta E 2000 of its granules to the palette's
    color_errors: dict[str, float] = field(default_factory=dict)
    seen: dict[str, str] = field(
        default_factory=dict
    )  # color of the mix that shows -> "#RRGGBB" of its granules
    drift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # L*, a*, b*: how far all colors moved, in the mean
    uncertain: tuple[str, ...] = ()  # why the shares are not to be trusted; empty where they are


@dataclass(slots=True)
class _View:
    """The samples of a picture, each standing for its flattest neighbor, by their place in a table of colors."""

    places: NDArray[np.uint16]  # (h, w), numbers of `lab`
    shadow: NDArray[np.uint8]  # (h, w), 0 to 255
    lab: Floats  # (n, 3), the mean color of each place that occurs
    counts: Floats  # (n,), how many samples show it; in sum 1


@dataclass(slots=True)
class _Fit:
    """How well each place is explained by the colors asked for and, in the last row, by what else there is."""

    densities: Floats  # (colors + 1, n)
    weights: Floats  # (colors + 1,), in sum 1
    shifts: Floats  # (colors, 3), CIELAB
    other: NDArray[np.intp]  # (n,), the number of the likeliest color that was not asked for


def has_swatch(mix: ColorMix, palette: Palette | None = None) -> bool:
    """Return whether `palette` or the chart has a color of `mix`, so that there is something to measure by."""
    return any(find_color(palette or chart_palette(), share.color) is not None for share in mix.shares)


def measure_shares(pixels: NDArray[np.uint8], mix: ColorMix, palette: Palette | None = None) -> Measurement:
    """Measure the colors of `mix` in `pixels` (h, w, 3), sRGB, by the appearances of `palette`.

    Without a palette the chart's swatches serve, each with a modeled appearance. A color that neither has is left
    out: what shows of it counts for the nearest other color. Of a mix of such colors alone nothing can be
    measured, and the answer is empty.

    Raises:
        InputError: the pixels are not a picture of uint8 (h, w, 3).
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InputError("picture-bad-pixels", dtype=str(pixels.dtype), shape=str(pixels.shape))
    palette = palette or chart_palette()
    found = {share.color: color for share in mix.shares if (color := find_color(palette, share.color))}
    if not found:
        return Measurement(shares={}, others={}, not_asked=0.0, mean_delta_e=0.0)
    asked = list(found.values())
    others = _tell_apart(palette, asked)

    first = _view(take_samples(pixels, 1, FIRST_SAMPLES))
    fit = _explain(first, asked, [], np.zeros((len(asked), 3)))
    chord = measure_chord((fit.densities * fit.weights[:, None]).argmax(axis=0)[first.places])
    most = max(1, min(MOST_STRIDE, min(pixels.shape[:2]) // BLOCK))
    stride = int(np.clip(np.rint(min(chord / CHORD, most)), 1, most)) if np.isfinite(chord) else min(2, most)
    view = _view(take_samples(pixels, stride, SAMPLES))
    fit = _explain(view, asked, others, fit.shifts)
    seen = _count(view, fit)  # (colors + 1, n)

    totals = seen.sum(axis=1)
    strays = np.bincount(fit.other, seen[-1], len(others) + 1)
    percents = 100 * strays / max(totals.sum(), 1e-9)
    shade = SHADOW * min(color.lab[0] for color in asked)
    named = {
        color.word: float(part)
        for color, part in zip(others, percents, strict=False)
        if part >= (MOST_SHADOW if color.lab[0] < shade else LEAST_OTHER)
    }
    counted = totals[:-1].sum() + sum(named.values()) * totals.sum() / 100
    scale = 100 / counted if counted else 0.0
    named = {word: float(part * totals.sum() / 100 * scale) for word, part in named.items()}
    in_all = seen.sum(axis=0)
    swatches = np.stack([color.lab for color in asked])
    nearest = delta_e_2000(view.lab[:, None], swatches).min(axis=1)
    shown = {
        name: seen_color(view.lab[row > 0], row[row > 0])
        for name, row in zip(found, seen, strict=False)
        if row.sum() >= LEAST_SHOWN * totals.sum()
    }
    drift = np.average(fit.shifts, axis=0, weights=totals[:-1]) if totals[:-1].sum() else np.zeros(3)
    return Measurement(
        shares={name: float(total * scale) for name, total in zip(found, totals, strict=False)},
        others=dict(sorted(named.items(), key=lambda item: -item[1])),
        not_asked=float(sum(named.values())),
        mean_delta_e=float(np.average(nearest, weights=in_all)) if in_all.sum() else 0.0,
        color_errors={name: float(delta_e_2000(lab, found[name].lab)) for name, lab in shown.items()},
        seen={name: format_hex(lab_to_srgb(lab)) for name, lab in shown.items()},
        drift=(float(drift[0]), float(drift[1]), float(drift[2])),
        uncertain=tuple(_find_doubts(pixels, found, chord, float(percents[-1]))),
    )


def _tell_apart(palette: Palette, asked: list[PaletteColor]) -> list[PaletteColor]:
    """Return the palette's colors that were not asked for and cannot be taken for one that was."""
    swatches = np.stack([color.lab for color in asked])
    return [
        color
        for color in palette.colors
        if color not in asked and delta_e_2000(color.lab, swatches).min() >= NEAREST_OTHER
    ]


def _view(samples: NDArray[np.uint8]) -> _View:
    flattest = find_flattest(samples)
    red, green, blue = (samples[..., channel].ravel()[flattest] for channel in range(3))
    shadow = find_shadow(np.maximum(np.maximum(red, green), blue))
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
    return _View(
        places=numbers[places],
        shadow=shadow,
        lab=srgb_to_lab(np.stack(sums, axis=-1) / counts[taken, None]),
        counts=counts[taken] / flattest.size,
    )


def _explain(view: _View, asked: list[PaletteColor], others: list[PaletteColor], shifts: Floats) -> _Fit:
    """Find the weights with which the appearances explain the samples best, and how far each has moved."""
    looks = [color.look() for color in asked]
    shifts = shifts.copy()
    limits = np.minimum(MOST_SHIFT, NEARER * _gaps_between(asked))
    strange = np.full(len(view.lab), UNKNOWN)
    other = np.full(len(view.lab), len(others), np.intp)
    weights = np.full(len(asked) + 1, 1 / (len(asked) + 1))
    for turn in range(ROUNDS + 1):
        pairs = [density(look, view.lab, shift) for look, shift in zip(looks, shifts, strict=True)]
        own = np.stack([values for values, _ in pairs])
        best = own.max(axis=0)
        is_strange = best < EXPLAINED
        if turn == 0:  # once is enough: appearances move toward the picture, and leave less to others
            strange[is_strange], other[is_strange] = _explain_by_others(view.lab[is_strange], others)
        is_other = is_strange & (strange > CLEARLY * best)
        densities = np.vstack([own, np.where(is_other, strange, UNKNOWN)])
        for _ in range(TURNS):
            parts = densities * weights[:, None]
            parts *= view.counts / parts.sum(axis=0)
            weights = parts.sum(axis=1)
        if turn == ROUNDS:
            break
        for number, (_, offsets) in enumerate(pairs):
            moved = parts[number] @ offsets / (weights[number] + STIFF)
            shifts[number] = np.clip(shifts[number] + moved, -limits[number], limits[number])
    return _Fit(densities, weights, shifts, other)


def _gaps_between(colors: list[PaletteColor]) -> Floats:
    """Return each color's distance in CIELAB to the nearest of the others; inf where there is none."""
    lab = np.stack([color.lab for color in colors])
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances.min(axis=1))


def _explain_by_others(lab: Floats, others: list[PaletteColor]) -> tuple[Floats, NDArray[np.intp]]:
    """Return the density of the likeliest other color, and its number; past the last: like no color at all."""
    best = np.full(len(lab), UNKNOWN)
    other = np.full(len(lab), len(others), np.intp)
    for number, color in enumerate(others):
        values, _ = density(color.look(), lab)
        other[values > best] = number
        best = np.maximum(best, values)
    return best, other


def _count(view: _View, fit: _Fit) -> Floats:
    """Return how many samples of each place, (colors + 1, n), show each color once all leaned on their neighbors."""
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
    flat = view.places.ravel()
    return np.stack([np.bincount(flat, belief.ravel(), fit.densities.shape[1]) for belief in beliefs]) / 255


def _find_doubts(
    pixels: NDArray[np.uint8], found: dict[str, PaletteColor], chord: float, strange: float
) -> list[str]:
    doubts = []
    if float(pixels[::4, ::4].std(axis=(0, 1)).max()) < FLAT:
        doubts.append("one flat color, without granules")
    if chord < SPECKLE:
        doubts.append(f"no granules: pieces of {chord:.1f} pixels")
    if strange > STRANGE:
        doubts.append(f"{strange:.0f}% of the picture is like no color of the palette")
    names = list(found)
    for number, name in enumerate(names):
        for other in names[:number]:
            apart = float(delta_e_2000(found[name].lab, found[other].lab))
            if apart < ALIKE:
                doubts.append(f"{other} and {name} look alike: delta E {apart:.1f}")
    return doubts
