"""Procedural photographs of rubber tiles: a pile of shards in the colors of a mix, with its truth by pixel.

Colors come from the maker's measured palette: a shard's facets have the lightness that its color's granules have, from
the darkest to the brightest in the order of the light that falls on them, and the a* and b* that go with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from miniature.cells import draw_soft_light
from miniature.shards import pile_shards
from tilemix.colors.appearance import NODES, find_lightness
from tilemix.colors.cielab import lab_to_srgb
from tilemix.colors.palette import find_color, load_palette
from tilemix.errors import MixError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from miniature.cells import Floats, Integers
    from miniature.shards import Pile
    from tilemix.colors.palette import PaletteColor
    from tilemix.prompts.mix import ColorMix

PALETTE = "rubber-tile"
DIAMETERS = (17.0, 19.5)  # pixels: the range of the shards' mean
SHADOW = 0.045  # of the pixels; they are darker than any lit facet
DEEPEST = 0.45  # the lightness in the deepest shadow, over that of the darkest facet
TINT = 0.4  # of the color's spread in a* and b*: from shard to shard, and within a shard
SHARPNESS = (0.25, 0.5)  # pixels: the range of the blur


@dataclass(frozen=True, slots=True)
class Tile:
    """A photograph and what it shows."""

    picture: NDArray[np.uint8]  # (h, w, 3)
    labels: Integers  # (h, w): which color of the mix the shard at this pixel has, shadows included


def draw_tile(mix: ColorMix, size: tuple[int, int], random: np.random.Generator) -> Tile:
    """Return a photograph of `mix`; `size` is (width, height). Shares are exact by area, shadows included.

    Raises:
        MixError: a color is neither in the maker's palette nor in the chart.
    """
    colors = [_find(share.color) for share in mix.shares]
    width, height = size
    pile = pile_shards(width, height, float(random.uniform(*DIAMETERS)), random)
    areas = np.bincount(pile.pieces.ravel(), minlength=pile.count)
    shares = np.array([float(share.percent) / 100 for share in mix.shares])
    labels = assign_colors(areas, shares, random)[pile.pieces]
    picture = (
        lab_to_srgb(_paint(pile, labels, colors, random)) * draw_soft_light(width, height, random)[..., None]
    )
    blur = random.uniform(*SHARPNESS)
    picture = ndimage.gaussian_filter(picture, (blur, blur, 0))
    return Tile(np.clip(np.rint(picture), 0, 255).astype(np.uint8), labels)


def assign_colors(areas: Integers, shares: Floats, random: np.random.Generator) -> Integers:
    """Return a color for each piece, so that the areas (n,) of the colors stand in these shares, which sum to 1.

    Colors are drawn at random; then the piece that fits best passes from the color with the most excess to the one
    with the most deficit, until no single piece brings the shares closer.
    """
    colors = random.choice(len(shares), len(areas), p=shares)
    total = areas.sum()
    while True:
        excess = np.bincount(colors, areas, len(shares)) - shares * total
        giver, taker = int(excess.argmax()), int(excess.argmin())
        gap = min(excess[giver], -excess[taker])
        pieces = np.flatnonzero((colors == giver) & (areas > 0))
        if not len(pieces):
            return colors
        best = pieces[np.abs(areas[pieces] - gap).argmin()]
        if areas[best] >= 2 * gap:
            return colors
        colors[best] = taker


def _find(name: str) -> PaletteColor:
    color = find_color(load_palette(PALETTE), name)
    if color is None:
        raise MixError("recipe-color-not-in-chart", color=name)
    return color


def _paint(pile: Pile, labels: Integers, colors: list[PaletteColor], random: np.random.Generator) -> Floats:
    """Return the picture in CIELAB, (h, w, 3)."""
    of_shard = random.standard_normal((pile.count, 2), np.float32)[pile.pieces]
    within = ndimage.gaussian_filter(random.standard_normal((*labels.shape, 2), np.float32), (1, 1, 0))
    tint = TINT * (of_shard + within / within.std())
    lit = np.clip((pile.light - SHADOW) / (1 - SHADOW), 0, 1)
    dark = DEEPEST + (1 - DEEPEST) * np.clip(pile.light / SHADOW, 0, 1)
    lab = np.empty((*labels.shape, 3), np.float32)
    for number, color in enumerate(colors):
        look, mine = color.look(), labels == number
        lightness = np.clip(find_lightness(look, lit[mine]) * dark[mine], 0, 100)
        lab[mine, 0] = lightness
        for axis, (mean, variance) in enumerate(((look.a, look.aa), (look.b, look.bb)), start=1):
            spread = np.sqrt(np.maximum(np.interp(lightness, NODES, variance) - 1, 0))
            lab[mine, axis] = np.interp(lightness, NODES, mean) + spread * tint[mine, axis - 1]
    return lab
