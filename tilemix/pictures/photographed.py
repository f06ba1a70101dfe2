"""Photographs of granules: the part that shows them, and the color of a palette measured on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tilemix.colors.appearance import measure_appearance, seen_color
from tilemix.colors.cielab import format_hex, lab_to_srgb, srgb_to_lab
from tilemix.colors.palette import PaletteColor
from tilemix.errors import InputError
from tilemix.pictures.granules import take_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette

SAMPLES = 2**18
TILES = 32  # the picture is judged in squares, so many along its longer side
ROUGH = 0.5  # of the middle's roughness; what is smoother is background
MIDDLE = 0.4  # of each side: there the tile surely lies
INSET = (
    0.03  # of the cut picture, left out on each side: rounded edges, their shadow, half a square of ground
)
LEAST_SIDE = 64  # pixels of the cut picture
LEAST_ROUGHNESS = 1.0  # levels between neighbors; smoother is not a picture of granules
SWATCH, COLUMNS, MARGIN = 160, 6, 40  # pixels, swatches a row, pixels for a word


def cut_background(pixels: NDArray[np.uint8], *, source: str) -> NDArray[np.uint8]:
    """Return the rectangle of a photograph (h, w, 3) that granules fill, a view; its rims are left out.

    Granules are rough and the ground around a tile is smooth. From the middle the rectangle grows while most of
    the next row or column of squares is half as rough as the middle; `source` names it in messages.

    Raises:
        InputError: the middle is smooth, or too little is left.
    """
    height, width = pixels.shape[:2]
    side = max(4, max(height, width) // TILES)
    if height // side < 3 or width // side < 3:
        raise InputError("photograph-too-small", file=source, width=width, height=height, least=LEAST_SIDE)
    roughness, typical = _measure_roughness(pixels, side)
    if typical < LEAST_ROUGHNESS:
        raise InputError("photograph-smooth", file=source, found=typical)
    cut = _inset(pixels, side, _grow(roughness > ROUGH * typical))
    if min(cut.shape[:2]) < LEAST_SIDE:
        raise InputError(
            "photograph-too-small", file=source, width=cut.shape[1], height=cut.shape[0], least=LEAST_SIDE
        )
    return cut


def find_tile(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the rectangle of a picture that granules fill, a view; where no ground is found, the whole picture."""
    height, width = pixels.shape[:2]
    side = max(4, max(height, width) // TILES)
    if height // side < 3 or width // side < 3:
        return pixels
    roughness, typical = _measure_roughness(pixels, side)
    top, bottom, left, right = filled = _grow(roughness > ROUGH * typical)
    is_whole = (top, left) == (0, 0) and (bottom, right) == roughness.shape
    cut = _inset(pixels, side, filled)
    return pixels if is_whole or typical < LEAST_ROUGHNESS or min(cut.shape[:2]) < LEAST_SIDE else cut


def _measure_roughness(pixels: NDArray[np.uint8], side: int) -> tuple[NDArray[np.float64], float]:
    """Return the mean step between neighbors in each square of `side` pixels, levels, and the middle's median."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    green = pixels[: rows * side, : columns * side, 1].astype(np.int16)
    steps = np.abs(np.diff(green, axis=1, append=green[:, -1:]))
    roughness = steps.reshape(rows, side, columns, side).mean(axis=(1, 3))
    top, bottom, left, right = _middle(rows, columns)
    return roughness, float(np.median(roughness[top:bottom, left:right]))


def _middle(rows: int, columns: int) -> tuple[int, int, int, int]:
    edge = (1 - MIDDLE) / 2
    top, left = int(rows * edge), int(columns * edge)
    return top, max(int(rows * (1 - edge)), top + 1), left, max(int(columns * (1 - edge)), left + 1)


def _grow(is_rough: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first and last row and column, as ranges, to which the middle grows over rough squares."""
    rows, columns = is_rough.shape
    top, bottom, left, right = _middle(rows, columns)
    while top > 0 and is_rough[top - 1, left:right].mean() > ROUGH:
        top -= 1
    while bottom < rows and is_rough[bottom, left:right].mean() > ROUGH:
        bottom += 1
    while left > 0 and is_rough[top:bottom, left - 1].mean() > ROUGH:
        left -= 1
    while right < columns and is_rough[top:bottom, right].mean() > ROUGH:
        right += 1
    # The outermost squares may be ground for a half, unless the picture ends there.
    return top + (top > 0), bottom - (bottom < rows), left + (left > 0), right - (right < columns)


def _inset(pixels: NDArray[np.uint8], side: int, squares: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return the rectangle of these squares of `side` pixels, without its rims."""
    top, bottom, left, right = squares
    down, across = int((bottom - top) * side * INSET), int((right - left) * side * INSET)
    return pixels[top * side + down : bottom * side - down, left * side + across : right * side - across]


def measure_color(pixels: NDArray[np.uint8], word: str, *, source: str) -> PaletteColor:
    """Return the palette's color that a photograph (h, w, 3) of nothing but its granules shows.

    Args:
        pixels: sRGB; a background around the granules is cut away.
        word: the color's word.
        source: the picture's name, for messages.

    Raises:
        InputError: the picture does not show granules.
    """
    samples = take_samples(cut_background(pixels, source=source), 2, SAMPLES).reshape(-1, 3)
    levels, counts = np.unique(samples, axis=0, return_counts=True)
    lab = srgb_to_lab(levels)
    mean = np.average(lab, axis=0, weights=counts)
    spread = np.sqrt(np.average((lab - mean) ** 2, axis=0, weights=counts))
    return PaletteColor(
        word=word,
        as_seen=format_hex(lab_to_srgb(seen_color(lab, counts))),
        spread=(round(float(spread[0]), 1), round(float(spread[1]), 1), round(float(spread[2]), 1)),
        appearance=measure_appearance(lab, counts),
    )


def draw_swatches(palette: Palette) -> Image.Image:
    """Return a sheet of the palette's colors as seen, each with its word and value."""
    rows = -(-len(palette.colors) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SWATCH, rows * (SWATCH + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for number, color in enumerate(palette.colors):
        row, column = divmod(number, COLUMNS)
        x, y = column * SWATCH, row * (SWATCH + MARGIN)
        draw.rectangle((x, y, x + SWATCH - 8, y + SWATCH - 8), fill=color.as_seen)
        draw.text((x, y + SWATCH - 6), f"{color.word}\n{color.as_seen}", fill="black", font=font)
    return sheet
