"""The colors that a draft must have so that the drawn granules show the palette's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilemix.colors.cielab import format_hex, lab_to_srgb, srgb_to_lab
from tilemix.colors.hex import parse_hex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
STEP = 0.8  # of the error, by which a draft's color moves in each round
MOST = 25.0  # of CIELAB, that a draft's color lies from the palette's


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
