"""Numbers as people write them, up to their unit::

12,5      33 1/3      1 500 (kg)      60 (sixty)      2/5
one hundred and fifty      twelve point five      zweieinhalb      две с половиной      五分之二      六成半
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from tilemix.colors.languages import load_languages
from tilemix.prompts.mix.pieces import VULGAR
from tilemix.prompts.mix.words import (
    ambiguous_words,
    joined_hundreds,
    meanings,
    number_words,
    units,
    vocabulary,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Sequence

    from tilemix.prompts.mix.pieces import Piece
    from tilemix.prompts.mix.words import Kind, Meaning

MOST_WORDS = 4  # in a phrase of the vocabulary
VULGAR_VALUES = dict(zip(VULGAR, ["1/4", "1/2", "3/4", "1/3", "2/3", "1/5", "1/8", "1/10"], strict=True))
DECIMAL_POINTS = str.maketrans({",": ".", "．": "."})
MOST_DIGITS = 8  # before the decimal sign
MOST_DECIMALS = 20
LARGEST_DENOMINATOR = 1000
HALF = Decimal("0.5")
THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*+")
GROUP = re.compile(r"\d{3}")
GROUP_SIGNS = frozenset(" \u00a0\u202f'’")


class Number(NamedTuple):
    """A number and how many pieces it takes."""

    value: str  # as typed in digits, or put together: "62.5"
    used: int


def parse_number(typed: str) -> Decimal | None:
    """Return a number as typed; None where it is not one, or has more than eight digits before the decimal sign."""
    whole, _, decimals = typed.translate(DECIMAL_POINTS).partition(".")
    if (
        not (whole or decimals)
        or len(whole) > MOST_DIGITS
        or "." in decimals
        or len(decimals) > MOST_DECIMALS
    ):
        return None
    return Decimal(f"{whole or 0}.{decimals}" if decimals else whole)


def format_number(value: Decimal) -> str:
    """Return a number in digits, with three decimals at most."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def is_near(total: Decimal | int, whole: int) -> bool:
    """Return whether a total is `whole` but for rounding, one percent of it."""
    return abs(Decimal(total) - whole) * 100 <= whole


def percent_of(numerator: int, denominator: int) -> str:
    """Return a fraction as a percent, with one decimal where it needs one."""
    return f"{Decimal(100) * numerator / denominator:.1f}".removesuffix(".0")


def read_fraction(value: str) -> tuple[int, int] | None:
    """Return numerator and denominator of "1/3"; None where it is not a part of a whole."""
    numbers = value.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() and len(number) <= 4 for number in numbers):
        return None
    numerator, denominator = map(int, numbers)
    return (numerator, denominator) if 0 < numerator < denominator <= LARGEST_DENOMINATOR else None


def find_phrase(pieces: Sequence[Piece], place: int, listed: Container[str]) -> tuple[str, int]:
    """Return the longest phrase of a list that begins at `place`, and how many pieces it takes; "", 0 for none."""
    phrase = ""
    best = ("", 0)
    for used, piece in enumerate(pieces[place : place + MOST_WORDS], start=1):
        if not piece.folded:
            break
        phrase = f"{phrase} {piece.folded}" if phrase else piece.folded
        if phrase in listed:
            best = (phrase, used)
        if phrase not in _beginnings():
            break
    return best


def find_unit(pieces: Sequence[Piece], place: int, kinds: Collection[Kind]) -> tuple[Meaning | None, int]:
    """Return the first meaning of these kinds of the words behind a number, and how many pieces they take."""
    first = pieces[place].folded if place < len(pieces) else ""
    if first.partition(" ")[0] not in _unit_words():
        return None, 0
    phrase, used = find_phrase(pieces, place, units())
    meaning = next((one for one in units().get(phrase, ()) if one.kind in kinds), None)
    return (meaning, used) if meaning else (None, 0)


@cache
def _number_beginnings() -> frozenset[str]:
    """Return the first words of all numbers."""
    return frozenset(word.partition(" ")[0] for word in number_words())


