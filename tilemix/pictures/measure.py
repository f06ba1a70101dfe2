"""How much of each color a picture of granules shows, how right the colors are, and what else it shows.

`unmixing` finds which color each sample of the picture shows. Of large granules only every second or third pixel
is a sample, so that a granule is about seven samples wide.

On the maker's 30 photographs of mixes, by the palette measured on his photographs of one color each, a share is
1.3 points off on average; on 300 mosaics known to the pixel it is 1.0. docs/color.md says more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.appearance import SHADOW, measure_overlap, seen_color, weighted_quantile
from tilemix.colors.cielab import delta_e_2000, format_hex, lab_to_srgb
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import chart_palette, find_color
from tilemix.errors import InputError
from tilemix.pictures.granules import BLOCK, measure_chord, sum_around, take_samples
from tilemix.pictures.unmixing import (
    LEAST_SHOWN,
    Fit,
    View,
    explain,
    find_others,
    lean_on_neighbors,
    view_samples,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette, PaletteColor
    from tilemix.prompts.mix import ColorMix

    Floats = NDArray[np.float64]
    Bytes = NDArray[np.uint8]

FIRST_SAMPLES = 2**16  # to find the granules' size, and which other colors show
SAMPLES = 2**18
CHORD = 7  # samples across a granule, to which large ones are brought
MOST_STRIDE = 12
# Colors of the palette nearer than this to one asked for cannot be told from it.
NEAREST_OTHER = 12.0  # delta E 2000
LEAST_OTHER = 2.0  # percent; less is the ruler's own error
MOST_SHADOW = 8.0  # percent; a color darker than the shade of the mix is shadow up to here
# The color of granules is measured where a sample and all around it show it, in the light.
MAGENTA = (255, 0, 255)
IN_CORE = 9 * 230  # sum of a sample's and its neighbors' beliefs, each 0 to 255
IN_LIGHT = 64  # of 255, how surely the sample may lie in shadow
LEAST_CORE = 100  # samples; a color without so many is judged by all of its own
# What makes the shares uncertain
ALIKE, OVERLAP = (
    7.0,
    0.14,
)  # delta E 2000 between two colors of a mix; part of their granules that could be either
STRANGE = 8.0  # percent that is like no color; the maker's photographs have at most 0.8
SPECKLE = 2.5  # pixels; white noise has 1.8, granules of 6 pixels 4.5
FLAT = 1.0  # standard deviation of the levels of a picture without granules
SMOOTH = 6.0  # percent of squares that show no granules: a hand, a ruler, ground
SQUARE, LEAST_SQUARE, FEWEST_SQUARES = 3, 16, 9  # granules and pixels across a square; squares of a picture
PLAIN = 0.3  # of the typical steps between neighbors; a square with less shows no granules
GRAY, COLORED = 2.0, 15.0  # chroma of a picture without color; of a color that is not gray


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a picture shows of the mix that was asked for; `shares` and `others` total 100."""

    shares: dict[str, float]  # color of the mix -> percent of the granules, in the mix's order
    # color of the palette that was not asked for -> percent, largest first; only those found
    others: dict[str, float]
    not_asked: float  # the total of `others`, percent
    mean_delta_e: float  # delta E 2000 to the nearest color asked for, mean over the pixels of granules
    # color of the mix that shows -> delta E 2000 of its granules to the palette's
    color_errors: dict[str, float] = field(default_factory=dict)
    # color of the mix that shows -> L* of its granules minus the palette's; above 0: lighter
    lightness_errors: dict[str, float] = field(default_factory=dict)
    # color of the mix that shows -> "#RRGGBB" of its granules
    seen: dict[str, str] = field(default_factory=dict)
    granule_width: float = math.inf  # pixels, the mean; inf where all is of one color
    drift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # L*, a*, b*: how far all colors moved, in the mean
    uncertain: tuple[str, ...] = ()  # why the shares are not to be trusted; empty where they are


@dataclass(slots=True)
class _Reading:
    """A picture's samples, explained."""

    view: View
    fit: Fit
    others: list[PaletteColor]  # that were not asked for and show
    beliefs: Bytes  # (colors + 1, h, w), how surely each sample shows each color, 0 to 255
    chord: float  # pixels; the mean width of a granule, inf where all is of one color


def has_swatch(mix: ColorMix, palette: Palette | None = None) -> bool:
    """Return whether `palette` or the chart has a color of `mix`, so that there is something to measure by."""
    return bool(_find_asked(mix, palette or chart_palette()))


