"""Palettes: their files, the colors they answer to, and the verb that makes them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.mosaics import Look, draw_mosaic, measured_shades
from tilemix.cli import main
from tilemix.colors.appearance import NODES, density, measure_appearance, model_appearance, seen_color
from tilemix.colors.chart import basic_colors, get_color, list_palettes
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import chart_palette, decode_palette, encode_palette, find_color, load_palette
from tilemix.errors import InputError
from tilemix.pictures.photographed import cut_background, measure_color

RUBBER = load_palette("rubber-tile")


def granules(word: str, size: int = 256, seed: int = 1) -> np.ndarray:
    table = measured_shades(RUBBER.find(word).appearance)
    return draw_mosaic([table], [1.0], size, Look("shards", 14), seed).pixels


def test_the_palettes_of_the_models_are_there():
    assert list_palettes() == ["rubber-tile"]
    assert len(RUBBER.colors) == 29
    assert (RUBBER.most_colors, RUBBER.step) == (4, 10)


def test_a_palettes_colors_are_on_the_chart_where_they_say_so():
    for color in RUBBER.colors:
        assert all(get_color(known) is not None for known in color.chart)
        assert color.appearance is not None
        assert sum(color.appearance.weight) == pytest.approx(1, abs=0.01)


def test_a_color_is_found_by_word_by_code_and_by_the_charts_name():
    assert RUBBER.find("green apple").code == "GRNAPL"
    assert RUBBER.find("GRNAPL").word == "green apple"
    assert RUBBER.find("grnapl").word == "green apple"
    assert RUBBER.find("bright green").word == "lime green"
    assert RUBBER.find("purple") is None
    assert find_color(RUBBER, "purple").as_seen == get_color("purple").as_seen
    assert find_color(RUBBER, "zebra") is None


def test_the_charts_palette_is_its_basic_colors():
    assert [color.word for color in chart_palette().colors] == [color.name for color in basic_colors()]


def test_a_palette_survives_its_file():
    assert decode_palette(encode_palette(RUBBER), source="here") == RUBBER


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: b"{", "palette-broken"),
        (lambda data: data.replace(b'"word"', b'"name"'), "palette-broken"),
        (lambda data: data.replace(b'"black"', b'"beige"'), "palette-color-twice"),
        (lambda data: data.replace(b"[0.0,", b"[", 1), "palette-bad-appearance"),
        (lambda data: data.replace(RUBBER.colors[0].as_seen.encode(), b"beige"), "color-not-hex"),
        (lambda data: b'{"source":"","colors":[]}', "palette-empty"),
    ],
)
def test_a_file_that_is_not_a_palette_is_refused(change, code):
    with pytest.raises(InputError) as error:
        decode_palette(change(encode_palette(RUBBER)), source="here")
    assert error.value.code == code
    assert str(error.value)


def test_an_unknown_palette_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="'rubber': no such palette or file; known: rubber-tile"):
        load_palette("rubber")


def test_two_colors_that_are_hardly_told_apart_are_told():
    near = msgspec.structs.replace(RUBBER.colors[0], word="cream", as_seen="#DCC69D")
    pairs = msgspec.structs.replace(RUBBER, colors=(RUBBER.colors[0], near)).near_pairs()
    assert [(one, other) for one, other, _ in pairs] == [("beige", "cream")]
    assert pairs[0][2] < 1


@pytest.mark.parametrize("value", ["#F0EEEA", "#D35245", "#393939", "#4564C4"])
def test_a_modeled_appearance_has_its_color(value):
    lab = srgb_to_lab(parse_hex(value))
    look = model_appearance(lab)
    values = np.stack([NODES, np.array(look.a), np.array(look.b)], axis=-1)
    assert float(delta_e_2000(seen_color(values, look.weight), lab)) < 2.5
    own, _ = density(look, lab[None])
    far, _ = density(look, lab[None] + [0, 40, 0])
    assert own[0] > 1e4 * far[0]


def test_a_measured_appearance_is_that_of_its_pixels():
    random = np.random.default_rng(1)
    lab = random.normal([60, 20, -30], [6, 2, 3], (20_000, 3))
    look = measure_appearance(lab)
    assert np.average(NODES, weights=look.weight) == pytest.approx(60, abs=0.5)
    assert look.a[15] == pytest.approx(20, abs=0.3)
    assert look.b[15] == pytest.approx(-30, abs=0.3)
    assert look.aa[15] == pytest.approx(4 + 1, abs=0.5)
    moved, _ = density(look, lab[:100] + np.array([5, 0, 0]), shift=(5, 0, 0))
    assert moved == pytest.approx(density(look, lab[:100])[0])


@pytest.mark.parametrize("ground", [255, 120, 30])
@pytest.mark.slow
def test_the_background_is_cut_away(ground):
    tile = granules("red", 320)
    picture = np.full((480, 640, 3), ground, np.uint8)
    picture[90:410, 200:520] = tile
    cut = cut_background(picture, source="here")
    assert 220 < cut.shape[0] <= 320
    assert 220 < cut.shape[1] <= 320
    assert (cut == ground).all(axis=2).mean() < 0.01
    color, whole = measure_color(picture, "red", source="here"), measure_color(tile, "red", source="here")
    assert float(delta_e_2000(color.lab, whole.lab)) < 1


@pytest.mark.parametrize(
    ("pixels", "code"),
    [
        (np.full((200, 200, 3), 90, np.uint8), "photograph-smooth"),
        (np.full((8, 300, 3), 90, np.uint8), "photograph-too-small"),
    ],
)
def test_a_picture_without_granules_is_refused(pixels, code):
    with pytest.raises(InputError) as error:
        cut_background(pixels, source="here.jpg")
    assert error.value.code == code
    assert str(error.value).startswith("here.jpg: ")


def save(folder, name, word, caption=None):
    Image.fromarray(granules(word)).save(folder / name)
    if caption:
        (folder / name).with_suffix(".txt").write_text(caption)


@pytest.mark.slow
def test_the_verb_makes_a_palette_from_names_and_captions(tmp_path, capsys):
    folder, out = tmp_path / "tiles", tmp_path / "tiles.json"
    folder.mkdir()
    save(folder, "dark_blue.png", "dark blue")
    save(folder, "IMG_1.jpg", "yellow", "ohwx_rubber_tile <s0><s1>, 100% yellow")
    save(folder, "REDp60_BLUEp40.png", "red")
    save(folder, "IMG_2.jpg", "red", "50% red, 50% blue")
    (folder / "notes.md").write_text("no picture")
    assert main(["palette", str(folder), "--out", str(out)]) == 0
    assert "2 colors" in capsys.readouterr().out
    palette = load_palette(str(out))
    assert [color.word for color in palette.colors] == ["yellow", "dark blue"]
    assert palette.source == "tiles"
    for color in palette.colors:
        assert float(delta_e_2000(color.lab, RUBBER.find(color.word).lab)) < 6
    with Image.open(tmp_path / "tiles.png") as sheet:
        assert sheet.getpixel((10, 10)) == parse_hex(palette.colors[0].as_seen)


def test_the_verb_refuses_a_color_that_comes_twice_and_a_folder_without_colors(tmp_path, capsys):
    save(tmp_path, "red.png", "red")
    save(tmp_path, "second.png", "red", "100% red")
    assert main(["palette", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 1
    assert "'red' is named twice" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["palette", str(empty)]) == 1
    assert "no colors" in capsys.readouterr().err
    assert main(["palette", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_measure_reads_a_mix_in_the_palettes_own_words(tmp_path, capsys):
    tables = [measured_shades(RUBBER.find(word).appearance) for word in ("green apple", "terracotta")]
    mosaic = draw_mosaic(tables, [0.6, 0.4], 256, Look("shards", 14), seed=1)
    path = tmp_path / "tile.png"
    Image.fromarray(mosaic.pixels).save(path)
    text = "60% green apple, 40% TERCOT"
    assert main(["measure", str(path), "--mix", text, "--palette", "rubber-tile", "--json"]) == 0
    by_palette = msgspec.json.decode(capsys.readouterr().out)
    assert list(by_palette["shares"]) == ["green apple", "terracotta"]
    assert by_palette["shares"]["green apple"] == pytest.approx(mosaic.percents[0], abs=3)
    assert set(by_palette) >= {"shares", "others", "not_asked", "color_errors", "drift", "uncertain"}
    assert main(["measure", str(path), "--mix", text, "--model", "rubber-tile", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == by_palette
    assert main(["measure", str(path), "--mix", text, "--palette", "nowhere"]) == 1
    assert "'nowhere': no such palette or file" in capsys.readouterr().err
