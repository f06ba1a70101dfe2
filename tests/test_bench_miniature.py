"""The measures of tiles, on pictures whose answer is known."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from scipy import ndimage

from bench import tiles
from bench.sharpness import (
    LOWEST,
    NYQUIST,
    RINGS,
    find_spectrum_error,
    measure_sharpness,
    measure_spectrum,
    tell_apart,
)
from miniature.photographs import MATERIALS, draw_photograph
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.system.project import ROOT

PEARL = ColorMix((ColorShare("pearl", Decimal(60)), ColorShare("green", Decimal(40))))


@pytest.mark.slow
def test_the_spectrum_tells_tiles_from_what_the_base_knows():
    errors = {
        material: np.mean(
            [find_spectrum_error(draw_photograph(PEARL, material, (512, 512), n)) for n in range(2)]
        )
        for material in MATERIALS
    }
    others = [error for material, error in errors.items() if material != "rubber tile"]
    assert errors["rubber tile"] < 3 < 5 < min(others), errors


def test_noise_has_a_flat_spectrum_and_stripes_have_one_ring():
    noise = np.random.default_rng(0).integers(60, 190, (256, 256, 1)).repeat(3, 2).astype(np.uint8)
    flat = measure_spectrum(noise)
    assert np.nanmax(np.abs(flat[8:])) < 0.15
    columns = 128 + 60 * np.sin(2 * np.pi * np.arange(256) / 8)
    stripes = np.broadcast_to(columns[None, :, None], (256, 256, 3)).astype(np.uint8)
    edges = np.geomspace(LOWEST, NYQUIST, RINGS + 1)
    assert (
        edges[np.nanargmax(measure_spectrum(stripes))]
        <= 1 / 8
        < edges[np.nanargmax(measure_spectrum(stripes)) + 1]
    )


def test_sharpness_is_the_mean_difference_of_neighbors():
    columns = np.tile([100, 110], 32).astype(np.uint8)
    picture = np.broadcast_to(columns[None, :, None], (64, 64, 3))
    assert measure_sharpness(picture) == pytest.approx((10 + 0) / 2)


@pytest.mark.slow
def test_a_critic_tells_blurred_pictures_and_none_of_a_kind():
    photographs = [draw_photograph(PEARL, "rubber tile", (128, 128), n) for n in range(24)]
    more = [draw_photograph(PEARL, "rubber tile", (128, 128), n) for n in range(24, 48)]
    blurred = [ndimage.gaussian_filter(one, (2, 2, 0)) for one in more]
    assert tell_apart(blurred, photographs) > 0.9
    assert tell_apart(more, photographs) < 0.7


@pytest.mark.slow
def test_a_picture_that_comes_again_is_a_repeat_and_granules_are_not():
    granules = draw_photograph(PEARL, "rubber tile", (512, 512), 1)
    again = np.tile(draw_photograph(PEARL, "rubber tile", (128, 128), 1), (4, 4, 1))
    assert tiles.find_repeat(granules) < 0.3
    assert tiles.find_repeat(again) > 0.9


def test_the_mixes_are_of_basic_colors_and_of_all_lengths():
    mixes = [tiles.draw_basic_mix(number) for number in range(60)]
    assert [len(mix.shares) for mix in mixes[:4]] == [1, 2, 3, 4]
    assert all(sum(share.percent for share in mix.shares) == 100 for mix in mixes)
    named = {share.color for mix in mixes for share in mix.shares}
    assert len(named) == 12


@pytest.mark.slow
@pytest.mark.parametrize("program", [["bench/miniature.py"], ["-m", "bench.miniature"]])
def test_the_bench_starts_as_a_file_and_as_a_module(program):
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--write" in done.stdout


@pytest.mark.slow
def test_the_colors_of_photographs_are_measured_as_they_are_drawn():
    colors = tiles.Colors()
    for number in range(8):
        mix = tiles.draw_basic_mix(number)
        colors.add(mix, draw_photograph(mix, "rubber tile", (512, 512), number))
    assert colors.mean_error < 2
    assert np.mean(colors.within) > 0.6
    black = ColorMix((ColorShare("black", Decimal(100)),))
    colors.add(black, np.full((64, 64, 3), 250, np.uint8))
    assert colors.worst == ("black", pytest.approx(50, abs=1)) or colors.worst[1] > 50
    assert not colors.within[-1]