@cache
def _unit_words() -> frozenset[str]:
    """Return the first words of all units."""
    return frozenset(word.partition(" ")[0] for word in units())


@cache
def _beginnings() -> frozenset[str]:
    """Return the beginnings of longer phrases: "the same" of "the same amount"."""
    phrases = [word.split() for word in (*vocabulary(), *number_words(), *units()) if " " in word]
    return frozenset(" ".join(words[:count]) for words in phrases for count in range(1, len(words)))


def read_number(pieces: Sequence[Piece], place: int) -> Number | None:
    """Return the number that begins at `place`, without its unit."""
    piece = pieces[place]
    if piece.kind == "number":
        found: Number | None = Number(piece.text, 1)
    elif piece.kind == "mixed":
        found = Number(_value_of_mixed(piece.text), 1)
    else:
        found = _put_together(pieces, place) if _begins_number(piece.folded) else None
    if found is None:
        return None
    found = _add_decimals(pieces, place, found)
    return Number(found.value, found.used + _count_repetition(pieces, place + found.used, found.value))


def _value_of_mixed(typed: str) -> str:
    *whole, fraction = (
        re.split(r"[ \u00a0]", typed) if "/" in typed else (typed[:-1], VULGAR_VALUES[typed[-1]])
    )
    numerator, denominator = map(int, fraction.split("/"))
    if denominator == 0:
        return "0.0.0"
    return format_number(Decimal(whole[0].strip()) + Decimal(numerator) / Decimal(denominator))


def _put_together(pieces: Sequence[Piece], place: int) -> Number | None:
    """Return the number of several words, each of a lower order than the one before: "two hundred (and) five"."""
    thousands, value, used = Decimal(0), Decimal(-1), 0
    limit = Decimal(0)  # a further word that is lower is added
    while True:
        skipped = int(limit == 100 and _is_joint(pieces, place + used))
        phrase, count = find_phrase(pieces, place + used + skipped, number_words())
        digits = number_words().get(phrase) or _read_joined_hundreds(pieces, place + used + skipped)
        if not digits:
            break
        word, count = Decimal(digits), count or 1
        if used and word in {100, 1000} and 0 < value < word and not skipped:
            value *= word
        elif used == 0:
            value = word
        elif word < limit and not (limit == 100 and 0 < word < 10 and _is_joined(pieces, place + used)):
            value += word
        else:
            break
        used += skipped + count
        if word == 1000:
            thousands, value = thousands + value, Decimal(0)
        limit = _lowest_order(word)
    return Number(f"{thousands + value:f}", used) if used else None


@cache
def _hundreds() -> tuple[str, ...]:
    return tuple(joined_hundreds())


def _begins_number(word: str) -> bool:
    return word.partition(" ")[0] in _number_beginnings() or word.startswith(_hundreds())


def _read_joined_hundreds(pieces: Sequence[Piece], place: int) -> str:
    """Return the number of one long word: "zweihundertfünfzig"; "" where it is not one."""
    word = pieces[place].folded if place < len(pieces) else ""
    if not word.startswith(_hundreds()):
        return ""
    for hundreds, value in joined_hundreds().items():
        rest = number_words().get(word.removeprefix(hundreds), "") if word.startswith(hundreds) else ""
        if rest.isdecimal() and 0 < int(rest) < 100:
            return str(value + int(rest))
    return ""


@cache
def _lowest_order(word: Decimal) -> Decimal:
    """Return the order that what follows a number word must stay below: 100 for 300, 10 for 40, nothing for 7 or 17."""
    if word == 0:
        return Decimal(10)
    return next((Decimal(order) for order in (1000, 100, 10) if word % order == 0 and word != 10), Decimal(0))


def _is_joint(pieces: Sequence[Piece], place: int) -> bool:
    """Return whether "and" stands between hundreds and a lower number."""
    if place >= len(pieces) or not pieces[place].folded:
        return False
    meaning = vocabulary().get(pieces[place].folded)
    return meaning is not None and meaning.kind == "and"


def _is_joined(pieces: Sequence[Piece], place: int) -> bool:
    """Return whether a word is written together with the one before: 一百五 is 150, 一百零五 is 105."""
    return pieces[place - 1].end == pieces[place].start


