"""RAL numbers and hex values: which granule color they stand for, or come nearest to.

`data/ral.json` lists the 216 numbers of RAL Classic, each with a screen value.
No sRGB value of an RAL card is binding: these are the usual approximations,
and sources differ by several units. They are used only to find the nearest
granule color. Where makers disagree on a granule color's number, the file
lists the second one, too: blue is sold as 5017 and as 5005.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from tilemix.colors.chart import load_colors

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

    A hex value is meant as seen, so it is compared with `as_seen` and not with the RAL card.

    Raises:
        InputError: it is not a hex value.
    """
    for color in load_colors():
        if value.upper() in (color.as_seen, color.srgb):
            return Match(color.name, 0.0)
    return _nearest(value, [color.as_seen for color in load_colors()])


def _nearest(value: str, candidates: list[str]) -> Match:
    # Loaded here, because numpy takes longer to load than all text stages together.
    from tilemix.colors.cielab import delta_e_2000, parse_hex, srgb_to_lab

    distances = delta_e_2000(
        srgb_to_lab(parse_hex(value)), srgb_to_lab([parse_hex(candidate) for candidate in candidates])
    )
    best = int(distances.argmin())
    return Match(load_colors()[best].name, float(distances[best]))
