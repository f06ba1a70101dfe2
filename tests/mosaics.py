"""Pictures of granules whose shares are known to the pixel.

They share nothing with the procedural photographs that the miniature is trained on. Two kinds:

* `pebbles`: cells around jittered points, each lit from one side, with gaps from none to deep;
* `shards`: angular pieces with facets of their own brightness, thrown over one another, each with a
  shadow on what lies below it.

Truth is the share of each color among the pixels that show a granule in the light; gaps, the ground and
cast shadows show none. It is counted before light, blur and JPEG.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tilemix.colors.appearance import NODES, STEP
from tilemix.colors.cielab import lab_to_srgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.appearance import Appearance

GROUND = 255  # the label of a pixel that shows no granule
SHADES = 256  # of a color, from the deepest shade to the lightest facet
SHADOW = 20  # the shades below it are cast shadow
PLAIN = 180  # the shade of a pebble


@dataclass(frozen=True)
class Look:
    """What a mosaic is drawn with; lengths in pixels."""

    kind: str  # pebbles or shards
    diameter: float  # of a granule
    gap: float = 0.0  # between pebbles, in parts of the diameter
    depth: float = 0.3  # brightness of a gap, 1 as the granules
    relief: float = 0.1  # how much brighter the lit side of a pebble is than its middle
    blur: float = 0.6  # sigma
    quality: int = 90  # of the JPEG that the picture goes through
    falloff: float = 0.1  # of the light, from one side to the other
    spread: float = 0.05  # standard deviation of the granules' brightness


@dataclass(frozen=True)
class Mosaic:
    pixels: NDArray[np.uint8]  # (size, size, 3), sRGB
    labels: NDArray[np.uint8]  # (size, size), the number of the color; GROUND where no lit granule shows
    percents: list[float]  # the truth, in the order of the colors
    sharp: NDArray[np.uint8]  # as `pixels`, before blur and JPEG: the colors that the granules have


def draw_mosaic(
    tables: list[NDArray[np.float64]], shares: list[float], size: int, look: Look, seed: int
) -> Mosaic:
    """Draw a square; `tables` are the shades of each color, (256, 3), `shares` the granules' odds, in sum 1."""
    random = np.random.default_rng(seed)
    draw = {"pebbles": _draw_pebbles, "shards": _draw_shards}[look.kind]
    labels, shade, light = draw(random, np.asarray(shares), size, look)
    mean = np.mean([table[PLAIN] for table in tables], axis=0)
    colors = np.concatenate([np.stack(tables), np.full((1, SHADES, 3), (mean + mean.mean()) / 2)])
    picture = colors[np.minimum(labels, len(tables)), shade]
    angle = random.uniform(0, 2 * np.pi)
    along = np.arange(size) / size - 0.5
    falling = 1 - look.falloff * (0.5 + 0.7 * (along[:, None] * np.sin(angle) + along * np.cos(angle)))
    picture *= (light * falling)[..., None]
    sharp = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    image = Image.fromarray(sharp)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=look.quality)
    labels[shade < SHADOW] = GROUND
    counts = np.bincount(labels[labels != GROUND], minlength=len(tables))
    percents = [float(part) for part in counts * 100 / counts.sum()]
    return Mosaic(np.asarray(Image.open(stored)), labels, percents, sharp)


def swatch_shades(srgb: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the shades of one flat color: facets from 0.75 to 1.12 of it, and shadow at half of that."""
    parts = np.concatenate([np.linspace(0.35, 0.6, SHADOW), np.linspace(0.75, 1.12, SHADES - SHADOW)])
    parts /= parts[PLAIN]
    return np.clip(np.outer(parts, srgb), 0, 255)


def measured_shades(appearance: Appearance) -> NDArray[np.float64]:
    """Return the shades of a measured color, each as frequent as in its photograph."""
    reached = np.concatenate([[0.0], np.cumsum(appearance.weight)])
    edges = np.clip(np.append(NODES - STEP / 2, 100), 0, 100)
    lightness = np.interp(np.linspace(0, reached[-1], SHADES), reached, edges)
    a, b = (np.interp(lightness, NODES, values) for values in (appearance.a, appearance.b))
    return np.clip(lab_to_srgb(np.stack([lightness, a, b], axis=-1)), 0, 255)


def _draw_pebbles(random, shares, size, look):
    pitch = look.diameter / 1.05
    cells = int(np.ceil(size / pitch)) + 4
    grid = np.indices((cells, cells)).transpose(1, 2, 0)
    points = ((grid - 1.5 + random.uniform(-0.42, 0.42, grid.shape)) * pitch).astype(np.float32)
    colors = random.choice(len(shares), p=shares, size=(cells, cells)).astype(np.uint8)
    bright = random.normal(1, look.spread, (cells, cells)).astype(np.float32)
    sun = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    row, column = (y / pitch).astype(np.int32) + 2, (x / pitch).astype(np.int32) + 2
    first = np.full(y.shape, np.inf, np.float32)
    second, owner = first.copy(), np.zeros((2, *y.shape), np.int32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            point = points[row + down, column + right]
            distance = np.hypot(y - point[..., 0], x - point[..., 1])
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            first = np.where(nearer, distance, first)
            owner[0][nearer], owner[1][nearer] = (row + down)[nearer], (column + right)[nearer]
    own = tuple(owner)
    tilt = ((y - points[own][..., 0]) * np.sin(sun) + (x - points[own][..., 1]) * np.cos(sun)) / pitch
    in_gap = second - first < look.gap * look.diameter
    labels = np.where(in_gap, GROUND, colors[own]).astype(np.uint8)
    light = np.where(in_gap, look.depth, bright[own] * (1 + 2 * look.relief * tilt))
    return labels, np.full(y.shape, PLAIN, np.uint8), light


def _draw_shards(random, shares, size, look):
    images = [Image.new("L", (size, size), fill) for fill in (GROUND, 0)] + [
        Image.new("F", (size, size), look.depth)
    ]
    on_label, on_shade, on_light = (ImageDraw.Draw(image) for image in images)
    width = 1.3 * look.diameter  # what shows of a shard is smaller than the shard
    widths = width * np.exp(random.normal(0, 0.3, int(2.5 * (size + 2 * width) ** 2 / (0.6 * width**2)) + 8))
    sun = random.uniform(0, 2 * np.pi)
    for wide, color in zip(widths, random.choice(len(shares), p=shares, size=len(widths)), strict=True):
        center = random.uniform(-width, size + width, 2)
        corners = int(random.integers(4, 8))
        angles = (np.arange(corners) + random.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners
        stretch, turn = random.uniform(1, 1.5), random.uniform(0, 2 * np.pi)
        rim = np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], axis=1)
        rim *= wide / 2 * random.uniform(0.75, 1.15, (corners, 1))
        rim = rim @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + center
        cast = rim - np.array([np.cos(sun), np.sin(sun)]) * wide * random.uniform(0.03, 0.12)
        on_shade.polygon([tuple(point) for point in cast], fill=int(random.integers(SHADOW)))
        on_label.polygon([tuple(point) for point in rim], fill=int(color))
        on_light.polygon([tuple(point) for point in rim], fill=float(random.normal(1, look.spread)))
        peak = tuple(center + random.uniform(-0.2, 0.2, 2) * wide)
        facet = random.integers(SHADOW, SHADES)
        for number in range(corners):
            if random.random() < 0.55:
                facet = random.integers(SHADOW, SHADES)
            on_shade.polygon([tuple(rim[number]), tuple(rim[(number + 1) % corners]), peak], fill=int(facet))
    labels, shade, light = (np.array(image) for image in images)
    return labels, shade, light
