"""The words of a color mix in each language: one file a language, `data/languages/XX.json`.

A new file is a new language; the code names none. `data/trade_codes.json` lists the codes of the trade beside them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parents[1] / "data" / "languages"
CODES_FILE = Path(__file__).parents[1] / "data" / "trade_codes.json"
FIRST = ("en", "de", "ru", "uk", "zh")  # before the others where a word means several things


class Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The words of one language, in their base forms unless said otherwise."""

    endings: list[
        list[str]
    ]  # of colors, shades, tints and looks; a word takes the first list whose first one it has
    joints: dict[str, str]  # endings of colors -> those in front of a hyphen: "чёрно-красный"
    plain: bool  # people also type the words without their diacritics
    colors: dict[str, list[str]]  # the color's trade name -> words
    shades: dict[str, list[str]]  # light, dark, bright, medium -> words
    tints: list[str]  # warm, bluish: beside a color they make one that the chart does not have
    looks: list[str]  # wet, fine, recycled: leave the color beside them as it is
    not_: list[str] = msgspec.field(name="not")  # in every form; "without", too
    percent: list[str]
    percent_before: list[str]  # stands before its number
    percent_of: list[str]  # stands between a number and its sign: "5 wt%"
    fractions: dict[str, list[str]]  # "1/3" -> words; a number before one of 1/n is its numerator
    denominators: dict[
        str, list[str]
    ]  # "5" -> words that are a fraction behind a numerator only: "two fifths"
    fraction_bars: list[str]  # between a denominator and the numerator behind it
    and_half: list[str]  # behind a number; with "{number}" in it, one word together with it
    decimal_marks: list[str]  # "point" of "twelve point five"
    decimal_sign: str
    thousands_sign: str
    equal: list[str]
    rest: list[str]
    each: list[str]
    and_: list[str] = msgspec.field(name="and")
    with_: list[str] = msgspec.field(name="with")  # between a base and its accents
    of: list[str]  # may stand between a share and its color
    part: dict[str, list[str]]  # what is counted: parts, bags -> words
    weight: dict[str, list[str]]  # grams -> words
    minus: list[str]
    limits: list[str]  # before a number, or behind it: "up to", "or more"
    measures: list[str]  # units that say nothing about a mix: of length, money, pieces
    to: list[str]  # between the numbers of a range or a ratio
    or_: list[str] = msgspec.field(name="or")  # between the numbers of a range
    nouns: list[str]  # the thing and its granules, in every form; say nothing new beside a color
    grounds: list[str]  # "background": nouns of the base; of the picture, where nothing is left for a base
    fillers: list[str]  # as the nouns: "about", "a", "mix"
    numbers: dict[str, list[str]]  # up to 1000 -> words, as far as they are not compounds
    compounds: list[str]  # how numbers are written in one word, or with a word between: "{tens} y {unit}"
    text: list[str]  # words of another language's mixes that mean something else in this one


@cache
def load_languages() -> dict[str, Language]:
    """Return every language by its code."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
    names = [*FIRST, *(name for name in found if name not in FIRST)]
    return {name: msgspec.json.decode(found[name].read_bytes(), type=Language) for name in names}


@cache
def load_trade_codes() -> dict[str, list[str]]:
    """Return the codes of the trade by the chart's color."""
    return msgspec.json.decode(CODES_FILE.read_bytes(), type=dict[str, list[str]])
