"""The last step of a picture from a draft: its colors move to the palette's, and nothing else does."""

import msgspec
import numpy as np
import pytest
from scipy import ndimage

from tilemix.colors.appearance import find_lightness, measure_appearance
from tilemix.colors.cielab import delta_e_2000, format_hex, lab_to_srgb, srgb_to_lab
from tilemix.colors.palette import load_palette
from tilemix.drafts.draft import draft_mix
from tilemix.drafts.layout import Layout
from tilemix.drafts.tone import MOST, PARTS, find_seen, tone
from tilemix.prompts.mix import parse_mix

PALETTE = load_palette("rubber-tile")
WORDS = ("red", "black", "pearl")
COLORS = [PALETTE.find(word) for word in WORDS]


@pytest.fixture(scope="module")
def draft():
    return draft_mix(parse_mix("50% red, 30% black, 20% pearl").mix, PALETTE, 256, 192, seed=3)


def draw(draft, drift, relief=6.0):
    """A picture of the draft: lightness that varies, soft rims, every color off by `drift`."""
    lab = srgb_to_lab(draft.pixels) + np.array(drift)
    random = np.random.default_rng(1)
    bumps = ndimage.gaussian_filter(random.standard_normal(lab.shape[:2]), 3, mode="wrap")
    lab[..., 0] += relief * bumps / bumps.std()
    blurred = ndimage.gaussian_filter(lab_to_srgb(lab), (0.8, 0.8, 0), mode="wrap")
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("drift", [(4, 2, -2), (-4, 0, 3), (0, 3, 3)])
def test_colors_that_drifted_come_back_and_relief_stays(draft, drift):
    pixels = draw(draft, drift)
    toned, sizes = tone(pixels, draft.layout, COLORS)
    before, after = (find_seen(srgb_to_lab(one), draft.layout, 3) for one in (pixels, toned))
    for number, color in enumerate(COLORS):
        assert sizes[number] == pytest.approx(float(delta_e_2000(before[number], color.lab)))
        assert delta_e_2000(after[number], color.lab) < 0.35 * sizes[number] + 1.5
    light = [srgb_to_lab(one)[..., 0] for one in (pixels, toned)]
    grain = [(one - ndimage.gaussian_filter(one, 4, mode="wrap")).ravel() for one in light]
    assert np.corrcoef(grain)[0, 1] > 0.95


def test_a_color_gets_the_lightness_of_its_granules(draft):
    pixels = draw(draft, (5, 0, 0), relief=3)
    toned, _ = tone(pixels, draft.layout, COLORS)
    shown = draft.layout.colors[draft.layout.labels]
    for number, color in enumerate(COLORS):
        meant = find_lightness(color.look(), PARTS)
        off = [
            np.abs(np.quantile(srgb_to_lab(one)[..., 0][shown == number], PARTS) - meant).mean()
            for one in (pixels, toned)
        ]
        assert off[1] < 0.5 * off[0]


def test_no_color_moves_further_than_the_bound_and_no_halo_appears(draft):
    pixels = draw(draft, (25, 10, -20), relief=0)
    toned, sizes = tone(pixels, draft.layout, COLORS)
    assert set(sizes) == {0, 1, 2}
    assert max(sizes.values()) <= MOST + 1e-6
    assert np.median(delta_e_2000(srgb_to_lab(pixels), srgb_to_lab(toned))) <= MOST + 0.5
    moved = srgb_to_lab(toned) - srgb_to_lab(pixels)
    steps = np.abs(np.diff(ndimage.gaussian_filter(moved, (1, 1, 0), mode="wrap"), axis=1))
    assert steps.max() < MOST


def test_colors_that_are_right_and_colors_without_granules_stay(draft):
    pixels = draw(draft, (0, 0, 0))
    lab, shown = srgb_to_lab(pixels), draft.layout.colors[draft.layout.labels]
    measured = [
        msgspec.structs.replace(
            color, as_seen=format_hex(lab_to_srgb(seen)), appearance=measure_appearance(lab[shown == number])
        )
        for color, (number, seen) in zip(COLORS, find_seen(lab, draft.layout, 3).items(), strict=True)
    ]
    toned, sizes = tone(pixels, draft.layout, [*measured, COLORS[0]])
    assert set(sizes) == {0, 1, 2}
    assert max(sizes.values()) < 0.5
    assert np.median(np.abs(toned.astype(int) - pixels)[find_inside(draft)]) <= 1
    labels = np.zeros((64, 64), np.intp)
    labels[30:34, 30:34] = 1  # without an inside
    red = np.full((64, 64, 3), (180, 40, 40), np.uint8)
    red[30:34, 30:34] = (40, 160, 40)
    toned, sizes = tone(red, Layout(labels, np.array([0, 1])), COLORS)
    assert set(sizes) == {0}
    assert np.abs(toned[31:33, 31:33].astype(int) - (40, 160, 40)).max() <= 6


def find_inside(draft):
    """Where all pixels around belong to the same granule."""
    low, high = (
        function(draft.layout.labels, 7, mode="wrap")
        for function in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    return low == high


def test_colors_that_ran_into_one_another_come_apart_and_the_light_stays(draft):
    pixels = draw(draft, (0, 0, 0))
    lab = srgb_to_lab(pixels)
    lab[..., 1:] = ndimage.gaussian_filter(lab[..., 1:], (3, 3, 0), mode="wrap")
    blurred = np.clip(np.rint(lab_to_srgb(lab)), 0, 255).astype(np.uint8)
    toned, _ = tone(blurred, draft.layout, COLORS)
    colors = np.array([color.lab for color in COLORS])[draft.layout.colors[draft.layout.labels]]
    before, after = (srgb_to_lab(one) for one in (blurred, toned))
    off = [np.hypot(*np.moveaxis(one - colors, 2, 0)[1:]) for one in (before, after)]
    assert off[0].mean() > 8
    assert off[1].mean() < 0.5 * off[0].mean()
    assert np.corrcoef(before[..., 0].ravel(), after[..., 0].ravel())[0, 1] > 0.98


def test_what_is_on_the_other_side_counts_at_the_edge(draft):
    pixels, shift = draw(draft, (5, 0, 0)), (40, 60)
    rolled = draft_rolled(draft, shift)
    toned, _ = tone(pixels, draft.layout, COLORS)
    again, _ = tone(np.roll(pixels, shift, (0, 1)), rolled, COLORS)
    assert np.array_equal(np.roll(toned, shift, (0, 1)), again)


def draft_rolled(draft, shift):
    return type(draft.layout)(np.roll(draft.layout.labels, shift, (0, 1)), draft.layout.colors)
