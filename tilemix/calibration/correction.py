"""The colors that a draft must have so that the drawn granules show the palette's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.appearance import seen_color
from tilemix.colors.cielab import format_hex, lab_to_srgb, srgb_to_lab
from tilemix.colors.hex import parse_hex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from tilemix.drafts.layout import Layout

STEP = 0.8  # of the error, by which a draft's color moves in each round
MOST = 25.0  # of CIELAB, that a draft's color lies from the palette's
EDGE = 2  # pixels at the rim of a granule that are left out


def find_seen(pixels: NDArray[np.uint8], layout: Layout, count: int) -> dict[int, NDArray[np.float64]]:
    """Return the CIELAB color that a picture shows where its draft has each of `count` colors.

    It is the median of the lighter 60 % of the granules' insides, whatever the model has made of them. A color that
    has no inside is left out.
    """
    inside = np.ones(layout.labels.shape, bool)
    for axis in (0, 1):
        for shift in range(-EDGE, EDGE + 1):
            inside &= layout.labels == np.roll(layout.labels, shift, axis)
    shown = layout.colors[layout.labels[inside]]
    lab = srgb_to_lab(pixels[inside])
    found = {}
    for number in range(count):
        own = lab[shown == number]
        if len(own):
            found[number] = seen_color(own, np.ones(len(own)))
    return found


def correct_colors(
    targets: Mapping[str, str], drafts: Mapping[str, str], seen: Iterable[tuple[str, NDArray[np.float64]]]
) -> dict[str, str]:
    """Return the next colors of a draft, by name.

    Args:
        targets: "#RRGGBB" that each color is to show.
        drafts: "#RRGGBB" that it had in the drafts so far.
        seen: pairs of a color and what a picture showed of it, in CIELAB; of several the mean counts.
    """
    errors: dict[str, list[NDArray[np.float64]]] = {}
    for name, lab in seen:
        errors.setdefault(name, []).append(srgb_to_lab(parse_hex(targets[name])) - lab)
    corrected = dict(drafts)
    for name, of_color in errors.items():
        target = srgb_to_lab(parse_hex(targets[name]))
        off = srgb_to_lab(parse_hex(drafts[name])) + STEP * np.mean(of_color, axis=0) - target
        off *= min(1.0, MOST / max(float(np.linalg.norm(off)), 1e-9))
        corrected[name] = format_hex(np.clip(lab_to_srgb(target + off), 0, 255))
    return corrected
