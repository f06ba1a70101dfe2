"""Shares of colors, measured in pictures whose shares are known."""

from __future__ import annotations

import re
import tracemalloc
from decimal import Decimal

import numpy as np
import pytest

from miniature.photographs import draw_photograph
from tests.pace import assert_quick, processor_seconds
from tilemix.colors.chart import basic_colors, get_color, load_colors
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import load_palette
from tilemix.errors import InputError
from tilemix.pictures.measure import NEAREST_OTHER, Measurement, find_share_errors, has_swatch, measure_shares
from tilemix.prompts.mix import ColorMix, ColorShare

BASIC = [color.name for color in basic_colors()]


def make_mix(**percents: float) -> ColorMix:
    return ColorMix(
        tuple(ColorShare(name.replace("_", " "), Decimal(str(p))) for name, p in percents.items())
    )


def swatch(name: str) -> np.ndarray:
    color = get_color(name)
    assert color is not None
    return np.array(parse_hex(color.as_seen), np.uint8)


def lay_blocks(
    names: list[str], *, block: int = 20, rows: int = 12, gap: int = 0, shade: float = 1.0
) -> np.ndarray:
    """Return square granules in the order of `names`, over and over, with black gaps of `gap` pixels around."""
    picture = np.zeros((rows * block, rows * block, 3), np.uint8)
    for number in range(rows * rows):
        y, x = divmod(number, rows)
        inner = slice(y * block, (y + 1) * block - gap), slice(x * block, (x + 1) * block - gap)
        picture[inner] = swatch(names[number % len(names)]) * shade
    return picture


def soften(picture: np.ndarray) -> np.ndarray:
    """Return the picture as a lens gives it."""
    soft = picture.astype(np.float64)
    for axis in (0, 1):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    return soft.round().astype(np.uint8)


@pytest.mark.parametrize("name", BASIC)
def test_flat_picture_of_one_swatch_is_all_that_color(name):
    measured = measure_shares(np.full((64, 48, 3), swatch(name)), make_mix(**{name: 100}))
    assert measured.shares == {name: 100.0}
    assert measured.others == {}
    assert measured.not_asked == 0
    assert measured.mean_delta_e < 1.5  # the table knows a color to 4 levels of a channel


def test_stripes_are_measured_by_their_width_in_the_mixs_order():
    picture = np.full((400, 400, 3), swatch("blue"))
    picture[:, :100] = swatch("yellow")
    picture[:, 100:140] = swatch("white")
    measured = measure_shares(picture, make_mix(blue=65, yellow=25, white=10))
    assert list(measured.shares) == ["blue", "yellow", "white"]
    assert measured.shares == pytest.approx({"blue": 65, "yellow": 25, "white": 10}, abs=1)
    assert sum(measured.shares.values()) + measured.not_asked == pytest.approx(100)


def test_colors_not_asked_for_are_named_largest_first_and_add_up():
    picture = np.full((200, 200, 3), swatch("red"))
    picture[:40] = swatch("green")
    picture[40:140] = swatch("purple")
    measured = measure_shares(picture, make_mix(red=100))
    assert list(measured.others) == ["purple", "green"]
    assert measured.others == pytest.approx({"purple": 50, "green": 20}, abs=1.5)
    assert measured.not_asked == pytest.approx(70, abs=1.5)
    assert measured.shares["red"] == pytest.approx(30, abs=1.5)


def test_color_that_is_asked_for_and_missing_is_none_of_it():
    measured = measure_shares(np.full((64, 64, 3), swatch("red")), make_mix(red=50, green=50))
    assert measured.shares == {"red": 100.0, "green": 0.0}
    assert list(measured.color_errors) == ["red"]


def test_dark_gaps_between_granules_do_not_pass_for_black():
    names = ["orange", "white", "green", "pearl"]
    measured = measure_shares(lay_blocks(names, gap=4), make_mix(orange=25, white=25, green=25, pearl=25))
    assert measured.not_asked < 3
    assert measured.shares == pytest.approx(dict.fromkeys(names, 25), abs=4)


