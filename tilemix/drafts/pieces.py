"""Pieces that cover a picture without a seam: rounded cells, or angular shards that lie over one another.

Lengths are in pixels, coordinates (x, y). What leaves the picture on one side comes in again on the other.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Callable

Labels: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]
Pieces: TypeAlias = tuple[Labels, Floats]  # the piece at each pixel (h, w); the middle of each piece (n, 2)

JITTER = 0.46  # of a cell: how far its seed lies from the middle of its place, at most
CORNERS = 6  # of a shard
STRETCH, STRETCH_SPREAD = 1.45, 0.25  # of a shard: length over width, and the deviation of its logarithm
LAYERS = 1.3  # of shards, over a ground of larger ones
GROUND = 1.4  # times the diameter of the others: the ground's pitch
SLIVER = 0.04  # of the square of the diameter: what shows of a shard at least


def lay_cells(width: int, height: int, diameter: float, spread: float, random: np.random.Generator) -> Pieces:
    """Return cells, each the surroundings of a seed on a jittered grid.

    Args:
        width: of the picture.
        height: of the picture.
        diameter: of a circle as large as a cell is on average.
        spread: standard deviation of the logarithm of the diameter.
        random: decides where the seeds lie.
    """
    side = diameter * np.sqrt(np.pi) / 2
    columns, rows = (max(3, round(length / side)) for length in (width, height))
    pitch_x, pitch_y = width / columns, height / rows
    x = (np.arange(columns) + 0.5 + random.uniform(-JITTER, JITTER, (rows, columns))) * pitch_x
    y = (np.arange(rows)[:, None] + 0.5 + random.uniform(-JITTER, JITTER, (rows, columns))) * pitch_y
    # A weighted distance: the border between two seeds lies nearer to the one of greater weight.
    weights = np.exp(random.normal(0.0, 2 * spread, (rows, columns)).clip(-0.8, 0.8))
    middles = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
    labels = np.empty((height, width), np.int32)
    across = np.arange(width, dtype=np.float32)
    home = (np.arange(width) / pitch_x).astype(np.intp)
    tops = np.ceil(np.arange(rows + 1) * pitch_y).astype(int)
    for row, (top, bottom) in enumerate(pairwise(tops)):
        down = np.arange(top, bottom, dtype=np.float32)[:, None]
        nearest = np.full((bottom - top, width), np.inf, np.float32)
        found = labels[top:bottom]
        for above in (-1, 0, 1):
            other_row = (row + above) % rows
            off_y = (row + above - other_row) * pitch_y  # of a seed that is a wrapped one
            for left in (-1, 0, 1):
                column = home + left
                seed = column % columns
                off_x = (column - seed) * pitch_x
                weight = weights[other_row, seed].astype(np.float32)
                flat = (across - (x[other_row, seed] + off_x).astype(np.float32)) ** 2
                distance = down - (y[other_row, seed] + off_y).astype(np.float32)
                distance *= distance
                distance += flat
                distance *= weight
                nearer = distance < nearest
                np.copyto(nearest, distance, where=nearer)
                np.copyto(found, (other_row * columns + seed).astype(np.int32), where=nearer)
    return labels, middles


def lay_shards(
    width: int, height: int, diameter: float, spread: float, random: np.random.Generator
) -> Pieces:
    """Return shards: a ground of large ones without a hole, and others of mixed sizes thrown over it.

    Args:
        width: of the picture.
        height: of the picture.
        diameter: of a circle as large as what shows of a shard, in the median.
        spread: standard deviation of the logarithm of the diameter.
        random: decides where the shards lie.
    """
    ground = _scatter(width, height, GROUND * diameter, 0.25, random)
    thrown = _scatter(width, height, diameter / np.sqrt(LAYERS), 0.5, random)
    sizes = np.sort(np.exp(random.normal(0.0, spread, len(thrown))) * diameter * 1.2)[
        ::-1
    ]  # small ones on top
    middles = np.concatenate([ground, random.permutation(thrown)])
    sizes = np.concatenate([np.full(len(ground), 2.0 * GROUND * diameter), sizes])  # no hole in the ground
    turn = random.uniform(0, 2 * np.pi, (len(middles), 1))
    corner = np.arange(CORNERS) + random.uniform(-0.38, 0.38, (len(middles), CORNERS))
    angle = turn + corner * (2 * np.pi / CORNERS)
    stretch = np.sqrt(STRETCH * np.exp(random.normal(0.0, STRETCH_SPREAD, len(middles))))
    stretch[: len(ground)] = 1.0
    radius = sizes[:, None] / 2 * random.uniform(0.85, 1.15, angle.shape)
    along, over = radius * np.cos(angle) * stretch[:, None], radius * np.sin(angle) / stretch[:, None]
    cosine, sine = np.cos(3 * turn), np.sin(3 * turn)
    corners = np.stack(
        [
            middles[:, :1] + along * cosine - over * sine,
            middles[:, 1:] + along * sine + over * cosine,
        ],
        axis=-1,
    )
    canvas = Image.new("I", (width, height))
    draw = ImageDraw.Draw(canvas)
    low, high = corners.min(axis=1), corners.max(axis=1)
    for number, (polygon, first, last) in enumerate(
        zip(corners.reshape(len(corners), -1).tolist(), low.tolist(), high.tolist(), strict=True)
    ):
        draw.polygon(polygon, fill=number)
        shifts_x = [s for s in (-width, width) if first[0] + s < width and last[0] + s > 0]
        shifts_y = [s for s in (-height, height) if first[1] + s < height and last[1] + s > 0]
        if shifts_x or shifts_y:
            for shift_x in (0, *shifts_x):
                for shift_y in (0, *shifts_y):
                    if shift_x or shift_y:
                        moved = [
                            value + (shift_y if place % 2 else shift_x) for place, value in enumerate(polygon)
                        ]
                        draw.polygon(moved, fill=number)
    labels = np.array(canvas, np.int32)
    _absorb(labels, SLIVER * diameter**2, len(middles))
    return labels, middles.astype(np.float32)


def _scatter(
    width: int, height: int, pitch: float, jitter: float, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return points (n, 2), one in each place of a grid, moved by up to `jitter` places."""
    columns, rows = (max(2, round(length / pitch)) for length in (width, height))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) + 0.5
    return (grid + random.uniform(-jitter, jitter, grid.shape)) * (width / columns, height / rows)


def _absorb(labels: Labels, least: float, count: int) -> None:
    """Give slivers of less than `least` square pixels to the piece on their right."""
    areas = np.bincount(labels.ravel(), minlength=count)
    into = np.arange(count, dtype=np.int32)
    right = np.roll(labels, -1, axis=1)
    is_edge = labels != right
    here, there = labels[is_edge], right[is_edge]
    into[here] = there
    into[areas >= least] = np.flatnonzero(areas >= least)
    for _ in range(3):  # a sliver may lie beside another
        into = into[into]
    np.take(into, labels, out=labels)


SHAPES: dict[str, Callable[[int, int, float, float, np.random.Generator], Pieces]] = {
    "cells": lay_cells,
    "shards": lay_shards,
}
