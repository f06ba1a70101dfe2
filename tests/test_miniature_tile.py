"""The procedural rubber tiles, against statistics of photographs of real tiles.

The figures are medians and means over the maker's photographs at their own scale; the photographs are no part of the
project.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull

from miniature.tile import DIAMETERS, PALETTE, assign_colors, draw_tile
from tilemix.colors.cielab import srgb_to_lab
from tilemix.colors.palette import load_palette
from tilemix.prompts.mix import ColorMix, ColorShare

pytestmark = pytest.mark.slow

# Of L*, cycles per pixel and decades of power of a picture of unit variance; up to half the Nyquist frequency.
FREQUENCIES = (0.0103, 0.017, 0.028, 0.0463, 0.0764, 0.1261, 0.208)
POWER = (1.68, 1.71, 1.73, 1.57, 1.11, 0.53, -0.15)
DIAMETER = (9.7, 16.9, 27.8)  # percentiles 10, 50 and 90 of the visible granules, pixels
ASPECT = (1.22, 1.71, 2.69)
SOLIDITY = (0.68, 0.84, 0.91)
LIGHTNESS = {  # percentiles 5, 25, 50, 75 and 95
    "black": (4.0, 12.3, 18.9, 25.8, 42.4),
    "white": (57.6, 77.2, 88.5, 95.3, 99.9),
    "green apple": (39.6, 59.2, 67.7, 72.4, 76.1),
}


def _tile(seed: int, side: int = 384, **percents: int):
    shares = (ColorShare(name.replace("_", " "), Decimal(value)) for name, value in percents.items())
    return draw_tile(ColorMix(tuple(shares)), (side, side), np.random.default_rng(seed))


@pytest.mark.parametrize(("seed", "side"), [(0, 512), (1, 256)])
def test_the_shares_are_exact_by_area(seed, side):
    tile = _tile(seed, side, red=50, black=30, pearl=15, green_apple=5)
    shares = np.bincount(tile.labels.ravel(), minlength=4) / tile.labels.size
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.001)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    first, again, other = (_tile(seed, 128, red=60, blue=40).picture for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_areas_that_hold_no_exact_shares_come_as_near_as_one_piece():
    random = np.random.default_rng(5)
    for _ in range(200):
        areas = random.integers(0, 50, 12)
        colors = assign_colors(areas, np.array([0.7, 0.2, 0.1]), random)
        excess = np.bincount(colors, areas, 3) - np.array([0.7, 0.2, 0.1]) * areas.sum()
        assert abs(excess).max() <= 2 * areas.max()


@pytest.mark.parametrize("word", LIGHTNESS)
def test_a_color_has_the_lightness_of_its_photograph(word):
    lightness = srgb_to_lab(_tile(6, **{word: 100}).picture)[..., 0]
    assert np.percentile(lightness, (5, 25, 50, 75, 95)) == pytest.approx(LIGHTNESS[word], abs=6)
    assert np.abs(np.percentile(lightness, (5, 25, 50, 75, 95)) - LIGHTNESS[word]).mean() < 4


def test_the_power_at_each_frequency_is_within_3_db_of_the_photographs():
    power = np.mean(
        [_power(_tile(seed, **{word: 100}).picture) for seed, word in enumerate(LIGHTNESS)], axis=0
    )
    assert power == pytest.approx(POWER, abs=0.3)


def test_the_visible_granules_have_the_size_and_the_shape_of_the_photographed_ones():
    """Touching granules of one color count as one, as they do in a photograph; shadow is left out."""
    tile = _tile(8, 640, blue=80, green_apple=10, red=10)
    lightness = ndimage.median_filter(srgb_to_lab(tile.picture)[..., 0], 3)
    measured = []
    for color in (1, 2):
        own = tile.labels == color
        regions, count = ndimage.label(own & (lightness >= 0.6 * np.median(lightness[own])))
        for number, place in enumerate(ndimage.find_objects(regions), start=1):
            y, x = np.nonzero(regions[place] == number)
            if len(x) > np.pi * 4**2 and count:
                measured.append(_shape(x, y))
    diameter, aspect, solidity = np.percentile(measured, (10, 50, 90), axis=0).T
    assert diameter == pytest.approx(DIAMETER, rel=0.2)
    assert aspect == pytest.approx(ASPECT, rel=0.12)
    assert solidity == pytest.approx(SOLIDITY, abs=0.08)


def test_shards_are_no_larger_in_a_wide_picture():
    assert DIAMETERS[0] > DIAMETER[1]  # of whole shards, of which a part is covered
    mix = ColorMix((ColorShare("red", Decimal(100)),))
    assert draw_tile(mix, (640, 64), np.random.default_rng(1)).picture.shape == (64, 640, 3)


def test_every_color_of_the_palette_is_drawn_in_its_own_color():
    for color in load_palette(PALETTE).colors:
        lab = srgb_to_lab(_tile(9, 64, **{color.word: 100}).picture).reshape(-1, 3)
        lit = lab[lab[:, 0] >= np.percentile(lab[:, 0], 40)]
        assert np.abs(np.median(lit, axis=0) - color.lab).max() < 6, color.word


def _power(picture):
    lightness = srgb_to_lab(picture)[..., 0]
    lightness -= ndimage.gaussian_filter(lightness, 80)
    side = len(lightness)
    window = np.outer(np.hanning(side), np.hanning(side))
    power = np.abs(np.fft.fft2(lightness / lightness.std() * window)) ** 2 / (window**2).sum()
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    return [np.log10(power[(radius > f / 1.14) & (radius < f * 1.14)].mean()) for f in FREQUENCIES]


def _shape(x, y):
    moments = np.linalg.eigvalsh(np.cov(np.stack([x, y])) + np.eye(2) / 12)
    corners = np.concatenate([np.stack([x + right, y + down], 1) for right in (0, 1) for down in (0, 1)])
    return (
        2 * np.sqrt(len(x) / np.pi),
        np.sqrt(moments[1] / moments[0]),
        len(x) / ConvexHull(corners).volume,
    )
