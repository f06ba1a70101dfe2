"""Find the shares in a prompt: which percent belongs to which color, and what is only text.

Separators cut the prompt into parts. In a part the percents stand before their
colors or after them: before, if the part begins with one ("50% red 50%
black"); after, if it ends with one ("red 50% black 50%").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, NamedTuple

from tilemix.errors import MixError
from tilemix.prompts.mix.naming import COLORS, name_color, name_pair, name_unknown, refuse_misspelled, shorten
from tilemix.prompts.mix.tokens import tokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilemix.errors import Message
    from tilemix.prompts.mix.tokens import Token

AMOUNTS = frozenset({"percent", "fraction", "rest"})
SOFT = frozenset({"link", "granules"})
DASHES = "-‐‑–—−"
OPENING = "([（"
CLOSING = ")]）"
# Bullets, numbering, quotation marks and stops around the shares: not text to keep.
TRIMMINGS = re.compile(r"[\s\d.,:;+/|&=*•·~)\]，。；：、）\-‐‑–—−\"'`«»„“”‘’]*")


class TypedShare(NamedTuple):
    """A share as typed."""

    amount: Token | None  # None: a color alone, which takes an equal share
    color: str  # a trade name, or an unknown color as typed


@dataclass(slots=True)
class TypedMix:
    """The shares of a prompt and where they stand; text[start:end] is the mix."""

    shares: list[TypedShare] = field(default_factory=list)  # in the order typed; empty: only text
    between: list[str] = field(default_factory=list)  # text inside the mix that belongs to no share
    notes: list[Message] = field(default_factory=list)
    start: int = 0
    end: int = 0


class _Side(NamedTuple):
    """What stands on the color's side of an amount, in the order of the text."""

    color: str
    named: Sequence[Token]  # the tokens that name the color
    beyond: Sequence[Token]  # those farther from the amount


def read_shares(text: str) -> TypedMix:
    """Return the shares in `text`.

    Raises:
        MixError: a share is unclear, a color is misspelled, or an RAL number does not exist.
    """
    parts = _split(_settle(tokenize(text)))
    holds_share = [any(token.kind in AMOUNTS for token in part) for part in parts]
    if not any(holds_share):
        return _read_names(text, parts)
    first = holds_share.index(True)
    last = len(parts) - 1 - holds_share[::-1].index(True)
    for part in parts[max(first - 1, 0) : last + 2]:
        _refuse_bare_color(text, part)
    mix = TypedMix()
    for place in range(first, last + 1):
        part = parts[place]
        if holds_share[place]:
            _read_part(text, part, mix, is_first=place == first, is_last=place == last)
        else:
            _keep(text, part, mix)
    return mix


def refuse_misspelled_rest(text: str) -> None:
    """Look for a misspelled color after a "rest" or "half" that was read as text because of it: "rest blakc".

    Raises:
        MixError: there is one.
    """
    tokens = tokenize(text)
    for place, (typed, settled) in enumerate(zip(tokens, _settle(tokens), strict=True)):
        if typed.kind != settled.kind:
            following = list(
                takewhile(lambda token: token.kind != "separator", tokens[place + 1 : place + 6])
            )
            refuse_misspelled(text, _trim(following), is_last_first=False)


