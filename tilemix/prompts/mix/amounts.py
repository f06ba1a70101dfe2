"""Numbers with what stands behind them, read as amounts: percents, parts, weights, fractions."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilemix.prompts.mix.numbers import (
    HALF,
    Number,
    find_unit,
    format_number,
    parse_number,
    percent_of,
    read_fraction,
    read_groups,
    read_number,
    read_thousands,
)
from tilemix.prompts.mix.words import number_words, percent_of_words, vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilemix.prompts.mix.pieces import Piece
    from tilemix.prompts.mix.words import Kind, Meaning

CROSSES = frozenset({"x", "х", "×", "*"})
AmountKind = Literal[  # as those of tokens; "word": a number of something else, "50 cm"
    "percent", "part", "weight", "fraction", "number", "ratio", "range", "unclear", "unread", "word",
]  # fmt: skip
UNITS: frozenset[Kind] = frozenset({"percent", "part", "weight", "denominator"})
BEHIND: frozenset[Kind] = UNITS | {"fraction", "measure", "bar"}
LARGEST_DENOMINATOR = 16  # of a fraction of a unit: "3/16 kg"
MOST_SOFT = 2  # small words between a fraction and its unit: "half of a kilo"


class Amount(NamedTuple):
    """What a number turns out to be, and how many pieces it takes."""

    kind: AmountKind
    used: int
    value: str = ""
    source: str = ""  # of parts: what is counted; of a ratio: its sign


class AmountReader:
    """Reads the amounts among the pieces of a text."""

    def __init__(self, text: str, pieces: Sequence[Piece]) -> None:
        self._text = text
        self._pieces = pieces

    def read_unit(self, place: int, number: Number) -> Amount:
        """Return the amount of a number that begins at `place`; a number alone where no unit stands behind it."""
        pieces = self._pieces
        behind = place + number.used
        if signs := self._count_signs(behind):
            return self._take_percent(place, number.used + signs, number.value)
        groups = read_groups(self._text, pieces, place)
        if groups is not None:
            meaning, used = find_unit(pieces, place + groups.used, {"part", "weight"})
            if meaning is not None:
                return self._take_unit(place, groups.used + used, groups.value, meaning)
        alone = Amount("number", number.used, number.value)
        meaning, used = find_unit(pieces, behind, BEHIND)
        if meaning is None:
            return alone
        used += number.used
        match meaning.kind:
            case "percent":
                return self._take_percent(place, used, number.value)
            case "part" | "weight":
                value = read_thousands(number.value, pieces)
                return (
                    Amount("unclear", used) if value is None else self._take_unit(place, used, value, meaning)
                )
            case "measure":
                return Amount("word", used)
            case "bar":
                numerator = read_number(pieces, place + used) if place + used < len(pieces) else None
                if numerator is None:
                    return alone
                used += numerator.used
                fraction = f"{numerator.value}/{number.value}"
            case _:
                fraction = f"{number.value}/{meaning.value.removeprefix('1/')}"
        if read_fraction(fraction) is None:
            return alone
        return self._add_half(place, used, fraction) or self.read_fraction_of(place, used, fraction)

    def read_fraction_of(self, place: int, used: int, fraction: str) -> Amount:
        """Return a fraction that takes `used` pieces, or so many of what stands behind it: "half a kilo", "半成"."""
        parts = read_fraction(fraction)
        if parts is None:
            return Amount("unread", used)
        value = Decimal(parts[0]) / parts[1]
        if signs := self._count_signs(place + used):
            return Amount("percent", used + signs, format_number(value))
        at = place + used
        while at < place + used + MOST_SOFT and self._is_soft(at):
            at += 1
        meaning, words = find_unit(self._pieces, at, UNITS)
        total = at + words - place
        match meaning.kind if meaning is not None else None:
            case "percent":
                return Amount("percent", total, format_number(value))
            case "denominator" if meaning is not None:
                return Amount("fraction", total, format_number(value * 100 / int(meaning.value)))
            case "part" | "weight" if meaning is not None:
                return self._take_unit(place, total, f"{value:.6f}", meaning)
        return Amount("fraction", used, percent_of(*parts))

    def read_crossed(self, place: int, number: Number) -> Amount:
        """Read a size such as "50 x 50 cm", which is not an amount; return the number alone where there is none."""
        pieces = self._pieces
        at = place + number.used
        while (
            at + 1 < len(pieces)
            and (pieces[at].folded or pieces[at].text) in CROSSES
            and pieces[at + 1].kind in {"number", "dashed", "ratio"}
        ):
            at += 2
        is_size = at > place + number.used and not (self._count_signs(at) or find_unit(pieces, at, UNITS)[1])
        if not is_size:
            return Amount("number", number.used, number.value)
        return Amount("word", at - place + find_unit(pieces, at, {"measure"})[1])

    def read_ratio(self, place: int) -> Amount:
        """Read "3:1", "60/40", "10-20", with what stands behind it."""
        piece = self._pieces[place]
        meaning, words = find_unit(self._pieces, place + 1, UNITS | {"measure"})
        if meaning is not None and meaning.kind == "measure":
            return Amount("word", 1 + words)
        signs = self._count_signs(place + 1)
        typed = re.sub("[ ]?[:：∶‐‑–—−-][ ]?", ":", piece.text).replace(" ", "")
        parts = read_fraction(typed) if piece.kind == "ratio" else None
        if parts is not None and parts[1] <= LARGEST_DENOMINATOR and (meaning is not None or signs):
            return self.read_fraction_of(place, 1, typed)
        if (meaning is not None or signs) and (piece.kind == "dashed" or not signs):
            return Amount("range", 1 + (signs or words))
        sign = piece.text.strip("0123456789., ")[:1]
        return Amount("ratio", 1 + signs, typed, "%" if signs else sign)

    def read_sign(self, place: int) -> Amount:
        """Read a percent sign that stands before its number: "%60"."""
        pieces = self._pieces
        number = read_number(pieces, place + 1) if place + 1 < len(pieces) else None
        if number is not None and pieces[place].end == pieces[place + 1].start:
            behind = place + 1 + number.used
            if not self._count_signs(behind) and not find_unit(pieces, behind, BEHIND)[1]:
                return Amount("percent", 1 + number.used, number.value)
        return Amount("unread", 1)

    def _take_percent(self, place: int, used: int, value: str) -> Amount:
        """Return a percent; "20% share red" says no more than "20% red"."""
        return Amount("percent", used + find_unit(self._pieces, place + used, {"part"})[1], value)

    def _take_unit(self, place: int, used: int, value: str, meaning: Meaning) -> Amount:
        """Return parts or a weight, with the half that is written together with the unit: 三份半."""
        number = parse_number(value)
        if number is None:
            return Amount("part", used, value, meaning.value)
        half, count = self._find_half(place + used)
        if not half:
            count = find_unit(self._pieces, place + used, {"half"})[1]  # "two kilos and a half"
            half = HALF if count else half
        if meaning.kind == "weight":
            return Amount("weight", used + count, f"{(number + half) * Decimal(meaning.value):f}")
        return Amount("part", used + count, f"{number + half:f}" if half else value, meaning.value)

    def _add_half(self, place: int, used: int, fraction: str) -> Amount | None:
        """Return a fraction with what is written together with it: 六成半 is 65%, 七成五 is 75%; None for nothing."""
        numerator, denominator = map(int, fraction.split("/"))
        more, count = self._find_half(place + used)
        if not more and denominator == 10 and self._is_joined(place + used):
            digits = number_words().get(self._pieces[place + used].folded, "")
            is_last = len(digits) == 1 and not find_unit(self._pieces, place + used + 1, UNITS)[1]
            more, count = (Decimal(digits) / 10, 1) if is_last else (more, count)
        value = (numerator + more) * 100 / denominator
        return Amount("fraction", used + count, format_number(value)) if more else None

    def _find_half(self, place: int) -> tuple[Decimal, int]:
        meaning, used = find_unit(self._pieces, place, {"fraction"})
        is_half = meaning is not None and meaning.value == "1/2" and self._is_joined(place)
        return (HALF, used) if is_half else (Decimal(0), 0)

    def _is_joined(self, place: int) -> bool:
        pieces = self._pieces
        return place < len(pieces) and pieces[place - 1].end == pieces[place].start

    def _is_soft(self, place: int) -> bool:
        """Return whether a small word stands there, such as "a" in "half a kilo", and not a unit."""
        if place >= len(self._pieces) or find_unit(self._pieces, place, UNITS)[1]:
            return False
        meaning = vocabulary().get(self._pieces[place].folded)
        return meaning is not None and meaning.kind in {"of", "filler"}

    def _count_signs(self, place: int) -> int:
        """Return how many pieces a percent sign takes: "%", "%%", "wt%", "Gew.-%"."""
        pieces = self._pieces
        at = place
        if at < len(pieces) and pieces[at].folded in percent_of_words():
            at += 1
            while at < len(pieces) and pieces[at].text in {".", "-", "/"}:
                at += 1
        first = at
        while at < len(pieces) and pieces[at].kind == "sign":
            at += 1
        return at - place if at > first else 0
