from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from miniature import photographs
from miniature.photographs import LAYOUTS, MATERIALS, count_pieces, draw_photograph
from miniature.tile import PALETTE
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import find_color, load_palette
from tilemix.errors import MixError, RequestError
from tilemix.prompts.mix import ColorMix, ColorShare


def _mix(**percents: str) -> ColorMix:
    return ColorMix(
        tuple(ColorShare(name.replace("_", " "), Decimal(value)) for name, value in percents.items())
    )


THREE = _mix(red="50", black="30", pearl="20")


@pytest.mark.parametrize("material", MATERIALS)
def test_the_same_seed_draws_the_same_bytes_and_another_seed_does_not(material):
    first, again, other = (draw_photograph(THREE, material, (64, 48), seed) for seed in (7, 7, 8))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("size", [(16, 16), (256, 192), (97, 131)])
def test_a_photograph_has_the_size_asked_for(material, size):
    pixels = draw_photograph(THREE, material, size, 1)
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        ([0.5, 0.3, 0.2], 100, [50, 30, 20]),
        ([0.5, 0.3, 0.2], 7, [4, 2, 1]),
        ([1 / 3, 1 / 3, 1 / 3], 10, [4, 3, 3]),
        ([1.0], 3, [3]),
        ([0.99, 0.01], 10, [10, 0]),
    ],
)
def test_pieces_are_counted_by_largest_remainders(shares, total, expected):
    assert count_pieces(shares, total) == expected


@pytest.mark.parametrize("material", LAYOUTS)
def test_the_shares_are_exact_by_the_number_of_pieces_seen(material):
    random = np.random.default_rng(3)
    layout = LAYOUTS[material](256, 256, random)
    colors = photographs.draw_piece_colors(THREE, layout, random)
    seen = np.unique(layout.pieces)
    palette = np.array(
        [parse_hex(find_color(load_palette(PALETTE), share.color).as_seen) for share in THREE.shares], float
    )
    nearest = np.linalg.norm(colors[seen][:, None] - palette[None], axis=2).argmin(axis=1)
    counts = np.bincount(nearest, minlength=3)
    assert list(counts) == count_pieces([0.5, 0.3, 0.2], len(seen))


def test_an_unknown_material_is_refused():
    with pytest.raises(
        RequestError, match=r"^unknown material 'wood'; known: rubber tile, smooth terrazzo, "
    ):
        draw_photograph(THREE, "wood", (64, 64), 0)


def test_a_color_that_is_not_in_the_file_is_refused():
    with pytest.raises(MixError, match=r"^color 'ultraviolet': not in colors.json$"):
        draw_photograph(_mix(ultraviolet="100"), "rubber tile", (64, 64), 0)


def test_a_picture_under_16_pixels_is_refused():
    with pytest.raises(RequestError, match=r"^size 8x64: "):
        draw_photograph(THREE, "rubber tile", (8, 64), 0)
