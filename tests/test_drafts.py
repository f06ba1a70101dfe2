"""Drafts: shares exact by area, no seam, no clumps, and the same again from the same seed."""

import subprocess
import sys
from decimal import Decimal
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from PIL import Image

from tilemix.cli import main
from tilemix.colors.appearance import find_lightness, model_appearance, seen_color
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import (
    DEFAULT_GRANULES,
    Granules,
    chart_palette,
    decode_palette,
    encode_palette,
    load_palette,
)
from tilemix.drafts.draft import draft_mix, encode_png, encode_svg
from tilemix.drafts.layout import SCALES, Layout, lay_out
from tilemix.drafts.pieces import SHAPES
from tilemix.drafts.relief import light_facets
from tilemix.prompts.mix import ColorMix, ColorShare, parse_mix

CELLS, SHARDS = Granules("cells", 19, 0.15), DEFAULT_GRANULES
BOTH = pytest.mark.parametrize("granules", [CELLS, SHARDS], ids=["cells", "shards"])
MIXES = ([100], [50, 30, 20], [97.5, 2.5], [99.5, 0.5], [1] * 12, [40, 30, 20, 10])


def borders(layout):
    """The pairs of granules that touch, each once."""
    pairs = set()
    for axis in (0, 1):
        other = np.roll(layout.labels, 1, axis)
        is_edge = layout.labels != other
        touching = np.sort(np.stack([layout.labels[is_edge], other[is_edge]]), axis=0)
        pairs |= set(map(tuple, np.unique(touching, axis=1).T.tolist()))
    return np.array(sorted(pairs))


def join_ratio(layout, shares):
    """Borders between granules of one color over those expected if the colors were dealt at random."""
    one, other = borders(layout).T
    parts = np.array(shares) / sum(shares)
    return np.mean(layout.colors[one] == layout.colors[other]) / np.sum(parts**2)


@BOTH
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (296, 640)])
def test_the_areas_hold_the_shares(granules, size):
    for shares in MIXES:
        for seed in range(3):
            layout = lay_out(shares, *size, granules, seed)
            asked = np.array(shares) / sum(shares)
            assert np.abs(layout.shares(len(shares)) - asked).max() < 3e-4, (shares, seed)


@BOTH
@pytest.mark.slow
def test_the_areas_hold_the_shares_at_the_largest_size(granules):
    layout = lay_out([64.5, 35, 0.5], 1536, 1536, granules, 2)
    assert layout.labels.shape == (1536, 1536)
    assert layout.shares(3) == pytest.approx([0.645, 0.35, 0.005], abs=3e-4)


@BOTH
@pytest.mark.parametrize("size", SCALES)
def test_few_large_granules_are_cut_to_the_share(granules, size):
    large = Granules(granules.shape, 60, granules.spread)
    layout = lay_out([99.5, 0.5], 256, 256, large, 1, size=size)
    assert layout.shares(2)[1] == pytest.approx(0.005, abs=3e-4)


@BOTH
def test_granule_size_scales_the_granules(granules):
    counts = [len(np.unique(lay_out([1], 256, 256, granules, 1, size=size).labels)) for size in SCALES]
    small, medium, large = counts
    assert small / medium == pytest.approx(SCALES["small"] ** -2, rel=0.2)
    assert large / medium == pytest.approx(SCALES["large"] ** -2, rel=0.2)


@BOTH
def test_the_granules_have_the_diameter_asked_for(granules):
    labels = lay_out([1], 1024, 512, granules, 3).labels
    areas = np.bincount(labels.ravel())
    diameters = 2 * np.sqrt(areas[areas > 50] / np.pi)
    low, middle, high = np.percentile(diameters, [10, 50, 90])
    assert middle == pytest.approx(granules.diameter, rel=0.25)
    assert high / low > (1.3 if granules is CELLS else 2.0)  # shards of mixed sizes


