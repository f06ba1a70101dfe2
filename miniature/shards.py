"""A pile of angular shards seen from above, as EPDM granules lie in a bound tile.

Each shard is a convex solid: steep sides around one to three gently sloped tops. The highest solid at a pixel is
seen there, so shards cover one another, cut into one another and show facets. The light comes from one side: facets
are bright or dark by their slope, and what stands higher casts a shadow.

Lengths are in pixels, arrays are (h, w) unless noted. The sizes and shapes are fitted to statistics of photographs of
real tiles: diameter, aspect ratio and solidity of the visible granules, the spectrum, the width of edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from miniature.cells import Integers

    Floats = NDArray[np.floating[Any]]

MOST_SIDES, MOST_TOPS = 6, 3
LIGHT = np.array([-0.50, -0.67, 0.73]) / np.linalg.norm([-0.50, -0.67, 0.73])  # x, y, up
COVER = 2.0  # the shards' areas, hidden parts included, over that of the picture
DIAMETER_SPREAD = 0.34  # standard deviation of the logarithm
ASPECT_SPREAD = 0.34  # of the logarithm of the aspect ratio
STEEPNESS = 2.2  # the sides' median slope
TOP_SLOPE = 0.35
THICKNESS = 0.3  # of a shard, over its diameter
LIFT = 0.36  # standard deviation of the shards' heights, over the mean diameter
AMBIENT = 0.55  # part of the light that comes from all sides
SHADOW_SOFTNESS = 2.2  # pixels of height over which a shadow sets in
SHADOW_REACH = 14
PIT = 0.05  # loss of light for each pixel that a place lies below its surroundings
FINE = 4096  # steps a pixel of height is told apart by
NOWHERE = -(2**62)


@dataclass(frozen=True, slots=True)
class Pile:
    """What is seen of a pile."""

    pieces: Integers  # number of the shard at this pixel, 0 .. count - 1
    light: Floats  # rank of the pixel's brightness within the picture, 0 the darkest .. 1 the brightest
    count: int


@dataclass(frozen=True, slots=True)
class _Shards:
    """The solids, (n, ...) each."""

    place: Floats  # (n, 2): x, y
    diameter: Floats
    turn: Floats  # radians
    stretch: Floats  # along the axis; its inverse across
    distance: Floats  # (n, MOST_SIDES): of each side from the middle
    direction: Floats  # (n, MOST_SIDES): radians
    steepness: Floats  # (n, MOST_SIDES)
    tops: Floats  # (n, MOST_TOPS, 2): slopes
    above: Floats  # (n, MOST_TOPS): height of each top over the middle
    lift: Floats


def pile_shards(width: int, height: int, diameter: float, random: np.random.Generator) -> Pile:
    """Return a pile of shards with a mean diameter of `diameter` pixels."""
    shards = _draw_shards(width, height, diameter, random)
    seen = _find_seen(shards, width, height)
    count = len(shards.lift)
    is_empty = seen == NOWHERE
    faces = np.where(is_empty, MOST_SIDES, seen & 15).astype(np.intp)
    pieces = np.where(is_empty, 0, (seen >> 4) & 0xFFFFF).astype(np.intp)
    heights = (seen >> 24) / FINE
    heights[is_empty] = heights[~is_empty].min()
    brightness = _light(shards, heights, pieces, faces, diameter, random)
    brightness[is_empty] *= 0.3
    order = np.argsort(brightness, axis=None, kind="stable")
    rank = np.empty(order.size, np.float32)
    rank[order] = np.linspace(0, 1, order.size, dtype=np.float32)
    # The floor under the pile belongs to the shards beside it.
    if is_empty.any():
        nearest = ndimage.distance_transform_edt(is_empty, return_distances=False, return_indices=True)
        pieces = pieces[tuple(nearest)]
    return Pile(pieces, rank.reshape(height, width), count)


def _draw_shards(width: int, height: int, diameter: float, random: np.random.Generator) -> _Shards:
    area = np.pi / 4 * diameter**2 * np.exp(2 * DIAMETER_SPREAD**2) * 0.8
    cell = np.sqrt(area / COVER)
    columns, rows = int(np.ceil(width / cell)) + 4, int(np.ceil(height / cell)) + 4
    grid = np.stack(np.meshgrid(np.arange(columns) - 1.5, np.arange(rows) - 1.5), axis=-1).reshape(-1, 2)
    count = len(grid)
    diameters = diameter * np.exp(random.normal(0, DIAMETER_SPREAD, count))
    sides = random.integers(4, MOST_SIDES + 1, (count, 1))
    number = np.arange(MOST_SIDES)
    direction = (number + random.uniform(-0.38, 0.38, (count, MOST_SIDES))) * 2 * np.pi / sides
    distance = diameters[:, None] / 2 * random.uniform(0.72, 1.12, (count, MOST_SIDES))
    distance[number >= sides] = np.inf
    above = random.uniform(0, 0.16, (count, MOST_TOPS)) * diameters[:, None]
    above[:, 0] = 0
    above[:, 1:][random.random((count, MOST_TOPS - 1)) < (0.35, 0.6)] = np.inf
    return _Shards(
        place=(grid + random.uniform(-0.5, 0.5, grid.shape)) * cell,
        diameter=diameters,
        turn=random.uniform(0, 2 * np.pi, count),
        stretch=np.exp(np.abs(random.normal(0, ASPECT_SPREAD, count)) / 2),
        distance=distance,
        direction=direction,
        steepness=np.exp(random.normal(np.log(STEEPNESS), 0.6, (count, MOST_SIDES))),
        tops=random.normal(0, TOP_SLOPE, (count, MOST_TOPS, 2)),
        above=above + THICKNESS * diameters[:, None],
        lift=random.normal(0, LIFT, count) * diameter,
    )


def _find_seen(shards: _Shards, width: int, height: int) -> Integers:
    """Return, for each pixel, height, shard and face of what is on top, packed so that the higher is the greater."""
    seen = np.full(width * height, NOWHERE, np.int64)
    by_size = np.argsort(shards.diameter, kind="stable")
    for part in np.array_split(by_size, max(1, len(by_size) // 128)):
        half = int(np.ceil(np.max(shards.diameter[part] * shards.stretch[part]) * 0.6)) + 1
        offset = np.arange(-half, half + 1)
        corner = np.floor(shards.place[part]).astype(np.int64)
        x, y = (corner[:, axis, None] + offset for axis in (0, 1))
        right = (x + 0.5 - shards.place[part, 0, None]).astype(np.float32)[:, None, :]
        down = (y + 0.5 - shards.place[part, 1, None]).astype(np.float32)[:, :, None]
        cos, sin, stretch = (
            value.astype(np.float32)[:, None, None]
            for value in (np.cos(shards.turn[part]), np.sin(shards.turn[part]), shards.stretch[part])
        )
        along, across = (right * cos + down * sin) / stretch, (down * cos - right * sin) * stretch
        top = np.full(along.shape, np.inf, np.float32)
        face = np.zeros(along.shape, np.int64)
        inside = np.full(along.shape, np.inf, np.float32)

        def cut(plane: Floats, number: int, top: Floats = top, face: Integers = face) -> None:
            lower = plane < top
            np.copyto(top, plane, where=lower)
            face[lower] = number

        for side in range(MOST_SIDES):
            reach, turn, slope = (
                value[part, side].astype(np.float32)[:, None, None]
                for value in (shards.distance, shards.direction, shards.steepness)
            )
            left = reach - along * np.cos(turn) - across * np.sin(turn)
            np.minimum(inside, left, out=inside)
            cut(left * slope, side)
        for number in range(MOST_TOPS):
            slope_along, slope_across, above = (
                value.astype(np.float32)[:, None, None]
                for value in (*shards.tops[part, number].T, shards.above[part, number])
            )
            cut(along * slope_along + across * slope_across + above, MOST_SIDES + number)
        is_in_picture = ((x >= 0) & (x < width))[:, None, :] & ((y >= 0) & (y < height))[:, :, None]
        shown = (inside > 0) & is_in_picture
        position = (y[:, :, None] * width + x[:, None, :])[shown]
        level = np.rint((top + shards.lift[part].astype(np.float32)[:, None, None])[shown] * FINE)
        piece = np.broadcast_to(part[:, None, None], shown.shape)[shown]
        np.maximum.at(seen, position, (level.astype(np.int64) << 24) | (piece << 4) | face[shown])
    return seen.reshape(height, width)


def _light(
    shards: _Shards,
    heights: Floats,
    pieces: Integers,
    faces: Integers,
    diameter: float,
    random: np.random.Generator,
) -> Floats:
    """Return the brightness of each pixel, up to a monotone function."""
    cos, sin, stretch = np.cos(shards.turn)[:, None], np.sin(shards.turn)[:, None], shards.stretch[:, None]
    along = (
        np.concatenate([-np.cos(shards.direction) * shards.steepness, shards.tops[..., 0]], axis=1) / stretch
    )
    across = (
        np.concatenate([-np.sin(shards.direction) * shards.steepness, shards.tops[..., 1]], axis=1) * stretch
    )
    slope_x, slope_y = along * cos - across * sin, along * sin + across * cos
    upright = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = np.clip((LIGHT[2] - slope_x * LIGHT[0] - slope_y * LIGHT[1]) * upright, 0, None)
    own = 1 + 0.045 * (random.standard_normal(upright.shape) + random.standard_normal((len(upright), 1)))

    flat = np.hypot(*LIGHT[:2])
    over = np.zeros(heights.shape)
    for step in range(1, SHADOW_REACH + 1):
        toward = ndimage.shift(heights, -LIGHT[1::-1] / flat * step, order=1, mode="nearest", prefilter=False)
        np.maximum(over, toward - heights - step * LIGHT[2] / flat, out=over)
    lit = 1 - np.clip(over / SHADOW_SOFTNESS, 0, 1)
    pit = np.clip(1 + PIT * (heights - ndimage.gaussian_filter(heights, 0.45 * diameter)), 0.35, 1.15)

    light = AMBIENT * np.sqrt(upright[pieces, faces]) + (1 - AMBIENT) * facing[pieces, faces] * lit
    light *= pit * own[pieces, faces]
    for size, strength in ((0.6, 0.05), (1.2, 0.035)):
        grit = ndimage.gaussian_filter(random.standard_normal(heights.shape), size)
        light *= 1 + strength / grit.std() * grit
    brightness: Floats = light
    return brightness
