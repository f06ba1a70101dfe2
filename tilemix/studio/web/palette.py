"""The chart of colors and the presets as the page shows them, in the reader's language."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.colors.chart import Color, get_color, load_colors

if TYPE_CHECKING:
    from collections.abc import Mapping

PRESETS_FILE = Path(__file__).parent / "pages" / "presets.json"


class Swatch(msgspec.Struct, frozen=True):
    """One color on the page."""

    color: str  # the trade name, as the API and the database know it
    word: str  # how the reader types it
    label: str  # the same, capitalized
    ral: str | None  # four digits
    hex: str | None  # how its granules look, "#RRGGBB"; None: the color is not on the chart


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A common mix."""

    names: dict[str, str]  # language -> name
    mix: dict[str, int]  # trade name -> percent; total 100


@cache
def load_presets() -> tuple[Preset, ...]:
    """Return the presets, in the order of the file."""
    return msgspec.json.decode(PRESETS_FILE.read_bytes(), type=tuple[Preset, ...])


@cache
def load_swatches(language: str) -> dict[str, Swatch]:
    """Return the chart by trade name, in the order of the chart."""
    return {color.name: _describe(color, language) for color in load_colors()}


def find_swatch(name: str, language: str) -> Swatch:
    """Return a color of a mix; one that is not on the chart keeps its name and has no hex value."""
    if get_color(name) is None:
        return Swatch(name, name, name, None, None)
    return load_swatches(language)[name]


def write_mix(mix: Mapping[str, float], language: str) -> str:
    """Return a mix as a reader would type it: "50% rot, 50% schwarz"."""
    return ", ".join(f"{share:g}% {find_swatch(color, language).word}" for color, share in mix.items())


def chart_for_script(language: str) -> dict[str, Any]:
    """Return the chart and the presets for the script."""
    return {
        "colors": msgspec.to_builtins(list(load_swatches(language).values())),
        "presets": [preset.mix for preset in load_presets()],
    }


def _describe(color: Color, language: str) -> Swatch:
    word = color.synonyms[language][0]
    if language == "zh" and len(word) == 1:
        word += "色"  # a single character is an adjective
    return Swatch(color.name, word, word[0].upper() + word[1:], color.ral, color.as_seen)
