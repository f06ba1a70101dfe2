"""Procedural photographs: a color mix as rubber tile, or as another material, seen from above.

A rubber tile is a pile of shards, see `miniature.tile`. Every other material describes its pieces (chips,
pebbles, tufts, bricks) as a `Layout`: which piece a pixel belongs to, how far it is from a gap, and how it is
lit. One painter then gives each piece a color of the mix and its own brightness, and adds gaps, grain and
light. Shares are exact in the number of visible pieces, by largest remainders.

The same mix, material, size and seed give the same bytes. Colors are those of the maker's palette.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from miniature.cells import (
    LIGHT,
    draw_smooth_noise,
    draw_soft_light,
    draw_tilt,
    find_cells,
    light_relief,
)
from miniature.tile import PALETTE, draw_tile
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import find_color, load_palette
from tilemix.errors import MixError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from miniature.cells import Floats, Integers
    from tilemix.prompts.mix import ColorMix


LEAST_SIDE = 16  # pixels


@dataclass(frozen=True, slots=True)
class Layout:
    """The pieces and their lighting; every array is (h, w)."""

    pieces: Integers  # number of the piece at this pixel
    gap: Floats  # 0 on a piece .. 1 in the gap between pieces
    shade: Floats  # factor on the piece's color, 1 = as seen
    gap_color: tuple[float, float, float]  # sRGB 0..255
    brightness_spread: float  # standard deviation of the pieces' own brightness, a factor
    grain: float  # standard deviation of the fine grain, in sRGB units


def draw_photograph(mix: ColorMix, material: str, size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) of `mix` in `material`; `size` is (width, height) in pixels.

    Raises:
        MixError: a color of the mix is not in colors.json.
        RequestError: the material is unknown, or a side is under 16 pixels.
    """
    if material not in MATERIALS:
        raise RequestError(
            "input-unknown-choice", field="material", typed=material, known=", ".join(MATERIALS)
        )
    width, height = size
    if min(size) < LEAST_SIDE:
        raise RequestError("recipe-photograph-too-small", width=width, height=height, least=LEAST_SIDE)
    random = np.random.default_rng(seed)
    if material == TILE:
        return draw_tile(mix, size, random).picture
    layout = LAYOUTS[material](width, height, random)
    return _paint(layout, draw_piece_colors(mix, layout, random), random)