def _add_decimals(pieces: Sequence[Piece], place: int, found: Number) -> Number:
    """Add what stands behind a number: "and a half", "point five", "целых пять десятых"."""
    meaning, used = find_unit(pieces, place + found.used, {"half", "point"})
    value = parse_number(found.value) if meaning is not None else None
    if meaning is None or value is None:
        return found
    used += found.used
    if meaning.kind == "half":
        return Number(format_number(value + HALF), used)
    at = place + used
    if at < len(pieces) and pieces[at].kind == "number" and pieces[at].text.isdecimal():  # "20 Komma 5"
        return Number(f"{value:f}.{pieces[at].text}", used + 1) if value % 1 == 0 else found
    decimals = ""
    used += _is_joint(pieces, place + used)  # "целых и пять десятых"
    while True:
        phrase, count = find_phrase(pieces, place + used, number_words())
        digits = number_words().get(phrase, "")
        if not digits.isdecimal() or (decimals and len(digits) > 1):
            break
        decimals += digits
        used += count
        if len(digits) > 1:
            break
    if not decimals:
        return found
    denominator, count = find_unit(pieces, place + used, {"denominator"})
    if denominator is not None:
        return Number(format_number(value + Decimal(decimals) / Decimal(denominator.value)), used + count)
    return Number(f"{value:f}.{decimals}", used)


def _count_repetition(pieces: Sequence[Piece], place: int, value: str) -> int:
    """Return how many pieces say a number again in brackets: "sixty (60) percent", "60 (sixty)"."""
    if pieces[place : place + 1] and pieces[place].text in {"(", "（"} and place + 2 < len(pieces):
        again = Number(pieces[place + 1].text, 1)
        if pieces[place + 1].kind != "number":
            again = _put_together(pieces, place + 1) or Number("", 0)
        closing = place + 1 + again.used
        is_same = again.used > 0 and parse_number(again.value) == parse_number(value)
        if is_same and closing < len(pieces) and pieces[closing].text in {")", "）"}:
            return again.used + 2
    return 0


def read_groups(text: str, pieces: Sequence[Piece], place: int) -> Number | None:
    """Return a number whose thousands are set apart by spaces or apostrophes: "1 500", "1'500"."""
    piece = pieces[place]
    if piece.kind != "number" or not piece.text.isdecimal() or len(piece.text) > 3:
        return None
    digits, at = piece.text, place + 1
    while at < len(pieces):
        end = pieces[at - 1].end
        following = at + (pieces[at].kind == "link" and pieces[at].text in GROUP_SIGNS)
        if following >= len(pieces) or not GROUP.fullmatch(pieces[following].text):
            break
        if pieces[following].start - end != 1 or text[end] not in GROUP_SIGNS:
            break
        digits += pieces[following].text
        at = following + 1
    return Number(digits, at - place) if at > place + 1 else None


def read_thousands(typed: str, pieces: Sequence[Piece]) -> str | None:
    """Return a number of which a sign may set the thousands apart, as the languages of the text write it.

    "1.500" is 1500 in German and 1.5 in English. None where the text does not say which.
    """
    found = THOUSANDS.fullmatch(typed)
    if found is None:
        return typed
    sign = found[1]
    plain = typed.replace(sign, "")
    if typed.count(sign) > 1:
        return plain
    counts = count_languages(pieces)
    most = max(counts.values(), default=0)
    likely = [load_languages()[language] for language, count in counts.items() if count == most]
    if likely and all(sign == language.thousands_sign for language in likely):
        return plain
    if likely and all(sign == language.decimal_sign for language in likely):
        return typed
    return None


def count_languages(pieces: Sequence[Piece]) -> Counter[str]:
    """Return how many words of a text each language has, of those that mean the same wherever they are known."""
    ambiguous = ambiguous_words()
    counts: Counter[str] = Counter()
    for piece in pieces:
        if piece.folded and piece.folded not in ambiguous:
            counts.update(code for code in meanings().get(piece.folded, ()) if code in load_languages())
    return counts
