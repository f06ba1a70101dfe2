"""The colors of the trade: granule colors, their RAL numbers, how they look, their names in every language.

`data/colors.json` holds them and `data/languages/` their names; only this module reads the chart. Two values stand for
a color: `srgb` is the RAL card on a screen, `as_seen` is a surface of
granules of that color. A picture is measured against `as_seen` where its model has no palette.
docs/color.md tells which swatches of other makers were corrected by photographs, and why.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from tilemix.colors.languages import load_languages

COLORS_FILE = Path(__file__).parents[1] / "data" / "colors.json"
PALETTES = COLORS_FILE.parent / "palettes"


class Color(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One granule color."""

    name: str  # the English trade name, as it is sent to the model
    ral: str | None  # RAL Classic number, four digits; None: the chart names none and none is near
    srgb: str  # the RAL card, "#RRGGBB"; screen approximations differ by several units from source to source
    as_seen: str  # a surface of these granules, "#RRGGBB"
    # A: a granule chart gives name and RAL number. B: one gives the name or a swatch; the rest is the nearest
    # match. C: common in the trade, but found in no chart. Where no chart shows a swatch (chocolate, ivory,
    # lilac, olive, white, wine red), as_seen is the RAL card, slightly darkened. D: photographed by the maker of
    # the tiles, in no other chart; srgb is as_seen.
    sure: str
    printed: str | None = None  # the charts' swatch, where as_seen is a photograph instead
    basic: bool = False  # one of the twelve everyday colors that are always measured
    synonyms: dict[str, list[str]] = {}  # language -> base forms; from `data/languages/`

    @property
    def swatch(self) -> str:
        """The color as the charts print it, "#RRGGBB"; as photographed where none does."""
        return self.printed or self.as_seen

    @property
    def is_printed(self) -> bool:
        """Whether another maker's chart shows it."""
        return self.sure != "D"


@cache
def load_colors() -> tuple[Color, ...]:
    """Return every granule color, in the order of the file."""
    colors = msgspec.json.decode(COLORS_FILE.read_bytes(), type=tuple[Color, ...])
    languages = load_languages().items()
    return tuple(
        msgspec.structs.replace(
            color, synonyms={code: language.colors.get(color.name, []) for code, language in languages}
        )
        for color in colors
    )


@cache
def basic_colors() -> tuple[Color, ...]:
    """Return the twelve everyday colors; they are at least 12 apart in delta E 2000, as seen."""
    return tuple(color for color in load_colors() if color.basic)


@cache
def _colors_by_name() -> dict[str, Color]:
    return {color.name: color for color in load_colors()}


def get_color(name: str) -> Color | None:
    """Return the color with this English trade name, None if there is none."""
    return _colors_by_name().get(name)


def list_palettes() -> list[str]:
    """Return the names of the models' palettes, `data/palettes/NAME.json`."""
    return sorted(path.stem for path in PALETTES.glob("*.json"))
