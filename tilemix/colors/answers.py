"""Which color of a palette stands for one of the chart that the palette lacks: the nearest by delta E 2000.

The charts print their swatches and a palette is photographed, where light lifts dark granules: by the maker's
photographs a printed lightness of 10 is seen as 31, and one of 80 as 79. So a swatch is moved first, as the colors move
that chart and palette have in common. Without this, purple would be sent as dark blue and olive as dark gray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tilemix.colors.chart import get_color
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import TOO_NEAR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette, PaletteColor

# The maker's palette lacks 11 colors of the chart. Their nearest are 2.6 to 12.3 away, and people call them by a like
# name: olive and khaki. At 14 and more begin colors that nobody would mix up: chocolate and black.
FARTHEST = 13.0  # delta E 2000
LEAST_PAIRS = 8  # colors that both have, to learn from
LEAST_RANGE = 30.0  # of their lightness


class Answer(NamedTuple):
    """A color of a palette in the place of one of the chart."""

    color: PaletteColor
    delta_e: float  # delta E 2000 between the two, both as the palette's photographs would show them


def find_answer(palette: Palette, name: str) -> Answer | None:
    """Return the color that is sent for one of the chart, or of a palette's own name; None: none is near."""
    own = palette.find(name)
    if own is not None:
        return Answer(own, 0.0)
    ranked = rank_answers(palette, name)
    return ranked[0] if ranked and ranked[0].delta_e <= FARTHEST else None


def name_value(palette: Palette, value: str) -> str | None:
    """Return the chart's name, or else the word, of the palette's color that a hex value is hardly told from."""
    differences = delta_e_2000(_to_lab([value]), np.stack([color.lab for color in palette.colors]))
    nearest = int(np.argmin(differences))
    color = palette.colors[nearest]
    return (color.chart[0] if color.chart else color.word) if differences[nearest] < TOO_NEAR else None


def rank_answers(palette: Palette, name: str) -> list[Answer]:
    """Return the colors of `palette`, the nearest to a color of the chart first; none where the chart lacks it."""
    asked = get_color(name)
    if asked is None:
        return []
    expected = _to_lab([asked.swatch])
    if asked.is_printed:
        expected = _move(palette, expected)
    differences = delta_e_2000(expected, np.stack([color.lab for color in palette.colors]))
    answers = [Answer(color, float(apart)) for color, apart in zip(palette.colors, differences, strict=True)]
    return sorted(answers, key=lambda answer: answer.delta_e)


def _move(palette: Palette, lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return printed colors (n, 3) as the palette's photographs would show them: lightness by a line, chroma scaled."""
    pairs = [
        (printed.swatch, color.lab)
        for color in palette.colors
        if color.chart and (printed := get_color(color.chart[0])) is not None and printed.is_printed
    ]
    if len(pairs) < LEAST_PAIRS:
        return lab
    before, after = _to_lab([swatch for swatch, _ in pairs]), np.stack([seen for _, seen in pairs])
    if np.ptp(before[:, 0]) < LEAST_RANGE:
        return lab
    slope, offset = np.polyfit(before[:, 0], after[:, 0], 1)
    scale = (before[:, 1:] * after[:, 1:]).sum() / (before[:, 1:] ** 2).sum()
    return np.column_stack([offset + slope * lab[:, 0], scale * lab[:, 1:]])


def _to_lab(values: list[str]) -> NDArray[np.float64]:
    return srgb_to_lab([parse_hex(value) for value in values])
