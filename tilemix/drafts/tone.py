"""The last step of a picture from a draft: each color's granules are moved to the color they should have.

The draft says which granule a pixel belongs to, so nothing is guessed. A color moves as a whole, by what the lit
insides of its granules lack in the median. The move fades over the rim of a granule and in its shade, so no edge
appears. Then a* and b* are held near the granule's color, since a VAE lets the colors of small granules run into one
another. The lightness, and with it relief, light and grain, stays the model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from tilemix.colors.appearance import seen_color
from tilemix.colors.cielab import delta_e_2000, lab_to_srgb, srgb_to_lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tilemix.drafts.layout import Layout

    Floats = NDArray[np.float64]

EDGE = 2  # pixels at the rim of a granule that are left out
MOST = 8.0  # delta E 2000 that a color is moved by
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
    pixels: NDArray[np.uint8], layout: Layout, targets: Sequence[Floats]
) -> tuple[NDArray[np.uint8], dict[int, float]]:
    """Return the picture (h, w, 3) with its colors moved to `targets`, and by how much each was, in delta E 2000.

    No color moves by more than 8. After that no pixel's a* and b* are further than 3.5 from its color's. A color that
    has no granule inside the picture stays, and is left out of the answer.

    Args:
        pixels: drawn from a draft, sRGB.
        layout: the draft's.
        targets: the CIELAB (3,) that lit granules should have, of each color of the layout.
    """
    lab = srgb_to_lab(pixels)
    of_pixel = layout.colors[layout.labels]
    sizes: dict[int, float] = {}
    masks, colors = [], []
    moves = np.zeros_like(lab)
    for number, seen in find_seen(lab, layout, len(targets)).items():
        move, sizes[number] = _bound(seen, targets[number])
        masks.append(_soften(of_pixel == number)[..., None])
        colors.append(seen + move)
        moves += masks[-1] * np.clip(lab[..., :1] / max(float(seen[0]), 1.0), 0, 1) * move
    lab += moves
    far = sum(mask * (lab[..., 1:] - color[1:]) for mask, color in zip(masks, colors, strict=True))
    lab[..., 1:] += far / np.sqrt(1 + np.sum((far / SPREAD) ** 2, axis=2, keepdims=True)) - far
    return np.clip(np.rint(lab_to_srgb(lab)), 0, 255).astype(np.uint8), sizes


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