@BOTH
def test_a_layout_wraps(granules):
    """Across the edge of the picture, neighbors belong to one granule as often as inside."""
    labels = lay_out([1], 256, 320, granules, 5).labels
    for axis in (0, 1):
        same = np.mean(labels == np.roll(labels, 1, axis), axis=1 - axis)
        assert abs(same[0] - same[1:].mean()) < 4 * same[1:].std(), axis
    seam = np.roll(labels, (160, 128), (0, 1))
    cut = np.unique(labels[:, 0])
    assert np.isin(cut, labels[:, -1]).mean() > 0.7
    assert len(np.unique(seam)) == len(np.unique(labels))


@BOTH
@pytest.mark.parametrize("shares", [[50, 50], [50, 30, 20], [90, 10], [25] * 4])
@pytest.mark.slow
def test_colors_are_well_mixed(granules, shares):
    """No clumps: granules of one color touch no more often than by chance; no rows of alternating colors either."""
    for seed in range(3):
        layout = lay_out(shares, 512, 512, granules, seed)
        assert 0.65 < join_ratio(layout, shares) < 1.03
        blocks = layout.colors[layout.labels].reshape(4, 128, 4, 128)
        first = (blocks == 0).mean(axis=(1, 3))
        assert np.abs(first - shares[0] / sum(shares)).max() < 0.12  # of any sixteenth of the picture


def test_clumps_would_be_seen():
    """The statistic tells: colors sorted from left to right touch their own kind far more often."""
    layout = lay_out([50, 50], 512, 512, CELLS, 0)
    side = np.bincount(layout.labels.ravel(), np.tile(np.arange(512), 512)) / np.bincount(
        layout.labels.ravel()
    )
    layout.colors[:] = side > 255
    assert join_ratio(layout, [50, 50]) > 1.8


