"""The measures of tiles, on pictures whose answer is known."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from bench import tiles
from miniature.photographs import MATERIALS, draw_photograph
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.system.project import ROOT

PEARL = ColorMix((ColorShare("pearl", Decimal(60)), ColorShare("green", Decimal(40))))


@pytest.mark.slow
def test_gaps_tell_bound_granules_from_what_is_laid_flat_or_in_light_joints():
    """Gravel, cobbles and carpet have dark gaps, too: the base knows gaps, and not these granules."""
    shares = {
        material: np.mean(
            [tiles.find_gap_share(draw_photograph(PEARL, material, (256, 256), n)) for n in range(3)]
        )
        for material in MATERIALS
    }
    flat = ("smooth terrazzo", "mosaic", "brick", "crazy paving")
    assert shares["rubber tile"] > 5 * max(shares[material] for material in flat), shares


def test_narrow_dark_lines_are_gaps_and_wide_ones_are_not():
    picture = np.full((120, 120, 3), 200, np.uint8)
    assert tiles.find_gap_share(picture) == 0
    picture[:, 20:23] = 40
    assert tiles.find_gap_share(picture) == pytest.approx(100 * 3 / 120)
    picture[:, 60:80] = 40
    assert tiles.find_gap_share(picture) == pytest.approx(100 * 3 / 120)


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
