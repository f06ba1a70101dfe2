"""Pictures as people take them: ground, shade, hands, rulers, two tiles, no color, too many pixels."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.mosaics import Look, draw_mosaic, measured_shades
from tests.test_pictures_truth import RUBBER, error_of, mix_of
from tilemix.cli import main
from tilemix.colors.hex import parse_hex
from tilemix.pictures.files import read_pixels
from tilemix.pictures.measure import Measurement, draw_labels, measure_shares
from tilemix.pictures.photographed import find_tile

WORDS = ["red", "black", "pearl"]
TILE = draw_mosaic(
    [measured_shades(RUBBER.find(word).appearance) for word in WORDS],
    [0.5, 0.3, 0.2],
    384,
    Look("shards", 18),
    seed=1,
)


def measure(pixels: np.ndarray) -> Measurement:
    return measure_shares(find_tile(pixels), mix_of(WORDS), RUBBER)


def draw_face() -> np.ndarray:
    face = Image.new("RGB", (384, 384), (90, 120, 160))
    draw = ImageDraw.Draw(face)
    draw.ellipse((100, 60, 285, 330), fill=(222, 170, 140))
    for left in (145, 215):
        draw.ellipse((left, 150, left + 25, 165), fill=(40, 30, 30))
    draw.arc((150, 220, 235, 270), 20, 160, fill=(150, 50, 60), width=8)
    return np.asarray(face.filter(ImageFilter.GaussianBlur(3)))


def lay_ruler() -> np.ndarray:
    pixels = TILE.pixels.copy()
    pixels[150:190] = (235, 205, 60)
    pixels[150:162, ::8] = 20
    return pixels


@pytest.mark.parametrize("ground", [255, 128, 30])
def test_the_ground_around_a_tile_does_not_count(ground):
    """White ground once counted as white granules, and black as black ones."""
    picture = np.full((540, 720, 3), ground, np.uint8)
    picture[80:464, 150:534] = TILE.pixels
    measured = measure(picture)
    assert error_of(measured, TILE.percents) < 2.5
    assert measured.not_asked == 0
    assert measured.uncertain == ()


def test_a_picture_that_granules_fill_is_measured_whole():
    assert find_tile(TILE.pixels) is TILE.pixels
    flat = np.full((200, 200, 3), 90, np.uint8)
    assert find_tile(flat) is flat
    assert find_tile(TILE.pixels[:8]).shape == (8, 384, 3)


def test_shade_at_the_edge_and_a_second_tile_are_borne():
    shade = np.clip(0.45 + np.linspace(0, 1, 384) / 0.2 * 0.55, 0, 1)[:, None]
    shaded = measure((TILE.pixels * shade).astype(np.uint8))
    assert error_of(shaded, TILE.percents) < 3.5
    two = np.full((430, 840, 3), 200, np.uint8)
    two[23:407, 18:402] = TILE.pixels
    two[23:407, 438:822] = TILE.pixels[::-1]
    assert error_of(measure(two), TILE.percents) < 4


def test_what_is_not_a_tile_is_called_uncertain():
    y, x = np.mgrid[:384, :384]
    hand = ((y - 300) / 115) ** 2 + ((x - 190) / 85) ** 2 < 1
    held = TILE.pixels.copy()
    held[hand] = (214, 160, 130)
    gray = np.asarray(Image.fromarray(TILE.pixels).convert("L").convert("RGB"))
    for pixels, shown in (
        (draw_face(), "smooth"),
        (held, "smooth"),
        (lay_ruler(), "like no color"),
        (gray, "black and white, which shows nothing of red"),
    ):
        doubts = measure_shares(pixels, mix_of(WORDS), RUBBER).uncertain
        assert any(shown in doubt for doubt in doubts), (shown, doubts)
    assert measure(TILE.pixels).uncertain == ()


@pytest.mark.slow
def test_a_telephones_picture_is_read_upright_and_smaller(tmp_path):
    """48 million pixels were too many."""
    large = np.asarray(Image.fromarray(TILE.pixels).resize((768, 768), Image.Resampling.BICUBIC))
    wide = Image.fromarray(np.tile(large, (8, 11, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    wide.save(tmp_path / "tile.jpg", quality=80, exif=exif)
    assert wide.width * wide.height > 48e6
    pixels = read_pixels(tmp_path / "tile.jpg")
    assert pixels.shape == (4224, 3072, 3)
    assert error_of(measure(pixels), TILE.percents) < 3


def test_the_map_shows_what_each_place_was_taken_for(tmp_path, capsys):
    labels = draw_labels(TILE.pixels, mix_of(WORDS), RUBBER)
    colors = np.array([parse_hex(RUBBER.find(word).as_seen) for word in WORDS], np.uint8)
    lit = TILE.labels < len(WORDS)
    assert (labels == colors[np.minimum(TILE.labels, 2)]).all(axis=2)[lit].mean() > 0.75
    path, drawn = tmp_path / "tile.png", tmp_path / "map.png"
    Image.fromarray(TILE.pixels).save(path)
    text = "50% red, 30% black, 20% pearl"
    line = ["measure", str(path), "--mix", text, "--palette", "rubber-tile", "--map", str(drawn), "--json"]
    assert main(line) == 0
    assert set(msgspec.json.decode(capsys.readouterr().out)["shares"]) == set(WORDS)
    with Image.open(drawn) as shown:
        assert np.array_equal(np.asarray(shown), labels)


def test_a_large_pictures_map_shows_all_of_it():
    assert draw_labels(np.tile(TILE.pixels, (4, 3, 1)), mix_of(WORDS), RUBBER).shape == (512, 384, 3)
