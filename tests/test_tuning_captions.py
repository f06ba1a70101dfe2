"""Captions that do not say what their pictures show."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from tests.mosaics import Look, draw_mosaic, measured_shades
from tests.test_pictures_truth import MAKER
from tilemix.cli import main
from tilemix.colors.palette import load_palette
from tilemix.prompts.palette_mix import read_palette_mix, replace_palette_mix
from tilemix.tuning.captions import check_captions
from tilemix.tuning.pictures import CaptionedPicture

ROOT = Path(__file__).resolve().parents[1]
RUBBER = load_palette("rubber-tile")
FRONT = "ohwx_rubber_tile <s0><s1>"


def save(folder: Path, name: str, mix: dict[str, float], caption: str) -> CaptionedPicture:
    """Write a picture of `mix` and its caption."""
    tables = [measured_shades(RUBBER.find(word).appearance) for word in mix]
    mosaic = draw_mosaic(tables, [part / 100 for part in mix.values()], 320, Look("shards", 14), seed=5)
    path = folder / f"{name}.png"
    Image.fromarray(mosaic.pixels).save(path)
    path.with_suffix(".txt").write_text(caption)
    return CaptionedPicture(path, caption, "")


@pytest.fixture
def pictures(tmp_path):
    mix = {"red": 60, "blue": 30, "yellow": 10}
    return [
        save(tmp_path, "right", mix, f"{FRONT}, 60% red, 30% blue, 10% yellow"),
        save(tmp_path, "swapped", mix, f"{FRONT}, 60% red, 10% blue, 30% yellow"),
        save(tmp_path, "color", {"red": 60, "green apple": 40}, f"{FRONT}, 60% red, 40% dark green, sharp"),
        save(tmp_path, "words", mix, "a tile in the sun"),
    ]


@pytest.mark.slow
def test_captions_that_lie_are_found_with_what_is_seen(pictures):
    swapped, color = check_captions(pictures, RUBBER)
    assert swapped.path.name == "swapped.txt"
    assert list(swapped.shows) == ["red", "blue", "yellow"]
    assert swapped.shows["blue"] == pytest.approx(30, abs=6)
    assert sum(swapped.shows.values()) == 100
    assert color.path.name == "color.txt"
    assert list(color.shows) == ["red", "green apple"]
    assert str(color).startswith("color.txt: says 60% red, 40% dark green; shows ")


@pytest.mark.slow
def test_a_corrected_caption_lies_beside_the_old_one(pictures):
    _, color = check_captions(pictures, RUBBER)
    path = color.write_corrected()
    assert path.name == "color.txt.corrected"
    shares = color.shows
    assert path.read_text() == f"{FRONT}, {shares['red']}% red, {shares['green apple']}% green apple, sharp"
    assert "dark green" in color.path.read_text()


@pytest.mark.slow
def test_the_verb_lists_and_corrects_them(pictures, tmp_path, capsys):
    config = tmp_path / "tile.json"
    template = str(ROOT / "prompt_templates" / "rubber_tile.json")
    settings = {"name": "tile", "base": "base", "pictures": ".", "template": template, "output": "out"}
    config.write_text(json.dumps(settings | {"initial_words": {"<s0>": "rubber", "<s1>": "tile"}}))
    check = ["train", str(config), "--check", "--palette", "rubber-tile"]
    for picture in pictures[:2]:  # the others hold the template's own words, which only a training refuses
        text = picture.caption.removeprefix(f"{FRONT}, ")
        picture.path.with_suffix(".txt").write_text(text)
    assert main([*check, "--json"]) == 0
    listed = msgspec.json.decode(capsys.readouterr().out)
    assert [one["caption"] for one in listed] == ["color.txt", "swapped.txt"]
    assert not list(tmp_path.glob("*.corrected"))
    assert main([*check, "--fix"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert len(list(tmp_path.glob("*.corrected"))) == 2


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("60% green apple, 40% TERCOT", [("green apple", 60), ("terracotta", 40)]),
        (f"{FRONT}, 30% black, 70% white", [("black", 30), ("white", 70)]),
        ("100% white-green", [("white-green", 100)]),
        ("12.5% sky blue,87.5%sand, photorealistic", [("sky blue", 12.5), ("sand", 87.5)]),
        ("60% red, 40% zebra", None),
        ("60% red and 40% blue", None),
        ("a red tile", None),
    ],
)
def test_a_mix_in_the_palettes_words(text, mix):
    found = read_palette_mix(text, RUBBER)
    assert (found and [(share.color, float(share.percent)) for share in found.shares]) == mix


def test_a_mix_is_replaced_where_it_stood():
    assert replace_palette_mix("a, 60% red, 40% blue, b", {"pink": 100}) == "a, 100% pink, b"


@pytest.mark.slow
def test_the_makers_wrong_captions_are_found():
    """All 20 mixes with "dark green", 8 of them with their shares swapped, and none of the other 39 pictures."""
    if not MAKER.is_dir():
        pytest.skip("the maker's photographs are not here: ../shared/data/maker")
    listed = msgspec.json.decode((MAKER / "maker.json").read_bytes())["photographs"]
    pictures = [
        CaptionedPicture(
            MAKER / one["file"], ", ".join(f"{part}% {word}" for word, part in one["named"].items()), ""
        )
        for one in listed
    ]
    truth = {Path(one["file"]).stem: one.get("true") for one in listed}
    wrong = check_captions(pictures, RUBBER)
    assert len(wrong) == 20
    for one in wrong:
        true = truth[one.path.stem]
        assert "dark green" in one.says
        assert true.keys() <= one.shows.keys()
        assert all(abs(one.shows[word] - true[word]) <= 7 for word in true)