def count_pieces(shares: list[float], total: int) -> list[int]:
    """Return how many of `total` pieces each share gets, by largest remainders; the shares sum to 1."""
    exact = [share * total for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def draw_piece_colors(mix: ColorMix, layout: Layout, random: np.random.Generator) -> Floats:
    """Return a color (sRGB 0..255) for each piece number, (n, 3)."""
    palette = []
    for share in mix.shares:
        color = find_color(load_palette(PALETTE), share.color)
        if color is None:
            raise MixError("recipe-color-not-in-chart", color=share.color)
        palette.append(parse_hex(color.as_seen))
    seen = np.unique(layout.pieces)
    counts = count_pieces([float(share.percent) / 100 for share in mix.shares], len(seen))
    drawn = random.permutation(np.repeat(np.arange(len(palette)), counts))
    colors = np.zeros((int(layout.pieces.max()) + 1, 3), np.float32)
    colors[seen] = np.array(palette, np.float32)[drawn]
    brightness = random.normal(1.0, layout.brightness_spread, (len(colors), 1))
    sheen = random.normal(0.0, 3.0, (len(colors), 1))  # makes black granules differ from each other
    tint = random.normal(0.0, 1.5, (len(colors), 3))
    return (colors * brightness + sheen + tint).astype(np.float32)


def _paint(layout: Layout, colors: Floats, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture: pieces with their shade, gaps, grain and soft light."""
    height, width = layout.pieces.shape
    light = layout.shade * draw_soft_light(width, height, random)
    picture = colors[layout.pieces]
    picture *= light[..., None]
    # Rubber has a faint sheen: light adds a constant to dark pieces as well as a factor.
    picture += (12.0 * (layout.shade - 1.0))[..., None]
    gap = layout.gap[..., None]
    picture += gap * (np.array(layout.gap_color, np.float32) * light[..., None] - picture)
    for axis in (0, 1, 0, 1):
        picture = _blur(picture, axis)
    grain = random.standard_normal((height, width), np.float32)
    grain[1:] += grain[:-1]
    picture += (grain * (layout.grain / np.sqrt(2)))[..., None]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _blur(picture: Floats, axis: int) -> Floats:
    """Return the picture blurred along one axis with the weights 1 2 1."""
    picture = np.moveaxis(picture, axis, 0)
    soft = picture * 0.5
    soft[1:] += 0.25 * picture[:-1]
    soft[:-1] += 0.25 * picture[1:]
    soft[0] += 0.25 * picture[0]
    soft[-1] += 0.25 * picture[-1]
    blurred: Floats = np.moveaxis(soft, 0, axis)
    return blurred


def _lay_terrazzo(width: int, height: int, random: np.random.Generator) -> Layout:
    """Terrazzo: chips of many sizes edge to edge, ground flat and polished, without relief or gaps."""
    cell = float(random.uniform(24, 30))
    cells = find_cells(width, height, (cell, cell), 0.5, random, warp=0.4)
    small = find_cells(width, height, (cell / 2.0, cell / 2.0), 0.45, random)
    is_chip = cells.depth > 3.6
    pieces = np.where(is_chip, cells.index, cells.count + small.index)
    edge = np.where(is_chip, np.clip((cells.depth - 3.6) / 1.2, 0, 1), np.clip(small.depth / 1.2, 0, 1))
    shade = 1.0 + 0.02 * draw_smooth_noise(width, height, 9, random)
    return Layout(
        pieces, (0.18 * (1 - edge)).astype(np.float32), shade.astype(np.float32), (150, 146, 140), 0.03, 1.2
    )


def _lay_gravel(width: int, height: int, random: np.random.Generator) -> Layout:
    """Gravel: round pebbles, lit like balls, with wide dark gaps."""
    cell = float(random.uniform(24, 30))
    cells = find_cells(width, height, (cell, cell), 0.3, random)
    dome = np.sqrt(np.clip(cells.depth, 0, None)) * 2.6
    gap = np.clip(1.2 - np.minimum(cells.depth / 4.5, cells.junction / 9.5), 0, 1)
    shade = 1.02 + light_relief(ndimage.uniform_filter(dome, 3), 0.24) + draw_tilt(cells, 0.004, random)
    return Layout(
        cells.index, (gap * 0.92).astype(np.float32), shade.astype(np.float32), (44, 38, 32), 0.07, 2.0
    )


def _lay_carpet(width: int, height: int, random: np.random.Generator) -> Layout:
    """Woven carpet: slanted tufts in rows, each a short arch of yarn."""
    across, along = float(random.uniform(12, 14)), float(random.uniform(18, 22))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y = y + 0.8 * draw_smooth_noise(width, height, 20, random)
    column = np.floor(x / across)
    shifted = y / along + 0.5 * (column % 2) + 0.28 * (x / across - column)
    row = np.floor(shifted)
    inner_x, inner_y = x / across - column - 0.5, shifted - row - 0.5
    columns = int(column.max()) + 1
    pieces = ((row - row.min()) * columns + column).astype(np.intp)
    radius = np.sqrt((inner_x / 0.52) ** 2 + (inner_y / 0.54) ** 2)
    gap = np.clip((radius - 0.78) / 0.4, 0, 1)
    fibers = 0.04 * np.sin((x * 1.5 + y * 0.7) * 0.7)
    shade = 1.06 - 0.16 * radius**2 - 0.10 * inner_y + fibers
    return Layout(pieces, (gap * 0.7).astype(np.float32), shade.astype(np.float32), (30, 27, 25), 0.05, 3.0)


def _lay_blocks(
    width: int, height: int, random: np.random.Generator, block: tuple[float, float], bond: float
) -> tuple[Integers, Floats, Floats, Floats]:
    """Return, for blocks in rows, the piece numbers, the distance to the joint and the offset from the middle."""
    x0, y0 = random.uniform(0, block[0]), random.uniform(0, block[1])
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y = (y + y0 + 0.5 * draw_smooth_noise(width, height, 24, random)) / block[1]
    row = np.floor(y)
    x = (x + x0 + 0.5 * draw_smooth_noise(width, height, 24, random)) / block[0] + bond * row
    column = np.floor(x)
    inner_x, inner_y = (x - column - 0.5) * block[0], (y - row - 0.5) * block[1]
    row, column = row - row.min(), column - column.min()
    pieces = (row * (column.max() + 1) + column).astype(np.intp)
    inside = np.minimum(block[0] / 2 - np.abs(inner_x), block[1] / 2 - np.abs(inner_y))
    return pieces, inside.astype(np.float32), inner_x.astype(np.float32), inner_y.astype(np.float32)


def _lay_mosaic(width: int, height: int, random: np.random.Generator) -> Layout:
    """Mosaic: square, glossy tiles in light grout."""
    side = float(random.uniform(22, 28))
    pieces, inside, x, y = _lay_blocks(width, height, random, (side, side), 0.0)
    gap = np.clip(1.6 - inside / 1.3, 0, 1)
    gloss = 0.10 * np.exp(
        -((x - LIGHT[0] * side * 0.3) ** 2 + (y - LIGHT[1] * side * 0.3) ** 2) / (side * 1.6)
    )
    shade = 1.0 + gloss + light_relief(np.clip(inside - 1.5, 0, 2.5), 0.10)
    return Layout(pieces, gap.astype(np.float32), shade.astype(np.float32), (196, 193, 186), 0.03, 1.2)


def _lay_paving(width: int, height: int, random: np.random.Generator) -> Layout:
    """Crazy paving: large, angular, flat slabs in light mortar, evenly lit."""
    cell = float(random.uniform(34, 42))
    cells = find_cells(width, height, (cell, cell), 0.42, random, warp=0.8)
    gap = np.clip(2.2 - cells.depth / 2.4, 0, 1)
    shade = 1.0 + 0.03 * draw_smooth_noise(width, height, 7, random)
    return Layout(cells.index, gap.astype(np.float32), shade.astype(np.float32), (178, 172, 160), 0.05, 2.0)


def _lay_cobbles(width: int, height: int, random: np.random.Generator) -> Layout:
    """Cobblestone: squares with rounded tops in wide dark joints."""
    side = float(random.uniform(26, 32))
    pieces, _, x, y = _lay_blocks(width, height, random, (side, side * 0.86), 0.5)
    # A superellipse: rounded corners, straight sides.
    radius = ((np.abs(x) / (side * 0.5)) ** 3 + (np.abs(y) / (side * 0.43)) ** 3) ** (1 / 3)
    gap = np.clip((radius - 0.80) / 0.14, 0, 1)
    dome = 6.0 * np.sqrt(np.clip(1.0 - radius, 0, None))
    shade = 1.02 + light_relief(ndimage.uniform_filter(dome, 3).astype(np.float32), 0.26)
    return Layout(pieces, (gap * 0.9).astype(np.float32), shade.astype(np.float32), (58, 52, 46), 0.06, 2.5)


def _lay_brick(width: int, height: int, random: np.random.Generator) -> Layout:
    """Brick: rough stretchers in running bond, with recessed gray mortar."""
    block = (float(random.uniform(44, 54)), float(random.uniform(18, 22)))
    pieces, inside, _, _ = _lay_blocks(width, height, random, block, 0.5)
    gap = np.clip(1.7 - inside / 1.4, 0, 1)
    rough = 0.05 * draw_smooth_noise(width, height, 3.0, random) + 0.04 * draw_smooth_noise(
        width, height, 8.0, random
    )
    shade = 1.0 + rough + light_relief(np.clip(inside, 0, 3), 0.12)
    return Layout(pieces, gap.astype(np.float32), shade.astype(np.float32), (150, 145, 137), 0.06, 3.5)


LAYOUTS: dict[str, Callable[[int, int, np.random.Generator], Layout]] = {
    "smooth terrazzo": _lay_terrazzo,
    "gravel": _lay_gravel,
    "woven carpet": _lay_carpet,
    "mosaic": _lay_mosaic,
    "brick": _lay_brick,
    "crazy paving": _lay_paving,
    "cobblestone": _lay_cobbles,
}
TILE = "rubber tile"
MATERIALS = (TILE, *LAYOUTS)