def test_gap_between_light_and_dark_granules_is_shared_between_them():
    picture = soften(lay_blocks(["white", "brown", "brown", "white", "white"], rows=15, gap=3))
    white = 100 * (picture[..., 0] > 185).mean()
    assert white < 46  # with its share of the gaps it has 60
    measured = measure_shares(picture, make_mix(white=60, brown=40))
    assert measured.shares["white"] == pytest.approx(60, abs=3)


@pytest.mark.parametrize("light", ["red", "gray", "blue", "yellow"])
def test_black_granules_are_found_although_gaps_are_as_dark(light):
    for picture in (
        lay_blocks([light, "black"], gap=3, rows=11),
        soften(lay_blocks([light, "black"], gap=3, rows=11)),
    ):
        measured = measure_shares(picture, make_mix(**{light: 50}, black=50))
        assert 45 < measured.shares["black"] < 59  # with all the gaps it has 63
        assert measured.not_asked < 0.5


def test_dim_rims_beside_gaps_do_not_pass_for_other_colors():
    """Orange at 70 % is red exactly, pearl at 70 % gray."""
    picture = soften(soften(lay_blocks(["orange", "pearl"], rows=13, gap=3)))
    assert measure_shares(picture, make_mix(orange=50, pearl=50)).not_asked < 2


def test_the_order_of_the_mix_makes_no_difference():
    picture = soften(lay_blocks(["red", "black", "pearl", "blue"], rows=13, gap=2))
    one = measure_shares(picture, make_mix(red=25, black=25, pearl=25, blue=25))
    other = measure_shares(picture, make_mix(blue=25, pearl=25, black=25, red=25))
    assert list(other.shares) == ["blue", "pearl", "black", "red"]
    assert other.shares == pytest.approx(one.shares)


@pytest.mark.parametrize("shade", [0.85, 1.1])
@pytest.mark.parametrize("name", ["red", "blue", "green", "gray", "beige", "brown", "black"])
def test_shaded_granules_keep_their_color(name, shade):
    measured = measure_shares(lay_blocks([name], shade=shade), make_mix(**{name: 100}))
    assert measured.shares[name] > 99


def test_soft_edges_between_granules_do_not_pass_for_the_colors_between():
    """Between red and white lies pink, between black and white gray, between yellow and blue green."""
    for pair in (("red", "white"), ("black", "white"), ("yellow", "blue"), ("brown", "pearl")):
        picture = soften(lay_blocks(list(pair), rows=13))
        measured = measure_shares(picture, make_mix(**dict.fromkeys(pair, 50)))
        assert measured.not_asked < 1.5, (pair, measured)


def test_specks_are_left_out_and_granules_are_counted():
    def scatter(side: int) -> np.ndarray:
        picture = np.full((240, 240, 3), swatch("blue"))
        for top in range(5, 240, 30):
            for left in range(5, 240, 30):
                picture[top : top + side, left : left + side] = swatch("orange")
        return picture

    assert measure_shares(scatter(4), make_mix(blue=100)).others == {}
    measured = measure_shares(scatter(18), make_mix(blue=100))
    assert measured.others["orange"] == pytest.approx(100 * 18**2 / 30**2, abs=5)


def test_mean_delta_e_is_the_difference_to_the_nearest_swatch_asked_for():
    picture = np.full((64, 64, 3), swatch("red"))
    picture[:, :32] = swatch("green")
    expected = float(delta_e_2000(srgb_to_lab(swatch("red")), srgb_to_lab(swatch("green")))) / 2
    assert measure_shares(picture, make_mix(red=100)).mean_delta_e == pytest.approx(expected, abs=1.5)
    assert measure_shares(picture, make_mix(red=50, green=50)).mean_delta_e < 1.5


