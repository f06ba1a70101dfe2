"""As many colors as numbers, each in a row of their own: "3:1 red:black", "red, black, white: 50, 30, 20"."""

from __future__ import annotations

import re
from bisect import bisect_right
from decimal import Decimal
from typing import TYPE_CHECKING

from tilemix.errors import MixError
from tilemix.prompts.mix.clauses import COLORS, CUTS, SOFT, Clause, Color, is_followed_by_words
from tilemix.prompts.mix.naming import name_group, shorten
from tilemix.prompts.mix.numbers import is_near, parse_number, percent_of, read_fraction
from tilemix.prompts.mix.typed import TypedMix, TypedShare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilemix.prompts.mix.tokens import Kind, Token

NUMBERS: frozenset[Kind] = frozenset({"number", "ratio"})
BETWEEN: frozenset[Kind] = SOFT | CUTS
MOST_IN_PROPORTION = 10  # of numbers that do not total 100 and stand apart from the colors, or have a slash
SHAPES = frozenset({"16:9", "9:16", "21:9", "4:3", "3:4"})  # of pictures


def read_rows(text: str, clauses: list[Clause], mix: TypedMix) -> bool:
    """Read a row of colors and a row of numbers; return whether the text is that.

    Raises:
        MixError: a ratio has more or fewer numbers than there are colors, or is not that of a mix.
    """
    tokens = mix.tokens
    percents = [place for place, token in enumerate(tokens) if token.kind == "percent"]
    places = percents or [place for place, token in enumerate(tokens) if token.kind in NUMBERS]
    if not places:
        return False
    pairs = [(clause, color) for clause in clauses for color in clause.colors]
    while pairs and _is_of_thing(*pairs[-1], places):
        pairs.pop()
    colors = [color for _, color in pairs]
    is_ratio = len(places) == 1 and tokens[places[0]].kind == "ratio"
    if not colors or not _is_row(tokens, places) or _is_beside_word(tokens, places):
        return False
    if is_ratio and _is_of_clause(clauses, places[0]):
        return False
    numbers = _list_numbers(tokens, places, len(colors))
    if len(numbers) != len(colors):
        if is_ratio:
            _refuse_count(text, tokens[places[0]], numbers, colors)
        return False
    named = [place for color in colors for place in (color.first, color.last)]
    gap = (named[-1] + 1, places[0]) if named[-1] < places[0] else (places[-1] + 1, named[0])
    if len(colors) < 2 or gap[0] > gap[1] or not _is_row(tokens, named) or None in numbers:
        return False
    between = tokens[gap[0] : gap[1]]
    if any(token.kind not in BETWEEN for token in between):
        return False
    values = [number for number in numbers if number is not None]
    total = sum(values, Decimal(0))
    if not is_near(total, 100) and not (not is_ratio and is_near(total, 1)):
        if not is_ratio:
            return False
        _refuse_other_ratio(text, tokens, places[0], between, values)
    for number, color in zip(values, colors, strict=True):
        name = name_group(text, tokens, color, mix.notes)
        amount = tokens[places[0]]._replace(
            kind="percent" if percents else "part", value=f"{number:f}", source=""
        )
        mix.add(TypedShare(amount, name, (color.first, color.last)), places[0])
    mix.roles |= dict.fromkeys(places, "share")
    return True


def _is_of_thing(clause: Clause, color: Color, places: list[int]) -> bool:
    """Return whether a color stands before words of its clause, "white background", and not before the numbers."""
    following = bisect_right(places, color.last)
    is_before_numbers = following < len(places) and places[following] <= clause.last
    return not is_before_numbers and is_followed_by_words(clause, color)


def _is_row(tokens: Sequence[Token], places: list[int]) -> bool:
    """Return whether nothing but separators and soft words stands between the first and the last of some tokens."""
    kinds = {tokens[place].kind for place in places} | BETWEEN | {"shade"}
    kinds |= COLORS if kinds & COLORS else frozenset()
    return all(token.kind in kinds for token in tokens[places[0] : places[-1] + 1])


def _is_beside_word(tokens: Sequence[Token], places: list[int]) -> bool:
    """Return whether a word that the reader does not know stands beside the numbers: "scale 1:10", "10 to 20 rooms"."""
    beside = [*tokens[max(places[0] - 1, 0) : places[0]], *tokens[places[-1] + 1 : places[-1] + 2]]
    return any(token.kind == "word" for token in beside)


def _is_of_clause(clauses: list[Clause], place: int) -> bool:
    """Return whether a number stands in a clause of words: "shot at 10:30, red, black"."""
    return any(
        clause.first <= place <= clause.last
        and any(token.kind == "word" for token in clause.tokens[clause.first : clause.last + 1])
        for clause in clauses
    )


def _list_numbers(tokens: Sequence[Token], places: list[int], count: int) -> list[Decimal | None]:
    typed = [number for place in places for number in re.split("[:/]", tokens[place].value)]
    if len(typed) == 1 and count > 1:  # "60,40", which may be a decimal
        parts = typed[0].split(",")
        typed = parts if len(parts) == count else typed
    return [parse_number(number) for number in typed]


def _refuse_count(text: str, ratio: Token, numbers: list[Decimal | None], colors: list[Color]) -> None:
    fraction = read_fraction(ratio.value)
    if fraction is not None and len(colors) == 2 - (percent_of(*fraction) == "50"):
        return
    total = sum((number or Decimal(0) for number in numbers), Decimal(0))
    if len(colors) >= 2 or is_near(total, 100):
        typed = shorten(text[ratio.start : ratio.end])
        raise MixError(
            "mix-ratio", typed=typed, position=ratio.start + 1, numbers=len(numbers), colors=len(colors)
        )


def _refuse_other_ratio(
    text: str, tokens: Sequence[Token], place: int, between: Sequence[Token], values: list[Decimal]
) -> None:
    """Refuse a date, a time, the shape of a picture, a fraction or percents that do not total 100.

    Raises:
        MixError: it is one of them.
    """
    ratio = tokens[place]
    typed = text[ratio.start : ratio.end]
    is_large = max(values) > MOST_IN_PROPORTION
    is_apart = any(token.kind in CUTS for token in between)
    is_at = (
        is_large
        and place > 0
        and tokens[place - 1].kind == "link"
        and text[tokens[place - 1].start].isalpha()
    )
    is_padded = any(number.startswith("0") and number.isdecimal() for number in re.split("[:/]", ratio.value))
    if (
        (is_apart and (is_large or ratio.value in SHAPES))
        or (is_large and ratio.value in SHAPES and place == 0)
        or (is_large and ratio.source != ":")
        or is_at
        or is_padded
        or read_fraction(ratio.value) is not None
        or sum(values) == 0
    ):
        raise MixError("mix-leftover", typed=shorten(typed), position=ratio.start + 1)
