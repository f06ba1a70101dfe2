"""Shades and hues of the chart's colors: what "light gray" is called, and which colors people see as one hue."""

from __future__ import annotations

import colorsys
from functools import cache
from pathlib import Path

import msgspec

SHADES_FILE = Path(__file__).parents[1] / "data" / "shades.json"
SATURATED = 0.4  # of HSV; from here on a value has a hue of its own
LIT = 0.25  # HSV value; darker ones are blackish


class Shades(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chart's shades and hues."""

    shades: dict[str, dict[str, str]]  # light, dark, bright, medium -> color -> the color of that shade
    hues: dict[str, list[str]]  # colors that people see as one hue; a color may have two
    blends: dict[str, list[str]]  # colors that make one hue when their names are joined: "blue-green"
    screen: list[
        tuple[int, list[str]]
    ]  # an HSV hue in degrees, the colors that a saturated value of it means


@cache
def load_shades() -> Shades:
    """Return the shades and hues."""
    return msgspec.json.decode(SHADES_FILE.read_bytes(), type=Shades)


def share_hue(one: str, other: str) -> bool:
    """Return whether people see two colors of the chart as one hue."""
    return one == other or any(one in hue and other in hue for hue in load_shades().hues.values())


def is_blend(one: str, other: str) -> bool:
    """Return whether the joined names of two colors are one hue between them, as "blue-green" is."""
    blends = load_shades().blends
    return other in blends.get(one, ()) or one in blends.get(other, ())


def colors_of_screen_hue(red: int, green: int, blue: int) -> list[str]:
    """Return the chart's colors of the hue of a saturated screen color; none where it is pale, gray or blackish."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if saturation < SATURATED or value < LIT:
        return []
    return min(load_shades().screen, key=lambda row: abs((360 * hue - row[0] + 180) % 360 - 180))[1]
