"""The palette of a model: the colors that it was trained to draw, and how its granules look.

A palette is a file, `data/palettes/NAME.json`, written by `tilemix palette` from photographs of one color each.
The chart of trade colors is the customers' dictionary; a palette's color says which colors of the chart it
answers to.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from tilemix.colors.chart import PALETTES, basic_colors, get_color, list_palettes
from tilemix.colors.hex import parse_hex
from tilemix.colors.look import NODE_COUNT, Appearance
from tilemix.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

PALETTE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MOST_CHARACTERS = 80  # of a name, in an error
TOO_NEAR = 3.0  # delta E 2000 between two colors of a palette, which then are hardly told apart


class PaletteColor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One color of a palette."""

    word: str  # as the captions of the training named it; what is sent to the model
    as_seen: str  # "#RRGGBB", the median of the lighter 60 % of its granules
    code: str | None = None  # the maker's
    ral: str | None = None  # RAL Classic number, four digits
    chart: tuple[str, ...] = ()  # the colors of the chart that it answers to, its own first
    spread: tuple[float, float, float] | None = None  # standard deviations of L*, a* and b* over its granules
    appearance: Appearance | None = None  # None: modeled around `as_seen`

    @property
    def lab(self) -> NDArray[np.float64]:
        """`as_seen` in CIELAB, (3,)."""
        return _lab_of(self.as_seen)

    def look(self) -> Appearance:
        """Return the measured appearance, or else the modeled one."""
        from tilemix.colors.appearance import model_appearance  # numpy

        return self.appearance or model_appearance(self.lab)


@cache
def _lab_of(value: str) -> NDArray[np.float64]:
    from tilemix.colors.cielab import srgb_to_lab  # numpy; a rewriter does without

    lab = srgb_to_lab(parse_hex(value))
    lab.flags.writeable = False
    return lab


class Granules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The shape and the size of the granules that a model draws."""

    shape: Literal["cells", "shards"]  # rounded, side by side; angular, lying over one another
    diameter: Annotated[float, msgspec.Meta(ge=4, le=400)]  # of a circle as large, pixels; in the median
    spread: Annotated[float, msgspec.Meta(ge=0, le=1)]  # standard deviation of the logarithm of the diameter
    gap: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.75  # brightness between two, as a part of theirs
    relief: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0  # how much facets differ; 1: as on photographs


# The maker's tiles, at the scale at which SDXL draws them.
DEFAULT_GRANULES = Granules("shards", diameter=21, spread=0.39, relief=1.6)


class Palette(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The colors of a model."""

    source: str  # what it was measured on
    colors: tuple[PaletteColor, ...]
    most_colors: int | None = None  # of a mix that the model was trained on
    step: int | None = None  # percent; the shares of such a mix are multiples of it
    granules: Granules = DEFAULT_GRANULES

    def find(self, name: str) -> PaletteColor | None:
        """Return the color with this word or code, or else the one that answers to this color of the chart."""
        plain = name.casefold()
        for color in self.colors:
            if plain in (color.word, (color.code or "").casefold()):
                return color
        return next((color for color in self.colors if name in color.chart), None)

    def near_pairs(self) -> list[tuple[str, str, float]]:
        """Return the pairs of colors that are less than 3 apart in delta E 2000, with the difference."""
        from tilemix.colors.cielab import delta_e_2000  # numpy

        pairs = (
            (one, other, float(delta_e_2000(one.lab, other.lab)))
            for one, other in combinations(self.colors, 2)
        )
        return [(one.word, other.word, apart) for one, other, apart in pairs if apart < TOO_NEAR]


@cache
def load_palette(name: str) -> Palette:
    """Return a palette of this package by its name, or one from a file by its path.

    Raises:
        InputError: there is none, or the file is not a palette.
    """
    path = PALETTES / f"{name}.json" if PALETTE_NAME.fullmatch(name) else Path(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        known = ", ".join(list_palettes())
        raise InputError("palette-unknown", typed=name[:MOST_CHARACTERS], known=known) from error
    return decode_palette(data, source=name)


def decode_palette(data: bytes, *, source: str) -> Palette:
    """Return the palette that a file holds; `source` names it in messages.

    Raises:
        InputError: it is not a palette: not JSON of its form, without a color, with a word twice, with a value
            that is not a color, or with an appearance of another length.
    """
    try:
        palette = msgspec.json.decode(data, type=Palette)
    except msgspec.MsgspecError as error:
        raise InputError("palette-broken", file=source[:MOST_CHARACTERS], reason=str(error)) from error
    words = [color.word for color in palette.colors]
    if not words:
        raise InputError("palette-empty", file=source[:MOST_CHARACTERS])
    for word in words:
        if words.count(word) > 1:
            raise InputError("palette-color-twice", file=source[:MOST_CHARACTERS], color=word)
    for color in palette.colors:
        parse_hex(color.as_seen)
        for name, values in msgspec.structs.asdict(color.appearance).items() if color.appearance else ():
            if len(values) != NODE_COUNT:
                raise InputError(
                    "palette-bad-appearance",
                    file=source[:MOST_CHARACTERS],
                    color=color.word,
                    part=name,
                    found=len(values),
                    expected=NODE_COUNT,
                )
    return palette


def encode_palette(palette: Palette) -> bytes:
    """Return the bytes of a palette's file, one color a line."""
    head = msgspec.json.encode(msgspec.structs.replace(palette, colors=())).decode()
    lines = ",\n".join(msgspec.json.encode(color).decode() for color in palette.colors)
    return head.replace('"colors":[]', f'"colors":[\n{lines}\n]', 1).encode() + b"\n"


@cache
def chart_palette() -> Palette:
    """Return the twelve basic colors of the chart as a palette, each modeled around its swatch."""
    return Palette("the chart of trade colors", tuple(_from_chart(color.name) for color in basic_colors()))


def find_color(palette: Palette, name: str) -> PaletteColor | None:
    """Return a color of `palette`, or else of the chart, modeled around its swatch; None: neither has it."""
    return palette.find(name) or (_from_chart(name) if get_color(name) is not None else None)


def find_colors(palette: Palette | None, names: Iterable[str]) -> tuple[PaletteColor, ...] | None:
    """Return each color, from `palette` or else the chart; None: neither has one of them."""
    found = [find_color(palette or chart_palette(), name) for name in names]
    colors = tuple(color for color in found if color is not None)
    return colors if len(colors) == len(found) else None


def find_swatches(palette: Palette | None, names: Iterable[str]) -> tuple[str, ...] | None:
    """Return "#RRGGBB" of each color, from `palette` or else the chart; None: one of them has no swatch."""
    colors = find_colors(palette, names)
    return None if colors is None else tuple(color.as_seen for color in colors)


@cache
def _from_chart(name: str) -> PaletteColor:
    color = get_color(name)
    assert color is not None, name
    return PaletteColor(word=name, as_seen=color.as_seen, ral=color.ral, chart=(name,))
