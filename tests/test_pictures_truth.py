"""The ruler against truth: mosaics known to the pixel, and the maker's photographs where they are at hand."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.mosaics import GROUND, Look, Mosaic, draw_mosaic, measured_shades, swatch_shades
from tilemix.colors.appearance import seen_color
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import Palette, PaletteColor, chart_palette, load_palette
from tilemix.pictures.measure import NEAREST_OTHER, Measurement, find_share_errors, measure_shares
from tilemix.pictures.photographed import measure_color
from tilemix.prompts.mix import ColorMix, ColorShare

MAKER = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "maker"
RUBBER = load_palette("rubber-tile")
# The same colors without their photographs: each modeled around its swatch.
SWATCHES = Palette(
    RUBBER.source, tuple(msgspec.structs.replace(color, appearance=None) for color in RUBBER.colors)
)
APART = 15.0  # delta E 2000 between the colors of a mosaic
COUNT = 300


def mix_of(words: list[str]) -> ColorMix:
    return ColorMix(tuple(ColorShare(word, Decimal(1)) for word in words))


def draw_number(number: int) -> tuple[list[str], Palette, Look, Mosaic]:
    """Mosaic `number`: 2 to 4 colors of the palette, granules, gaps, light and blur by chance."""
    random = np.random.default_rng([16, number])
    words = choose_words(random)
    diameter = float(np.exp(random.uniform(np.log(6), np.log(60))))
    kind = "shards" if number % 4 == 0 else "pebbles"
    look = Look(
        kind,
        diameter=max(diameter, 10) if kind == "shards" else diameter,
        gap=float(random.choice([0, 0.04, 0.08, 0.12])),
        depth=float(random.uniform(0.1, 0.4)),
        relief=float(random.uniform(0, 0.25)),
        blur=float(random.choice([0, 0.5, 0.8, 1.1])),
        quality=int(random.integers(80, 96)),
    )
    palette = RUBBER if kind == "shards" and number % 8 else SWATCHES
    colors = [palette.find(word) for word in words]
    tables = [
        measured_shades(color.appearance) if color.appearance else swatch_shades(parse_hex(color.as_seen))
        for color in colors
    ]
    shares = random.dirichlet(np.full(len(words), 1.5)) * 0.8 + 0.2 / len(words)
    size = 256 if diameter < 20 else 512
    return words, palette, look, draw_mosaic(tables, list(shares), size, look, number)


def choose_words(random: np.random.Generator) -> list[str]:
    count = int(random.choice([2, 2, 3, 3, 4]))
    while True:
        words = [str(word) for word in random.choice([color.word for color in RUBBER.colors], count, False)]
        swatches = [RUBBER.find(word).lab for word in words]
        if min(float(delta_e_2000(one, other)) for one, other in combinations(swatches, 2)) >= APART:
            return words


def error_of(measured: Measurement, truth: list[float]) -> float:
    """Mean error of the shares, percentage points, of what counts for the mix."""
    shares = np.array(list(measured.shares.values()))
    return float(np.abs(shares * 100 / shares.sum() - truth).mean())


def color_error_of(measured: Measurement, words: list[str], palette: Palette, mosaic: Mosaic) -> float:
    """The largest difference between a color's measured error and that of its granules before blur and JPEG."""
    shaded = float((mosaic.labels == GROUND).mean())
    differences = [0.0]
    for number, word in enumerate(words):
        lab = srgb_to_lab(mosaic.sharp[mosaic.labels == number])
        seen = seen_color(lab, np.ones(len(lab)), shaded=shaded)
        truth = float(delta_e_2000(seen, palette.find(word).lab))
        differences.append(abs(measured.color_errors[word] - truth))
    return max(differences)


@cache
def measure_mosaics() -> tuple[list[Look], np.ndarray, list[float], np.ndarray]:
    """Return each mosaic's look, the mean error of its shares, what was called another color, and the color error."""
    looks, errors, strays, colors = [], [], [], []
    for number in range(COUNT):
        words, palette, look, mosaic = draw_number(number)
        measured = measure_shares(mosaic.pixels, mix_of(words), palette)
        looks.append(look)
        errors.append(error_of(measured, mosaic.percents))
        strays.append(measured.not_asked)
        colors.append(color_error_of(measured, words, palette, mosaic))
    return looks, np.array(errors), strays, np.array(colors)


@pytest.mark.slow
def test_mosaics_are_measured_by_their_pixels():
    """Shares: the aims are 1.0 points on average and 3 at worst; reached are 0.95 and 5.8.

    Colors: the aim is 1.5 at worst; reached are 0.7 on average for a picture's worst color, and 3.9 at worst.
    """
    looks, errors, strays, colors = measure_mosaics()
    assert errors.mean() < 1.0
    assert np.percentile(errors, 90) < 2.8
    assert errors.max() < 6.5
    assert np.mean(strays) < 1
    closed = errors[[look.kind == "pebbles" and look.gap == 0 for look in looks]]
    assert closed.mean() < 0.9
    assert colors.mean() < 0.9
    assert np.percentile(colors, 90) < 1.5
    assert colors.max() < 4.5