def measure_shares(pixels: Bytes, mix: ColorMix, palette: Palette | None = None) -> Measurement:
    """Measure the colors of `mix` in `pixels` (h, w, 3), sRGB, by the appearances of `palette`.

    Without a palette the chart's swatches serve, each with a modeled appearance. A color that neither has is left
    out: what shows of it counts for the nearest other color. Of a mix of such colors alone nothing can be
    measured, and the answer is empty.

    Raises:
        InputError: the pixels are not a picture of uint8 (h, w, 3).
    """
    _check(pixels)
    palette = palette or chart_palette()
    found = _find_asked(mix, palette)
    if not found:
        return Measurement(shares={}, others={}, not_asked=0.0, mean_delta_e=0.0)
    asked = list(found.values())
    read = _read(pixels, asked, palette)
    seen = _count(read.view, read.beliefs)  # (colors + 1, n)

    totals = seen.sum(axis=1)
    strays = np.bincount(read.fit.other, seen[-1], len(read.others) + 1)
    percents = 100 * strays / max(totals.sum(), 1e-9)
    shade = SHADOW * min(color.lab[0] for color in asked)
    named = {
        color.word: float(part)
        for color, part in zip(read.others, percents, strict=False)
        if part >= (MOST_SHADOW if color.lab[0] < shade else LEAST_OTHER)
    }
    counted = totals[:-1].sum() + sum(named.values()) * totals.sum() / 100
    scale = 100 / counted if counted else 0.0
    named = {word: float(part * totals.sum() / 100 * scale) for word, part in named.items()}
    in_all = seen.sum(axis=0)
    swatches = np.stack([color.lab for color in asked])
    nearest = delta_e_2000(read.view.lab[:, None], swatches).min(axis=1)
    shown = dict(zip(found, _find_colors(read, seen), strict=True))
    colors = {name: lab for name, lab in shown.items() if lab is not None}
    shifts = read.fit.shifts
    drift = np.average(shifts, axis=0, weights=totals[:-1]) if totals[:-1].sum() else np.zeros(3)
    return Measurement(
        shares={name: float(total * scale) for name, total in zip(found, totals, strict=False)},
        others=dict(sorted(named.items(), key=lambda item: -item[1])),
        not_asked=float(sum(named.values())),
        mean_delta_e=float(np.average(nearest, weights=in_all)) if in_all.sum() else 0.0,
        color_errors={name: float(delta_e_2000(lab, found[name].lab)) for name, lab in colors.items()},
        lightness_errors={name: float(lab[0] - found[name].lab[0]) for name, lab in colors.items()},
        seen={name: format_hex(lab_to_srgb(lab)) for name, lab in colors.items()},
        granule_width=read.chord,
        drift=(float(drift[0]), float(drift[1]), float(drift[2])),
        uncertain=tuple(_find_doubts(pixels, found, read, float(percents[-1]))),
    )


def find_share_errors(
    measured: Measurement, mix: ColorMix, palette: Palette | None = None
) -> dict[str, float]:
    """Return by how many points each measured share is off.

    Colors that look too much alike to be told apart are counted together: each has the error of their sum.
    """
    found = _find_asked(mix, palette or chart_palette())
    asked = {share.color: float(share.percent) for share in mix.shares}
    alike = {name: {name} for name in found}
    for name, other, *_ in _find_alike(found):
        alike[name].add(other)
        alike[other].add(name)
    return {
        name: abs(sum(measured.shares[one] - asked[one] for one in together))
        for name, together in alike.items()
    }


