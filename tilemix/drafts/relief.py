"""The facets of a draft's granules: each is cut in four, and each part lies otherwise in the light.

A flat draft is like nothing that a model has seen. Its VAE makes it softer still, and at a low strength the picture
stays flat: a black tile most of all. With facets as bright as those of photographed granules the model finds relief
to go on with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.appearance import AS_SEEN, find_lightness
from tilemix.colors.cielab import lab_to_srgb, srgb_to_lab

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tilemix.colors.look import Appearance
    from tilemix.drafts.layout import Layout

SIDES = 4  # facets of a granule, between two cuts
LEVELS = 16  # of light


def light_facets(
    colors: NDArray[np.uint8],
    looks: Sequence[Appearance],
    shown: NDArray[np.uint8],
    layout: Layout,
    relief: float,
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return the draft (h, w, 3), sRGB, with its granules' facets in the light.

    The lightness of the facets is spread as that of the color's granules is, and each granule has dark and bright
    ones, so that the color of the whole stays.

    Args:
        colors: of the flat draft, (n, 3), sRGB.
        looks: how the granules of each of these look, n.
        shown: the number of each pixel's color, (h, w).
        layout: of the granules.
        relief: factor on the spread; 0 leaves the draft flat.
        random: chooses the cuts and the light.
    """
    if relief == 0:
        return colors[shown]
    count = len(layout.colors)
    strata = np.argsort(random.random((count, SIDES)), axis=1)
    level = ((strata + random.random((count, SIDES))) * (LEVELS / SIDES)).astype(np.uint8)
    lit = level.ravel()[layout.labels * SIDES + _find_sides(layout, random)]
    table = np.repeat(srgb_to_lab(colors)[:, None], LEVELS, axis=1)
    for lab, look in zip(table, looks, strict=True):
        lightness = find_lightness(look, [AS_SEEN, *((np.arange(LEVELS) + 0.5) / LEVELS)])
        # In proportion, since what lies in a gap is darker than its color.
        lab[:, 0] = (lab[0, 0] * (1 + relief * (lightness[1:] / lightness[0] - 1))).clip(0, 100)
    painted: NDArray[np.uint8] = np.rint(lab_to_srgb(table)).clip(0, 255).astype(np.uint8)
    found: NDArray[np.uint8] = painted[shown, lit]
    return found


def _find_sides(layout: Layout, random: np.random.Generator) -> NDArray[np.intp]:
    """Return on which side of its granule's two cuts each pixel lies, 0 to 3, (h, w)."""
    labels = layout.labels.ravel()
    shape = layout.labels.shape
    areas = np.bincount(labels, minlength=len(layout.colors)).clip(1)
    offsets = []  # from the granule's middle, down and right; a granule may go on at the other edge
    for along, size in zip(np.indices(shape).reshape(2, -1), shape, strict=True):
        start = np.zeros(len(areas), np.intp)
        start[labels] = along
        offset = ((along - start[labels] + size // 2) % size - size // 2).astype(np.float32)
        middle = np.bincount(labels, offset, len(areas)) / areas
        offsets.append(offset - middle.astype(np.float32)[labels])
    turn = random.uniform(0, 2 * np.pi, len(areas))
    between = random.uniform(np.pi / 4, 3 * np.pi / 4, len(areas))
    sides = np.zeros(len(labels), np.intp)
    for bit, angle in enumerate((turn, turn + between)):
        down, right = (part.astype(np.float32)[labels] for part in (np.sin(angle), np.cos(angle)))
        sides |= (offsets[0] * down + offsets[1] * right > 0).astype(np.intp) << bit
    return sides.reshape(shape)
