"""From tokens to clauses: what stands between two separators, its amounts and its colors."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from tilemix.prompts.mix.numbers import is_near, parse_number, percent_of, read_fraction
from tilemix.prompts.mix.words import GROUND

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tilemix.prompts.mix.tokens import Kind, Token

COLORS: frozenset[Kind] = frozenset({"color", "ral", "hex"})
SOFT: frozenset[Kind] = frozenset({"link", "noun", "filler", "to"})
EACH: frozenset[Kind] = frozenset({"each", "equal"})
CUTS: frozenset[Kind] = frozenset({"separator", "with", "denied"})
STATED: frozenset[Kind] = frozenset({"percent", "fraction", "part", "weight", "range", "minus", "unclear"})
AMOUNTS: frozenset[Kind] = STATED | {"rest"}
NUMBERS_TOO: frozenset[Kind] = AMOUNTS | {"number"}  # where the text has no other amounts
SUM = "sum"  # the source of a number that is the sum of the others


@dataclass(slots=True)
class Color:
    """A color as typed: a word, an RAL number or a hex value, two of them for one color, with its shade."""

    first: int  # its tokens, places in the text's list
    last: int
    named: list[int] = field(default_factory=list)  # those of COLORS
    shades: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Clause:
    """The tokens first to last of a text, with no separator among them."""

    tokens: Sequence[Token]  # of the whole text
    first: int
    last: int
    opener: str  # the kind of the token before it, "" where it begins the text
    amounts: list[int] = field(default_factory=list)
    colors: list[Color] = field(default_factory=list)


def is_pure(clause: Clause) -> bool:
    """Return whether a clause is colors, their shades and soft words, and nothing else."""
    inside = {place for color in clause.colors for place in range(color.first, color.last + 1)}
    return bool(clause.colors) and all(
        place in inside or clause.tokens[place].kind in SOFT | {"equal", "each"}
        for place in range(clause.first, clause.last + 1)
    )


def is_ground(clause: Clause) -> bool:
    """Return whether a clause is about the base, or the background of the picture: "on a black background"."""
    return any(token.value == GROUND for token in clause.tokens[clause.first : clause.last + 1])


def is_followed_by_words(clause: Clause, color: Color) -> bool:
    """Return whether something else stands behind a color in its clause: "white background"."""
    return any(token.kind not in SOFT | EACH for token in clause.tokens[color.last + 1 : clause.last + 1])


def make_clauses(tokens: Sequence[Token], amounts: Collection[Kind]) -> list[Clause]:
    """Cut the tokens at the separators; `amounts` are the kinds that are amounts in this text."""
    clauses: list[Clause] = []
    first, opener = 0, ""
    for place in range(len(tokens) + 1):
        is_rest = place < len(tokens) and _begins_with_rest(tokens, first, place, amounts)
        if place < len(tokens) and tokens[place].kind not in CUTS and not is_rest:
            continue
        if first < place:
            clause = Clause(tokens, first, place - 1, opener)
            clause.amounts = [at for at in range(first, place) if tokens[at].kind in amounts]
            clause.colors = _find_colors(tokens, first, place)
            clauses.append(clause)
            opener = ""
        if place < len(tokens):
            # "black, with red": the word says more than the comma.
            opener = "with" if tokens[place].kind == "with" or opener == "with" else "separator"
        first = place + (not is_rest)
    return clauses


def _begins_with_rest(tokens: Sequence[Token], first: int, place: int, amounts: Collection[Kind]) -> bool:
    """Return whether a clause begins here without a separator: at the "rest" of "red 20% rest black"."""
    if tokens[place].kind != "rest" or _next_kind(tokens, place) not in COLORS | {"shade"}:
        return False
    return any(token.kind in amounts for token in tokens[first:place])


def _find_colors(tokens: Sequence[Token], first: int, end: int) -> list[Color]:
    colors: list[Color] = []
    pending: int | None = None  # a shade before its color
    solid = [place for place in range(first, end) if tokens[place].kind not in SOFT]
    for index, place in enumerate(solid):
        kind = tokens[place].kind
        neighbor = tokens[solid[index + 1]].kind if index + 1 < len(solid) else ""
        is_next = bool(colors) and index > 0 and colors[-1].last == solid[index - 1] and pending is None
        if kind in COLORS:
            latest = colors[-1] if is_next else None
            if latest is not None and len(latest.named) == 1:
                other = tokens[latest.named[0]]
                # A number beside a word, or the same color twice, as in "green grass".
                if {other.kind, kind} != {"color"} or other.value == tokens[place].value:
                    latest.named.append(place)
                    latest.last = place
                    continue
            start = place if pending is None else pending
            colors.append(Color(start, place, [place], [] if pending is None else [pending]))
            pending = None
        elif kind == "shade":
            if neighbor in COLORS:
                pending = place
            elif is_next and neighbor != "word":
                colors[-1].shades.append(place)
                colors[-1].last = place
        else:
            pending = None
    return colors


def settle(tokens: Sequence[Token]) -> tuple[list[Token], Collection[Kind]]:
    """Decide what the words and numbers that need a color beside them are; return the tokens, and what is an amount.

    "half red" is a share; "half-tone" and "the third row" are text. "rest" is a share beside other shares only. "1/3"
    is a fraction, and numbers alone are shares where the text has no other shares.
    """
    settled = list(tokens)
    is_share = _stand_with_colors(tokens)
    states = any(
        token.kind in STATED and (token.kind != "fraction" or is_share[place])
        for place, token in enumerate(tokens)
    )
    ratios = [place for place, token in enumerate(tokens) if token.kind == "ratio"]
    has_rest = any(token.kind == "rest" for token in tokens)
    for place, token in enumerate(tokens):
        if token.kind == "fraction" and not is_share[place]:
            settled[place] = token._replace(kind="unread")
        elif token.kind == "ratio" and (states or has_rest or len(ratios) > 1):
            fraction = read_fraction(token.value) if is_share[place] and token.source != "%" else None
            settled[place] = (
                token._replace(kind="unread")
                if fraction is None
                else token._replace(kind="fraction", value=percent_of(*fraction))
            )
    states = states or any(token.kind == "fraction" for token in settled)
    counts_numbers = not states and any(
        token.kind == "number" and is_share[place] for place, token in enumerate(settled)
    )
    for place, token in enumerate(settled):
        is_beside = is_share[place] and (states or counts_numbers)
        if token.kind == "rest" and _next_kind(settled, place) in STATED:
            settled[place] = token._replace(kind="filler")  # "the remaining 80% black"
        elif (token.kind == "rest" and not is_beside) or (token.kind == "number" and states):
            settled[place] = token._replace(kind="unread")
    total = _find_sum(settled) if counts_numbers else None
    if total is not None:
        settled[total] = settled[total]._replace(kind="filler", source=SUM)
    return settled, NUMBERS_TOO if counts_numbers else AMOUNTS


def _next_kind(tokens: Sequence[Token], place: int) -> str:
    """Return the kind of the next token that is not soft, "" for none."""
    return next((token.kind for token in tokens[place + 1 :] if token.kind not in SOFT), "")


def _find_sum(tokens: Sequence[Token]) -> int | None:
    """Return the last number, if it is the sum of the others: "red;60, black;40, total;100"."""
    *others, last = (place for place, token in enumerate(tokens) if token.kind == "number")
    values = [parse_number(tokens[place].value) for place in others]
    total = sum((value or Decimal(0) for value in values), Decimal(0))
    is_sum = (
        len(others) > 1 and total == parse_number(tokens[last].value) and (is_near(total, 100) or total == 1)
    )
    return last if is_sum else None


def _stand_with_colors(tokens: Sequence[Token]) -> list[bool]:
    """Return for every token whether a color follows it, or stands before it at the end of its clause.

    A number may have a separator between it and its color, as in the cells of a table.
    """
    before = _neighbors(tokens)
    after = _neighbors(tokens[::-1])[::-1]
    found = []
    for place, token in enumerate(tokens):
        left, right = before[place], after[place]
        if token.kind == "number":
            found.append(left in COLORS or right in COLORS or _in_cells(tokens, place))
        else:
            found.append(right in COLORS or (left in COLORS and right == ""))
    return found


def _in_cells(tokens: Sequence[Token], place: int) -> bool:
    around = [
        tokens[at + step].kind
        for at, step in ((place - 1, -1), (place + 1, 1))
        if 0 <= at + step < len(tokens) and 0 <= at < len(tokens) and tokens[at].kind == "separator"
    ]
    return any(kind in COLORS for kind in around)


def _neighbors(tokens: Sequence[Token]) -> list[str]:
    """Return for every token the kind of the nearest one before it that is not soft, "" where the part begins."""
    kinds = []
    latest = ""
    for token in tokens:
        kinds.append(latest)
        if token.kind in CUTS:
            latest = ""
        elif token.kind not in SOFT and token.kind not in {"shade", "each", "equal"}:
            latest = token.kind
    return kinds