def draw_labels(pixels: Bytes, mix: ColorMix, palette: Palette | None = None) -> Bytes:
    """Return what the ruler saw, sRGB (h, w, 3), h and w at most 512: each sample in its color of the palette.

    A sample in shadow is drawn half as bright, one that is like no color in magenta.

    Raises:
        InputError: the pixels are not a picture of uint8 (h, w, 3), or none of the colors is known.
    """
    _check(pixels)
    palette = palette or chart_palette()
    asked = list(_find_asked(mix, palette).values())
    if not asked:
        raise InputError("mix-not-on-chart", mix=str(mix))
    read = _read(pixels, asked, palette, least_stride=-(-max(pixels.shape[:2]) // int(SAMPLES**0.5)))
    values = [parse_hex(color.as_seen) for color in (*asked, *read.others)] + [MAGENTA]
    labels = read.beliefs.argmax(axis=0)
    labels = np.where(labels == len(asked), len(asked) + read.fit.other[read.view.places], labels)
    drawn = np.array(values, np.uint8)[labels]
    return np.where(read.view.shadow[..., None] < 128, drawn, drawn // 2)


def _check(pixels: Bytes) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InputError("picture-bad-pixels", dtype=str(pixels.dtype), shape=str(pixels.shape))


def _find_asked(mix: ColorMix, palette: Palette) -> dict[str, PaletteColor]:
    return {share.color: color for share in mix.shares if (color := find_color(palette, share.color))}


def _read(pixels: Bytes, asked: list[PaletteColor], palette: Palette, *, least_stride: int = 1) -> _Reading:
    first = view_samples(take_samples(pixels, 1, FIRST_SAMPLES))
    fit, others = find_others(first, asked, _tell_apart(palette, asked))
    chord = measure_chord((fit.densities * fit.weights[:, None]).argmax(axis=0)[first.places])
    most = max(1, min(MOST_STRIDE, min(pixels.shape[:2]) // BLOCK))
    stride = int(np.clip(np.rint(min(chord / CHORD, most)), 1, most)) if np.isfinite(chord) else min(2, most)
    view = view_samples(take_samples(pixels, max(stride, least_stride), SAMPLES))
    # A color that another stands in for has been moved to where it is not.
    replaced = any(odds == 1 for odds in others.values())
    fit = explain(view, asked, others, None if replaced else fit.shifts)
    return _Reading(view, fit, list(others), lean_on_neighbors(view, fit), chord)


def _tell_apart(palette: Palette, asked: list[PaletteColor]) -> list[PaletteColor]:
    """Return the palette's colors that were not asked for and cannot be taken for one that was."""
    swatches = np.stack([color.lab for color in asked])
    return [
        color
        for color in palette.colors
        if color not in asked and delta_e_2000(color.lab, swatches).min() >= NEAREST_OTHER
    ]


def _count(view: View, beliefs: Bytes) -> Floats:
    """Return how many samples of each place, (colors + 1, n), show each color."""
    flat = view.places.ravel()
    return np.stack([np.bincount(flat, belief.ravel(), len(view.lab)) for belief in beliefs]) / 255


def _find_colors(read: _Reading, seen: Floats) -> list[Floats | None]:
    """Return the color of the granules of each color asked for, CIELAB; None where next to nothing shows it."""
    view = read.view
    is_lit = (view.shadow < IN_LIGHT).ravel()
    shaded = 1 - float(is_lit.mean())
    flat = view.places.ravel()
    colors: list[Floats | None] = []
    for row, belief in zip(seen[:-1], read.beliefs, strict=False):
        core = np.bincount(flat, (sum_around(belief).ravel() > IN_CORE) & is_lit, len(view.lab))
        if row.sum() < LEAST_SHOWN * seen.sum():
            colors.append(None)
        elif core.sum() < LEAST_CORE:
            colors.append(seen_color(view.lab[row > 0], row[row > 0]))
        else:
            colors.append(seen_color(view.lab[core > 0], core[core > 0], shaded=shaded))
    return colors


def _find_doubts(pixels: Bytes, found: dict[str, PaletteColor], read: _Reading, strange: float) -> list[str]:
    doubts = []
    if float(pixels[::4, ::4].std(axis=(0, 1)).max()) < FLAT:
        doubts.append("one flat color, without granules")
    elif (smooth := _measure_smoothness(pixels, read.chord)) > SMOOTH:
        doubts.append(f"{smooth:.0f}% of the picture is smooth and shows no granules")
    if read.chord < SPECKLE:
        doubts.append(f"no granules: pieces of {read.chord:.1f} pixels")
    if strange > STRANGE:
        doubts.append(f"{strange:.0f}% of the picture is like no color of the palette")
    if weighted_quantile(np.hypot(*read.view.lab[:, 1:].T), read.view.counts, 0.99) < GRAY:
        colored = [name for name, color in found.items() if np.hypot(*color.lab[1:]) > COLORED]
        if colored:
            doubts.append(f"the picture is black and white, which shows nothing of {', '.join(colored)}")
    for name, other, apart, overlap in _find_alike(found):
        doubts.append(f"{name} and {other} look alike: delta E {apart:.1f}, overlap {overlap:.0%}")
    return doubts


def _find_alike(found: dict[str, PaletteColor]) -> list[tuple[str, str, float, float]]:
    """Return the pairs that cannot be told apart, with their delta E 2000 and overlap (0..1)."""
    pairs = []
    for (name, one), (other, two) in combinations(found.items(), 2):
        apart = float(delta_e_2000(one.lab, two.lab))
        overlap = measure_overlap(one.look(), two.look())
        if apart < ALIKE or overlap > OVERLAP:
            pairs.append((name, other, apart, overlap))
    return pairs


def _measure_smoothness(pixels: Bytes, chord: float) -> float:
    """Return the percent of squares, each wider than a granule, whose neighbors differ far less than is typical."""
    side = max(LEAST_SQUARE, round(SQUARE * chord)) if np.isfinite(chord) else 2 * LEAST_SQUARE
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    if rows * columns < FEWEST_SQUARES:
        return 0.0
    # Every second row is enough, and half the work.
    green = pixels[: rows * side : 2, : columns * side, 1].astype(np.int16)[: rows * (side // 2)]
    steps = np.abs(np.diff(green, axis=1, append=green[:, -1:]))
    roughness = steps.reshape(rows, side // 2, columns, side).mean(axis=(1, 3))
    return float(100 * np.mean(roughness <= PLAIN * np.median(roughness)))