@pytest.mark.slow
@pytest.mark.parametrize(("size", "diameter"), [(1024, 6), (1024, 60), (4096, 24), (4096, 60)])
def test_pictures_of_every_size_are_measured(size, diameter):
    words = ["red", "pearl", "blue"]
    tables = [swatch_shades(parse_hex(SWATCHES.find(word).as_seen)) for word in words]
    mosaic = draw_mosaic(tables, [0.5, 0.3, 0.2], 1024, Look("pebbles", diameter), seed=3)
    pixels = np.tile(mosaic.pixels, (size // 1024, size // 1024, 1))
    assert error_of(measure_shares(pixels, mix_of(words), SWATCHES), mosaic.percents) < 2


@pytest.mark.parametrize("kind", ["pebbles", "shards"])
def test_the_color_of_granules_is_found_to_one_and_a_half(kind):
    """Against the granules themselves, before blur and JPEG."""
    words = ["red", "sky blue", "yellow"]
    tables = [measured_shades(RUBBER.find(word).appearance) for word in words]
    mosaic = draw_mosaic(tables, [0.4, 0.3, 0.3], 384, Look(kind, 18, blur=0.3, quality=95), seed=1)
    measured = measure_shares(mosaic.pixels, mix_of(words), RUBBER)
    assert color_error_of(measured, words, RUBBER, mosaic) < 1.5


def test_granules_of_another_color_are_named_and_no_others():
    words = ["red", "pearl", "blue"]
    tables = [measured_shades(RUBBER.find(word).appearance) for word in words]
    mosaic = draw_mosaic(tables, [0.5, 0.3, 0.2], 384, Look("shards", 18), seed=2)
    whole = measure_shares(mosaic.pixels, mix_of(words), RUBBER)
    assert whole.not_asked == 0
    part = measure_shares(mosaic.pixels, mix_of(["red", "pearl"]), RUBBER)
    assert part.not_asked == pytest.approx(mosaic.percents[2], abs=6)
    assert next(iter(part.others)) == "blue"


@pytest.mark.slow
def test_granules_nobody_asked_for_are_found_whatever_was_asked_for():
    """Worst are gray and black: in the shade they look alike."""
    random = np.random.default_rng(5)
    errors = []
    for seed in range(24):
        while True:
            asked, other = (
                RUBBER.find(str(word)) for word in random.choice([c.word for c in RUBBER.colors], 2)
            )
            if float(delta_e_2000(asked.lab, other.lab)) >= 20:
                break
        tables = [measured_shades(color.appearance) for color in (asked, other)]
        mosaic = draw_mosaic(tables, [0.7, 0.3], 256, Look("shards", 16), seed)
        measured = measure_shares(mosaic.pixels, mix_of([asked.word]), RUBBER)
        errors.append(abs(measured.not_asked - mosaic.percents[1]))
    assert np.mean(errors) < 3
    assert np.median(errors) < 2


def draw_color(color: PaletteColor, seed: int, kind: str = "shards") -> np.ndarray:
    return draw_mosaic([measured_shades(color.appearance)], [1.0], 160, Look(kind, 14), seed).pixels


@pytest.mark.slow
def test_a_tile_of_another_color_is_not_what_was_asked_for():
    """White once passed for the glints of black, gray for black in the light. Sampled from all ordered pairs.

    Of all 2401 pairs tried, rounded and angular granules, five show less than 90 % and none less than 50 %.
    """
    palette = RUBBER
    random = np.random.default_rng(3)
    tried = 0
    while tried < 50:
        shown, asked = (palette.colors[number] for number in random.choice(len(palette.colors), 2, False))
        if float(delta_e_2000(shown.lab, asked.lab)) < NEAREST_OTHER:
            continue
        tried += 1
        measured = measure_shares(draw_color(shown, tried), mix_of([asked.word]), palette)
        assert measured.not_asked > 50, (shown.word, asked.word)
        assert next(iter(measured.others)) == shown.word or measured.not_asked > 90


@pytest.mark.parametrize("word", ["white", "light gray", "gray", "red"])
def test_granules_in_the_light_are_not_glints_of_black(word):
    """Neutral colors of any lightness once counted as black."""
    measured = measure_shares(draw_color(RUBBER.find(word), 1), mix_of(["black"]), RUBBER)
    assert measured.shares["black"] < 5
    white = np.full((64, 64, 3), 250, np.uint8)
    measured = measure_shares(white, mix_of(["black"]), chart_palette())
    assert measured.shares["black"] < 3
    assert next(iter(measured.others)) == "white"


@pytest.mark.slow
def test_two_colors_come_out_right_or_are_called_uncertain():
    """Sampled from all pairs. Of half of them, in both shares, 914 were certain, and 0.9 points off on average."""
    palette = RUBBER
    random = np.random.default_rng(11)
    errors = []
    for seed in range(24):
        one, other = (palette.colors[number] for number in random.choice(len(palette.colors), 2, False))
        tables = [measured_shades(color.appearance) for color in (one, other)]
        share = (0.5, 0.8)[seed % 2]
        mosaic = draw_mosaic(tables, [share, 1 - share], 192, Look("shards", 14), seed)
        measured = measure_shares(mosaic.pixels, mix_of([one.word, other.word]), palette)
        if not measured.uncertain:
            errors.append(error_of(measured, mosaic.percents))
    assert len(errors) >= 20
    assert np.mean(errors) < 1.5
    assert max(errors) < 8


@pytest.mark.parametrize(
    ("words", "uncertain"),
    [(["pearl", "white"], True), (["dark gray", "black"], True), (["red", "orange"], False)],
)
def test_colors_whose_granules_overlap_are_called_alike(words, uncertain):
    tables = [measured_shades(RUBBER.find(word).appearance) for word in words]
    mosaic = draw_mosaic(tables, [0.5, 0.5], 128, Look("shards", 14), seed=1)
    doubts = measure_shares(mosaic.pixels, mix_of(words), RUBBER).uncertain
    assert any("look alike" in doubt for doubt in doubts) is uncertain


def test_colors_that_look_alike_are_counted_together():
    asked = {"white": 80, "pearl": 10, "red": 10}
    mix = ColorMix(tuple(ColorShare(word, Decimal(percent)) for word, percent in asked.items()))
    measured = Measurement(
        shares={"white": 44.0, "pearl": 40.0, "red": 16.0}, others={}, not_asked=0.0, mean_delta_e=0.0
    )

    errors = find_share_errors(measured, mix, RUBBER)

    assert errors == pytest.approx({"white": 6, "pearl": 6, "red": 6})


def test_what_cannot_be_measured_is_called_uncertain():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (256, 256, 3), np.uint8)
    flat = np.full((64, 64, 3), 128, np.uint8)
    magenta = draw_mosaic([swatch_shades((255, 0, 255))], [1.0], 128, Look("pebbles", 16), seed=1)
    for pixels, words, shown in (
        (noise, ["red", "white"], "no granules"),
        (flat, ["gray", "red"], "one flat color"),
        (magenta.pixels, ["gray", "red"], "like no color of the palette"),
        (flat, ["green apple", "grass green"], "look alike"),
    ):
        doubts = measure_shares(pixels, mix_of(words), RUBBER).uncertain
        assert any(shown in doubt for doubt in doubts), (shown, doubts)
    red = measured_shades(RUBBER.find("red").appearance)
    one = draw_mosaic([red], [1.0], 256, Look("shards", 16), seed=1)
    assert measure_shares(one.pixels, mix_of(["red"]), RUBBER).uncertain == ()


def read_photographs() -> list[dict]:
    if not MAKER.is_dir():
        pytest.skip("the maker's photographs are not here: ../shared/data/maker")
    listed = msgspec.json.decode((MAKER / "maker.json").read_bytes())["photographs"]
    return [photograph for photograph in listed if "true" in photograph]


@pytest.mark.slow
def test_the_makers_photographs_are_measured_to_two_points():
    """Reached: 1.27 points on average, 3.9 at worst, black and white 0.94; the aims are 1.5, 4 and 2.5."""
    errors = {}
    for photograph in read_photographs():
        words, truth = list(photograph["true"]), list(photograph["true"].values())
        pixels = np.asarray(Image.open(MAKER / photograph["file"]).convert("RGB"))
        measured = measure_shares(pixels, mix_of(words), RUBBER)
        assert measured.not_asked < 3
        errors[photograph["file"]] = error_of(measured, truth)
    assert len(errors) == 30
    found = np.array(list(errors.values()))
    assert found.mean() < 1.5
    assert found.max() < 4
    assert np.mean([error for file, error in errors.items() if "WHITE" in file]) < 2.5


@pytest.mark.slow
def test_a_palette_color_is_what_its_photograph_shows():
    """The committed palette holds the figures of these very pictures."""
    read_photographs()
    for color in RUBBER.colors[::4]:
        pixels = np.asarray(Image.open(MAKER / "photographs" / f"{color.code}.jpg").convert("RGB"))
        assert measure_color(pixels, color.word, source="").as_seen == color.as_seen
