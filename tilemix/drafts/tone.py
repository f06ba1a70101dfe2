"""The last step of a picture from a draft: each color's granules are moved to the color they should have.

The draft says which granule a pixel belongs to, so nothing is guessed. A color moves as a whole, by what the lit
insides of its granules lack in the median, and its lightness by a curve, so that as much of it is dark and bright as of
the color's granules. The moves fade over the rim of a granule and in its shade, so no edge appears. Then a* and b* are
held near the granule's color, since a VAE lets the colors of small granules run into one another. Relief, light and
grain stay where the model drew them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from tilemix.colors.appearance import SHADOW, find_lightness, seen_color
from tilemix.colors.cielab import delta_e_2000, lab_to_srgb, srgb_to_lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tilemix.colors.look import Appearance
    from tilemix.colors.palette import PaletteColor
    from tilemix.drafts.layout import Layout

    Floats = NDArray[np.float64]

EDGE = 2  # pixels at the rim of a granule that are left out
MOST = 8.0  # delta E 2000 that a color is moved by, and L*
PARTS = (
    np.array([5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95]) / 100
)  # of a color's granules, between which a curve bends
SPREAD = 3.5  # in a* and b*: the median of the maker's colors, which have 1.4 to 7.4
SOFTNESS = 0.6  # pixels: the standard deviation of the rim
REACH = 8  # pixels of what is on the other side, since layouts wrap


def find_seen(lab: Floats, layout: Layout, count: int) -> dict[int, Floats]:
    """Return the CIELAB color that a picture shows where its draft has each of `count` colors.

    It is the median of the lighter 60 % of the granules' insides, whatever the model has made of them. A color that
    has no inside is left out.

    Args:
        lab: the picture in CIELAB, (h, w, 3).
        layout: its draft's, (h, w).
        count: of the colors.
    """
    inside = np.ones(layout.labels.shape, bool)
    for axis in (0, 1):
        for shift in range(-EDGE, EDGE + 1):
            inside &= layout.labels == np.roll(layout.labels, shift, axis)
    shown = layout.colors[layout.labels[inside]]
    values = lab[inside]
    found = {}
    for number in range(count):
        own = values[shown == number]
        if len(own):
            found[number] = seen_color(own, np.ones(len(own)))
    return found


def tone(
    pixels: NDArray[np.uint8], layout: Layout, colors: Sequence[PaletteColor]
) -> tuple[NDArray[np.uint8], dict[int, float]]:
    """Return the picture (h, w, 3) with its colors moved to those meant, and by how much each was, in delta E 2000.

    No color moves by more than 8, and no lightness by more than 8. After that no pixel's a* and b* are further than
    3.5 from its color's. A color that has no granule inside the picture stays, and is left out of the answer.

    Args:
        pixels: drawn from a draft, sRGB.
        layout: the draft's.
        colors: of the layout: the lit granules' color, and the lightness of all.
    """
    lab = srgb_to_lab(pixels)
    of_pixel = layout.colors[layout.labels]
    sizes: dict[int, float] = {}
    moves, far = np.zeros_like(lab), np.zeros((*of_pixel.shape, 2))
    for number, seen in find_seen(lab, layout, len(colors)).items():
        move, sizes[number] = _bound(seen, colors[number].lab)
        is_own = of_pixel == number
        mask = _soften(is_own)
        moves[..., 0] += mask * _light(lab[..., 0], is_own, colors[number].look())
        lit = np.clip(lab[..., 0] / max(float(seen[0]), 1.0), 0, 1)
        moves[..., 1:] += (mask * lit)[..., None] * move[1:]
        far += mask[..., None] * (lab[..., 1:] - (seen + move)[1:])
    lab += moves
    far += moves[..., 1:]
    lab[..., 1:] += far / np.sqrt(1 + np.sum((far / SPREAD) ** 2, axis=2, keepdims=True)) - far
    return np.clip(np.rint(lab_to_srgb(lab)), 0, 255).astype(np.uint8), sizes


def _light(lightness: Floats, is_own: NDArray[np.bool_], look: Appearance) -> Floats:
    """Return what takes each lightness (h, w) to that of which as much of the color is darker, by a look.

    What is darker than the color's shade, and what is brighter than all of it, moves less and less.
    """
    own = lightness[is_own]
    found = np.quantile(own[own >= SHADOW * np.median(own)], PARTS)
    moves = np.clip(find_lightness(look, PARTS) - found, -MOST, MOST)
    nodes, number = np.unique(found, return_inverse=True)  # a flat color has one
    moves = np.bincount(number, moves) / np.bincount(number)
    return np.asarray(np.interp(lightness, [0, *nodes, 100], [0, *moves, 0]))


def _bound(seen: Floats, target: Floats) -> tuple[Floats, float]:
    """Return the move from `seen` toward `target`, at most MOST long, and its length in delta E 2000."""
    move = target - seen
    size = float(delta_e_2000(seen, target))
    while size > MOST:
        move = move * min(MOST / size, 0.99)
        size = float(delta_e_2000(seen, seen + move))
    return move, size


def _soften(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a mask (h, w) with soft edges, 0..1."""
    wide = np.pad(mask.view(np.uint8) * np.uint8(255), REACH, mode="wrap")
    soft = np.asarray(Image.fromarray(wide).filter(ImageFilter.GaussianBlur(SOFTNESS)))
    return soft[REACH:-REACH, REACH:-REACH].astype(np.float32) / np.float32(255)