def test_a_basic_color_too_near_to_a_color_asked_for_is_not_held_against_it():
    """Nobody can tell a shaded granule of the one from the other."""
    black = srgb_to_lab(swatch("black"))
    near = [
        color.name
        for color in load_colors()
        if not color.basic and delta_e_2000(black, srgb_to_lab(parse_hex(color.as_seen))) < NEAREST_OTHER
    ]
    assert near, "the chart has a color near black"
    picture = np.full((64, 64, 3), swatch("black"))
    assert measure_shares(picture, make_mix(**{near[0].replace(" ", "_"): 100})).not_asked == 0
    assert measure_shares(picture, make_mix(yellow=100)).not_asked == 100


def test_basic_colors_never_exclude_each_other():
    """But for beige and pearl, which look alike on a photograph."""
    lab = srgb_to_lab([parse_hex(color.as_seen) for color in basic_colors() if color.name != "beige"])
    distances = delta_e_2000(lab[:, None], lab) + 100 * np.eye(len(lab))
    assert distances.min() >= NEAREST_OTHER


def test_color_of_no_chart_is_left_out_and_the_rest_is_measured():
    picture = np.full((64, 64, 3), swatch("red"))
    picture[:32] = swatch("green")
    measured = measure_shares(picture, make_mix(zebra=50, red=50))
    assert list(measured.shares) == ["red"]
    assert measured.shares["red"] == pytest.approx(50, abs=4)
    assert list(measured.others) == ["green"]
    assert measure_shares(picture, make_mix(zebra=100)) == Measurement({}, {}, 0.0, 0.0)
    assert has_swatch(make_mix(zebra=50, red=50))
    assert not has_swatch(make_mix(zebra=100))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 3), (256, 511)])
def test_any_size_is_measured(shape):
    measured = measure_shares(np.full((*shape, 3), swatch("gray")), make_mix(gray=100))
    assert measured.shares == {"gray": 100.0}


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 (4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "float32 (4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 (0, 4, 3)"),
    ],
)
def test_pixels_that_are_none_are_refused(pixels, shown):
    with pytest.raises(
        InputError, match=f"^{re.escape(f'pixels {shown}; expected uint8 (height, width, 3)')}$"
    ):
        measure_shares(pixels, make_mix(red=100))


def random_mix(random: np.random.Generator) -> ColorMix:
    """Return 1 to 4 basic colors in shares of 5 % steps."""
    count = int(random.integers(1, 5))
    cuts = np.sort(random.choice(np.arange(1, 20), count - 1, replace=False))
    percents = np.diff(np.concatenate([[0], cuts, [20]])) * 5
    return make_mix(**dict(zip(random.permutation(BASIC)[:count].tolist(), percents.tolist(), strict=True)))


@pytest.mark.slow
def test_photographs_are_measured_to_two_points():
    """Over 40 of them, in mean: 1.6 points from the mix, and 0.1 % for colors that are not there."""
    random = np.random.default_rng(0)
    errors, strays = [], []
    palette = load_palette("rubber-tile")
    for seed in range(16):
        mix = random_mix(random)
        measured = measure_shares(draw_photograph(mix, "rubber tile", (384, 384), seed), mix, palette)
        errors += find_share_errors(measured, mix, palette).values()
        strays.append(measured.not_asked)
    assert np.mean(errors) < 1.7
    assert np.mean(strays) < 1.6


def test_a_full_size_picture_is_measured_in_under_100_milliseconds_of_processor_time():
    mix = make_mix(red=50, black=30, pearl=20)
    picture = np.tile(draw_photograph(mix, "rubber tile", (256, 256), 1), (4, 4, 1))
    assert_quick(lambda: processor_seconds(lambda: measure_shares(picture, mix)), 0.100)


def test_a_full_size_picture_takes_little_memory():
    mix = make_mix(red=50, black=30, pearl=20, blue=0)
    picture = np.tile(draw_photograph(mix, "rubber tile", (256, 256), 1), (4, 4, 1))
    measure_shares(picture[:256], mix)  # what is kept for the next picture is no part of it
    tracemalloc.start()
    try:
        measure_shares(picture, mix)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 12e6