def _split(tokens: Sequence[Token]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind == "separator":
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def _trim(tokens: Sequence[Token]) -> Sequence[Token]:
    """Return `tokens` without the soft ones at both ends."""
    solid = [place for place, token in enumerate(tokens) if token.kind not in SOFT]
    return tokens[solid[0] : solid[-1] + 1] if solid else []


def _settle(tokens: Sequence[Token]) -> list[Token]:
    """Turn "half", "rest" and their like into plain words where no color is next to them.

    "half red" is a share; "half-tone" and "the third row" are text. "rest" is a share only beside other shares.
    """
    settled = list(tokens)
    before = _neighbors(tokens)
    after = _neighbors(tokens[::-1])[::-1]
    is_share = [
        right in COLORS or (left in COLORS and right == "") for left, right in zip(before, after, strict=True)
    ]
    for place, token in enumerate(tokens):
        if token.kind == "fraction" and not is_share[place]:
            settled[place] = token._replace(kind="word")
    has_others = any(token.kind in {"percent", "fraction"} for token in settled)
    for place, token in enumerate(tokens):
        if token.kind == "rest" and not (is_share[place] and has_others):
            settled[place] = token._replace(kind="word")
    return settled


def _neighbors(tokens: Sequence[Token]) -> list[str]:
    """Return for every token the kind of the nearest one before it that is not soft, "" where the part begins."""
    kinds = []
    latest = ""
    for token in tokens:
        kinds.append(latest)
        if token.kind == "separator":
            latest = ""
        elif token.kind not in SOFT:
            latest = token.kind
    return kinds


def _read_names(text: str, parts: Sequence[Sequence[Token]]) -> TypedMix:
    """Read "red, black": every part is a color and nothing else."""
    for part in parts:
        is_end = part is parts[-1] and len(part) == 2 and text[part[1].start : part[1].end] == "."
        if part[0].kind not in COLORS or not (len(part) == 1 or is_end):
            return TypedMix()
    mix = TypedMix(end=len(text))
    for token, *_ in parts:
        mix.shares.append(TypedShare(None, name_color(text, token, mix.notes)))
    return mix


def _read_part(text: str, part: Sequence[Token], mix: TypedMix, *, is_first: bool, is_last: bool) -> None:
    """Read the shares of one part into `mix`; is_first and is_last: of the parts with shares."""
    places = [place for place, token in enumerate(part) if token.kind in AMOUNTS]
    _refuse_range(text, part, places)
    is_color_first = _is_color_first(part, places[0])
    if is_color_first:
        spans = [(part[place], part[before + 1 : place]) for before, place in pairwise([-1, *places])]
        outside = part[places[-1] + 1 :]
    else:
        spans = [(part[place], part[place + 1 : after]) for place, after in pairwise([*places, len(part)])]
        outside = part[: places[0]]
    sides = [
        _read_side(text, amount, span, mix.notes, is_color_first=is_color_first) for amount, span in spans
    ]
    mix.shares.extend(TypedShare(amount, side.color) for (amount, _), side in zip(spans, sides, strict=True))

    leading = sides[0].beyond if is_color_first else outside
    trailing = outside if is_color_first else sides[-1].beyond
    _refuse_bare_color(text, leading)
    _refuse_bare_color(text, trailing)
    if is_first:
        mix.start = sides[0].named[0].start if is_color_first else part[places[0]].start
    else:
        _keep(text, leading, mix)
    for side in sides[1:] if is_color_first else sides[:-1]:
        _refuse_bare_color(text, side.beyond)
        _keep(text, side.beyond, mix)
    if is_last:
        mix.end = part[places[-1]].end if is_color_first else sides[-1].named[-1].end
        following = [token for token in part if token.start >= mix.end]
        mix.end = _skip_rest_of_share(text, mix.start, mix.end, following)
    else:
        _keep(text, trailing, mix)


def _is_color_first(part: Sequence[Token], first_amount: int) -> bool:
    solid = _trim(part)
    if solid[0].kind in AMOUNTS:
        return False
    if solid[-1].kind in AMOUNTS:
        return True
    return _trim(part[:first_amount])[-1].kind in COLORS


def _read_side(
    text: str, amount: Token, span: Sequence[Token], notes: list[Message], *, is_color_first: bool
) -> _Side:
    """Read the color that belongs to `amount` from the tokens between it and the next amount or the part's end."""
    inner = _trim(span)
    outward = inner[::-1] if is_color_first else inner
    if not outward or outward[0].kind not in COLORS:
        refuse_misspelled(text, inner, is_last_first=is_color_first)
        # Without a known color, a word such as "rubber" is part of the name: "100% rubber mat".
        lead = [
            token for token in takewhile(lambda token: token.kind in SOFT, span) if token.kind == "granules"
        ]
        words = inner if inner and is_color_first else [*lead, *inner]
        if not words:
            typed = shorten(text[amount.start : amount.end])
            raise MixError("mix-no-color", typed=typed, position=amount.start + 1)
        return _Side(name_unknown(text, words, notes), words, [])
    solid = [place for place, token in enumerate(outward) if token.kind not in SOFT]
    second = outward[solid[1]] if len(solid) > 1 else None
    if second is not None and second.kind in COLORS and {outward[0].kind, second.kind} != {"color"}:
        color = name_pair(text, outward[0], second, notes)
        used = solid[1] + 1
    else:
        color = name_color(text, outward[0], notes)
        used = 1
    if is_color_first:
        return _Side(color, inner[len(inner) - used :], inner[: len(inner) - used])
    return _Side(color, inner[:used], inner[used:])


def _skip_rest_of_share(text: str, start: int, end: int, following: Sequence[Token]) -> int:
    """Return the end of the mix after words such as "granules" and brackets that were opened inside it."""
    inside = text[start:end]
    opened = sum(map(inside.count, OPENING)) - sum(map(inside.count, CLOSING))
    for token in following:
        if opened > 0 and text[token.start] in CLOSING:
            opened -= 1
        elif token.kind != "granules":
            break
        end = token.end
    return end


def _keep(text: str, tokens: Sequence[Token], mix: TypedMix) -> None:
    """Keep the text of `tokens`, which are inside the mix but in no share, unless it is only trimmings."""
    solid = _trim(tokens)
    if solid:
        typed = text[solid[0].start : solid[-1].end]
        if not TRIMMINGS.fullmatch(typed):
            mix.between.append(typed)


def _refuse_bare_color(text: str, tokens: Sequence[Token]) -> None:
    """Refuse a color without a percent among the shares, which is not text to keep ("rest black and white")."""
    solid = _trim(tokens)
    if solid and all(token.kind in COLORS | SOFT for token in solid):
        typed = shorten(text[solid[0].start : solid[0].end])
        raise MixError("mix-no-percent", typed=typed, position=solid[0].start + 1)


def _refuse_range(text: str, part: Sequence[Token], places: Sequence[int]) -> None:
    for place in places:
        if place < 2 or part[place].kind != "percent":
            continue
        low, dash, high = part[place - 2 : place + 1]
        is_range = text[low.start].isdecimal() and text[dash.start] in DASHES
        if is_range and low.end == dash.start and dash.end == high.start:
            typed = shorten(text[low.start : high.end])
            raise MixError("mix-range", typed=typed, position=low.start + 1)