@BOTH
def test_another_seed_gives_another_layout(granules):
    one, other = (lay_out([60, 40], 256, 256, granules, seed) for seed in (1, 2))
    assert (one.labels != other.labels).mean() > 0.3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_draft_in_every_run():
    code = (
        "import hashlib\n"
        "from tilemix.colors.palette import Granules\nfrom tilemix.drafts.layout import lay_out\n"
        "for shape in ('cells', 'shards'):\n"
        "    layout = lay_out([50, 30, 20], 256, 328, Granules(shape, 19, 0.3), 7)\n"
        "    print(hashlib.sha256(layout.labels.tobytes() + layout.colors.tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_every_piece_of_a_shape_is_numbered_and_no_pixel_is_left_out():
    for lay in SHAPES.values():
        labels, middles = lay(200, 264, 17.0, 0.3, np.random.default_rng(0))
        assert labels.shape == (264, 200)
        assert labels.min() >= 0
        assert labels.max() < len(middles)


def test_a_draft_shows_the_palettes_colors_with_faint_gaps():
    palette = load_palette("rubber-tile")
    draft = draft_mix(parse_mix("75% red, 25% white").mix, palette, 256, 256, seed=1)
    colors, counts = np.unique(draft.pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colors) == 4
    found = {"#{:02X}{:02X}{:02X}".format(*color): count for color, count in zip(colors, counts, strict=True)}
    red, white = (palette.find(name).as_seen for name in ("red", "white"))
    assert draft.swatches == (red, white)
    assert 0.5 < found[red] / 256**2 < 0.75  # the rest of it is gap
    assert draft.legend == [(red, "75% red"), (white, "25% white")]


def test_there_is_no_draft_of_a_color_without_a_swatch():
    mix = ColorMix((ColorShare("red", Decimal(50)), ColorShare("zebra", Decimal(50))))
    assert draft_mix(mix, None, 256, 256, seed=1) is None
    assert draft_mix(parse_mix("50% red, 50% black").mix, None, 256, 256, seed=1) is not None


def test_png_and_svg_hold_the_same_picture(tmp_path):
    draft = draft_mix(parse_mix("50% red, 30% black, 20% pearl").mix, None, 264, 256, seed=1)
    (tmp_path / "draft.png").write_bytes(encode_png(draft))
    with Image.open(tmp_path / "draft.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), draft.pixels)
    svg = ET.fromstring(encode_svg(draft))  # noqa: S314  our own
    texts = [one.text for one in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [f"{text} {swatch}" for swatch, text in draft.legend]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_verb_writes_a_draft_with_its_legend(tmp_path, capsys, suffix):
    path = tmp_path / f"draft.{suffix}"
    arguments = ["draft", "50% red, 50% black", "-o", str(path), "--seed", "3", "--width", "256"]
    assert main([*arguments, "--height", "264", "--model", "miniature"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    first = path.read_bytes()
    if suffix == "png":
        with Image.open(path) as picture:
            assert picture.size[0] == 256
            assert picture.size[1] > 264
    else:
        assert b"50% red" in first
    assert main([*arguments, "--height", "264", "--model", "miniature"]) == 0
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a tile"], "no color mix in 'a tile'; expected one such as '50% red, 50% black'"),
        (["50% red, 50% zebra"], "'zebra' at character 14 is not a color of this model; it draws "),
        (
            ["100% red", "-o", "draft.gif"],
            "expected a file name that ends in '.png' or '.svg', found 'draft.gif'",
        ),
        (
            ["100% red", "-o", "missing/draft.png"],
            "missing/draft.png: folder 'missing' does not exist",
        ),
        (["100% red", "--width", "250"], "width 250: expected a multiple of 8 from 256 to 1536"),
    ],
)
@pytest.mark.slow
def test_the_verb_says_why_there_is_no_draft(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert main(["draft", *arguments]) == 1
    assert line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def draw_lit(relief=1.0, seed=3, mix="60% red, 40% black"):
    palette = msgspec.structs.replace(
        load_palette("rubber-tile"), granules=msgspec.structs.replace(SHARDS, relief=relief)
    )
    return draft_mix(parse_mix(mix).mix, palette, 512, 384, seed=seed)


def test_facets_are_lit_around_the_color_of_their_granule():
    draft = draw_lit()
    lab = srgb_to_lab(draft.lit)
    shown = draft.layout.colors[draft.layout.labels]
    for number, swatch in enumerate(draft.swatches):
        own = lab[shown == number]
        flat = srgb_to_lab(np.array(parse_hex(swatch), np.uint8))
        assert delta_e_2000(seen_color(own, np.ones(len(own))), flat) < 3
        assert np.percentile(own[:, 0], 90) > flat[0] + 1
        assert np.percentile(own[:, 0], 10) < flat[0] - 5


@pytest.mark.parametrize("word", ["black", "pearl", "red"])
def test_facets_are_as_dark_and_as_bright_as_the_colors_granules(word):
    draft = draw_lit(mix=f"100% {word}")
    shown = srgb_to_lab(draft.lit)[..., 0][draft.layout.number_colors(1) == 0]
    parts = np.array([10, 25, 50, 75, 90])
    expected = find_lightness(load_palette("rubber-tile").find(word).look(), parts / 100)
    assert np.abs(np.percentile(shown, parts) - expected).max() < 5


def test_facets_repeat_and_without_relief_there_are_none():
    assert np.array_equal(draw_lit().lit, draw_lit().lit)
    assert not np.array_equal(draw_lit(seed=3).lit, draw_lit(seed=4).lit)
    flat = draw_lit(relief=0)
    assert np.array_equal(flat.lit, flat.pixels)


def test_facets_of_a_granule_go_on_at_the_other_edge():
    labels = np.zeros((32, 32), np.intp)
    labels[12:20, :4] = labels[12:20, -4:] = 1
    gray, shown = np.full((1, 3), 120, np.uint8), np.zeros((32, 32), np.uint8)
    layout, moved = (Layout(one, np.zeros(2, np.intp)) for one in (labels, np.roll(labels, 9, axis=1)))
    looks = [model_appearance(srgb_to_lab(gray)[0])]
    lit, there = (
        light_facets(gray, looks, shown, one, 1.0, np.random.default_rng(5)) for one in (layout, moved)
    )
    assert np.array_equal(np.roll(lit, 9, axis=1)[moved.labels == 1], there[moved.labels == 1])


def test_granules_of_a_palette_are_read():
    assert load_palette("rubber-tile").granules == SHARDS
    described = encode_palette(msgspec.structs.replace(chart_palette(), granules=CELLS))
    assert decode_palette(described, source="here").granules == CELLS
