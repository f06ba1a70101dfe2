"""Shapes of adjacent pieces: nearest-seed cells, smooth noise, and lighting.

Lengths are in pixels; arrays are (h, w) float32 unless noted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.intp]

LIGHT = np.array([-0.62, -0.78], np.float32)  # direction to the light, (x, y) in the picture's plane


@dataclass(frozen=True, slots=True)
class Cells:
    """Nearest-seed cells on a jittered grid; every array is (h, w), lengths in pixels."""

    index: Integers  # the nearest seed
    x: Floats  # offset from it
    y: Floats
    depth: Floats  # second nearest distance minus nearest: 0 on the border
    junction: Floats  # third nearest minus nearest: 0 where three cells meet
    count: int  # seeds on the grid


def find_cells(
    width: int,
    height: int,
    cell: tuple[float, float],
    jitter: float,
    random: np.random.Generator,
    warp: float = 0.0,
) -> Cells:
    """Return the cells around seeds on a grid of `cell` (width, height), each moved by up to `jitter` cells.

    Seeds have random weights, so cells differ in size. `warp` bends the borders by that many pixels.
    """
    columns, rows = int(width / cell[0]) + 5, int(height / cell[1]) + 5
    grid_y, grid_x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    seeds = np.empty((rows * columns, 3), np.float32)
    seeds[:, 0] = (grid_x + 0.5 + random.uniform(-jitter, jitter, grid_x.shape)).ravel()
    seeds[:, 1] = (grid_y + 0.5 + random.uniform(-jitter, jitter, grid_x.shape)).ravel()
    seeds[:, 2] = random.uniform(0.82, 1.22, rows * columns) ** 2
    x = np.broadcast_to((np.arange(width, dtype=np.float32) / cell[0] + 2)[None, :], (height, width))
    y = np.broadcast_to((np.arange(height, dtype=np.float32) / cell[1] + 2)[:, None], (height, width))
    if warp:
        bend_x, bend_y = (draw_smooth_noise(width, height, cell[0] / 3.5, random) for _ in range(2))
        x, y = x + bend_x * (warp / cell[0]), y + bend_y * (warp / cell[1])
    home = y.astype(np.intp) * columns + x.astype(np.intp)
    far = np.full((height, width), np.inf, np.float32)
    first, second, third = far, far, far
    index = home
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            candidate = home + (down * columns + right)
            seed = seeds[candidate]
            dx, dy = x - seed[..., 0], y - seed[..., 1]
            distance = (dx * dx + dy * dy) * seed[..., 2]  # squared, like the weights
            nearer = distance < first
            index = np.where(nearer, candidate, index)
            third = np.minimum(third, np.maximum(second, distance))
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    first, second, third = np.sqrt(first), np.sqrt(second), np.sqrt(third)
    scale = float(np.sqrt(cell[0] * cell[1]))
    nearest = seeds[index]
    return Cells(
        index=index,
        x=(x - nearest[..., 0]) * cell[0],
        y=(y - nearest[..., 1]) * cell[1],
        depth=(second - first) * scale,
        junction=(third - first) * scale,
        count=len(seeds),
    )


def draw_smooth_noise(width: int, height: int, length: float, random: np.random.Generator) -> Floats:
    """Return noise (h, w) with a standard deviation near 1 that varies over `length` pixels."""
    rows, columns = int(height / length) + 4, int(width / length) + 4
    coarse = random.standard_normal((rows, columns), np.float32)
    y = np.arange(height, dtype=np.float32) / length
    x = np.arange(width, dtype=np.float32) / length
    down, right = y.astype(np.intp), x.astype(np.intp)
    fy, fx = (y - down)[:, None], (x - right)[None, :]
    fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    rows_mixed = coarse[down] * (1 - fy) + coarse[down + 1] * fy
    mixed: Floats = rows_mixed[:, right] * (1 - fx) + rows_mixed[:, right + 1] * fx
    return mixed


def draw_soft_light(width: int, height: int, random: np.random.Generator) -> Floats:
    """Return a slow gradient of brightness around 1 over the whole picture, (h, w)."""
    slope = random.uniform(-0.05, 0.05, 2)
    level = random.uniform(0.97, 1.03)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)
    lit: Floats = (level + slope[0] * x[None, :] + slope[1] * y[:, None]).astype(np.float32)
    return lit


def draw_tilt(cells: Cells, amount: float, random: np.random.Generator) -> Floats:
    """Return the light on tilted pieces, around 0: each has a plane of its own."""
    slopes = random.normal(0.0, amount, (cells.count, 2)).astype(np.float32)
    slope = slopes[cells.index]
    tilted: Floats = cells.x * slope[..., 0] + cells.y * slope[..., 1]
    return tilted


def light_relief(height: Floats, strength: float) -> Floats:
    """Return the light from `LIGHT` on a height map (pixels), around 0."""
    down = np.zeros_like(height)
    right = np.zeros_like(height)
    down[1:-1] = (height[2:] - height[:-2]) * 0.5
    right[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * 0.5
    lit: Floats = strength * (right * LIGHT[0] + down * LIGHT[1]) * -1.0
    return lit
