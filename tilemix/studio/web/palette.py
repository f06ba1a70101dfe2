"""The served model's colors and the presets as the page shows them, in the reader's language."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tilemix.colors.chart import Color, get_color, load_colors
from tilemix.errors import MixError
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.prompts.reading import translate_mix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.colors.palette import Palette, PaletteColor

PRESETS_FILE = Path(__file__).parent / "pages" / "presets.json"


class Swatch(msgspec.Struct, frozen=True):
    """One color on the page."""

    color: str  # the palette's word or the trade name, as the API and the database know it
    word: str  # how the reader types it
    label: str  # the same, capitalized
    ral: str | None  # four digits
    hex: str | None  # how its granules look, "#RRGGBB"; None: neither palette nor chart has the color


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A common mix."""

    names: dict[str, str]  # language -> name
    mix: dict[str, int]  # trade name -> percent; total 100


@cache
def load_presets() -> tuple[Preset, ...]:
    """Return the presets, in the order of the file."""
    return msgspec.json.decode(PRESETS_FILE.read_bytes(), type=tuple[Preset, ...])


def send_presets(palette: Palette | None) -> tuple[Preset, ...]:
    """Return the presets that a palette has colors for, in its words."""
    if palette is None:
        return load_presets()
    sent = []
    for preset in load_presets():
        mix = ColorMix(tuple(ColorShare(color, Decimal(percent)) for color, percent in preset.mix.items()))
        try:
            shares = translate_mix(mix, palette)[0].shares
        except MixError:
            continue  # no color of the palette is near one of its
        sent.append(Preset(preset.names, {color: int(percent) for color, percent in shares}))
    return tuple(sent)


def load_swatches(language: str, palette: Palette | None = None) -> dict[str, Swatch]:
    """Return a palette's colors by word, in the order of the chart; the chart where there is none."""
    if palette is None:
        return {color.name: _describe(color, language) for color in load_colors()}
    order = {color.name: place for place, color in enumerate(load_colors())}
    colors = sorted(palette.colors, key=lambda color: order.get(_name(color), len(order)))
    return {color.word: _describe_own(color, language) for color in colors}


def find_swatch(name: str, language: str, palette: Palette | None = None) -> Swatch:
    """Return a color of a mix, as the palette shows it, or else the chart; any other keeps its name, without a hex."""
    own = palette.find(name) if palette is not None else None
    if own is not None:
        return _describe_own(own, language)
    color = get_color(name)
    return Swatch(name, name, name, None, None) if color is None else _describe(color, language)


def write_mix(mix: Mapping[str, float], language: str) -> str:
    """Return a mix as a reader would type it: "50% rot, 50% schwarz"."""
    return ", ".join(f"{share:g}% {find_swatch(color, language).word}" for color, share in mix.items())


def _name(color: PaletteColor) -> str:
    """Return the chart's name for a palette's color; its own word where the chart has none."""
    return color.chart[0] if color.chart else color.word


def _describe_own(color: PaletteColor, language: str) -> Swatch:
    known = get_color(_name(color))
    word = color.word if known is None else _describe(known, language).word
    return Swatch(color.word, word, word[0].upper() + word[1:], color.ral, color.as_seen)


def _describe(color: Color, language: str) -> Swatch:
    word = color.synonyms[language][0]
    if language == "zh" and len(word) == 1:
        word += "色"  # a single character is an adjective
    return Swatch(color.name, word, word[0].upper() + word[1:], color.ral, color.as_seen)
