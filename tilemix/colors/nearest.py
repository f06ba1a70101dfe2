"""RAL numbers and hex values: which granule color they stand for, or come nearest to.

`data/ral.json` lists the 216 numbers of RAL Classic, each with a screen value.
No sRGB value of an RAL card is binding: these are the usual approximations,
and sources differ by several units. They are used only to find the nearest
granule color. Where makers disagree on a granule color's number, the file
lists the second one, too: blue is sold as 5017 and as 5005.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from tilemix.colors.chart import load_colors
from tilemix.colors.shades import colors_of_screen_hue

CLOSE = 5.0  # delta E 2000 up to which a granule color looks the same on a screen
CHROMA_WEIGHT = 0.25  # beside lightness 1: no granules are as vivid as a screen
RAL_FILE = Path(__file__).parents[1] / "data" / "ral.json"


class Match(NamedTuple):
    """The granule color that a value stands for."""

    name: str
    delta_e: float  # delta E 2000; 0 when the value is the color's own


class RalTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """RAL Classic."""

    granules: dict[str, str]  # second numbers of granule colors -> trade name
    screen: dict[str, str]  # every number, four digits -> "#RRGGBB", a screen approximation


@cache
def load_ral() -> RalTable:
    """Return the RAL numbers that exist."""
    return msgspec.json.decode(RAL_FILE.read_bytes(), type=RalTable)


@lru_cache(maxsize=1024)
def match_ral(number: str) -> Match | None:
    """Return the granule color of this RAL number, or else the one whose RAL card is nearest.

    None: RAL Classic has no such number.
    """
    table = load_ral()
    value = table.screen.get(number)
    if value is None:
        return None
    if number in table.granules:
        return Match(table.granules[number], 0.0)
    for color in load_colors():
        if color.ral == number:
            return Match(color.name, 0.0)
    return _nearest(value, [color.srgb for color in load_colors()])


@lru_cache(maxsize=1024)
def match_hex(value: str) -> Match:
    """Return the granule color of this hex value, or else the one that looks most like it.

    A hex value is meant as seen, so it is compared with `as_seen` and not with the RAL card. No granules
    are as vivid as a screen's red or blue, and the nearest color of such a value may have another hue. So its hue
    comes first, then its lightness.

    Raises:
        InputError: it is not a hex value.
    """
    for color in load_colors():
        if value.upper() in (color.as_seen, color.srgb):
            return Match(color.name, 0.0)
    nearest = _nearest(value, [color.as_seen for color in load_colors()])
    return nearest if nearest.delta_e <= CLOSE else _nearest_of_hue(value) or nearest


def _nearest_of_hue(value: str) -> Match | None:
    from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
    from tilemix.colors.hex import parse_hex

    names = colors_of_screen_hue(*parse_hex(value))
    lab = srgb_to_lab(parse_hex(value))

    def distance(seen: str) -> float:
        other = srgb_to_lab(parse_hex(seen))
        chroma = math.hypot(*lab[1:]) - math.hypot(*other[1:])
        return math.hypot(lab[0] - other[0], CHROMA_WEIGHT * chroma)

    found = [color for color in load_colors() if color.name in names]
    if not found:
        return None
    best = min(found, key=lambda color: distance(color.as_seen))
    return Match(best.name, float(delta_e_2000(lab, srgb_to_lab(parse_hex(best.as_seen)))))


def _nearest(value: str, candidates: list[str]) -> Match:
    # Loaded here, because numpy takes longer to load than all text stages together.
    from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
    from tilemix.colors.hex import parse_hex

    distances = delta_e_2000(
        srgb_to_lab(parse_hex(value)), srgb_to_lab([parse_hex(candidate) for candidate in candidates])
    )
    best = int(distances.argmin())
    return Match(load_colors()[best].name, float(distances[best]))
