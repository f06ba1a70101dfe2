"""The emphasis of a typed mix carried over to the one that is sent.

`(50 % rot:1.3), 50 % schwarz` is read as the mix 50% red, 50% black and sent as `(50% red:1.3), 50% black`: an amount
takes the weight that it was typed with, a color that of its name, a separator that of its neighbors if they agree.
Words around the mix keep theirs.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tilemix.prompts.language import Fragment
from tilemix.prompts.language.emphasis import list_parts as cut_parts
from tilemix.prompts.reading import NAMED

if TYPE_CHECKING:
    from tilemix.prompts.language.emphasis import Emphasized
    from tilemix.prompts.mix import ColorMix, Span
    from tilemix.prompts.reading import ReadText

SEPARATOR = ", "
BREAK = "\n"

Weighted = tuple[str, float | None]  # a piece of the sent text; the weight of a BREAK is None


class _Share(NamedTuple):
    """Where the parts of a share were typed."""

    amount: int
    color: int


def carry_emphasis(typed: Emphasized, read: ReadText) -> list[Weighted]:
    """Return what is sent for a text in pieces with their weights.

    Args:
        typed: the text.
        read: what was read in its plain words.
    """
    weights = typed.weights
    if read.mix is None or read.sent is None:
        return list(zip(read.text, weights, strict=True))
    if set(weights) == {1.0}:
        return [(read.text, 1.0)]
    shares = _find_shares(read.mix, read.sent, read.spans)
    pieces: list[Weighted] = list(_carry_head(read.head, typed, min(map(min, shares))))
    for number, (share, written) in enumerate(zip(shares, str(read.sent).split(SEPARATOR), strict=True)):
        amount, _, color = written.partition(" ")
        if number:
            joint = _join(shares[number - 1], share, weights)
            pieces.append((BREAK if joint is None else SEPARATOR, joint))
        pieces += [(f"{amount} ", weights[share.amount]), (color, weights[share.color])]
    begin, end = min(share.color for share in shares), max(map(max, shares))
    return [*pieces, *_carry_tail(read.tail, typed, begin, end)]


def _find_shares(mix: ColorMix, sent: ColorMix, spans: Sequence[Span]) -> list[_Share]:
    """Return where each share that is sent was typed; of several that became one, the first."""
    named = [span for span in spans if span.role in NAMED]
    amounts = sorted(span.start for span in spans if span.role == "share")
    colors = [span.start for span in named if span.role != "base"]
    is_amount_first = min(amounts, default=0) < min(colors, default=0)
    first = {}
    for share in mix.shares:
        color = next((span for span in named if span.value == share.color), named[0])
        place = bisect(amounts, color.start)
        before, after = amounts[max(place - 1, 0) : place], amounts[place : place + 1]
        nearest = before + after if is_amount_first else after + before
        has_own = nearest and color.role != "base"  # which takes what is left
        first[share.color] = _Share(nearest[0] if has_own else color.start, color.start)
    listed = list(first.values())
    if len(listed) == len(sent.shares):
        return listed
    return [first.get(share.color, listed[0]) for share in sent.shares]


def _join(before: _Share, after: _Share, weights: Sequence[float | None]) -> float | None:
    """Return the weight of the separator between two shares."""
    start, end = sorted((before.color, after.color))
    if None in weights[start:end]:
        return None
    return weights[after.amount] if weights[before.color] == weights[after.amount] else 1.0


def _carry_head(head: str, typed: Emphasized, start: int) -> Iterator[Weighted]:
    """Give the words before the mix, which begins at `start`, their weights; some of those typed may be left out."""
    text, weights = typed.plain.text, typed.weights
    place = 0
    for letter in head:
        if letter.isspace():
            end = place + len(text[place:]) - len(text[place:].lstrip())
            yield (BREAK, None) if None in weights[place:end] else (letter, weights[min(place, start)])
            place = end
        else:
            place = max(place, text.find(letter, place))
            yield letter, weights[place]
            place += 1
    if None in weights[place:start]:
        yield BREAK, None


def _carry_tail(tail: str, typed: Emphasized, place: int, end: int) -> Iterator[Weighted]:
    """Give the words behind the mix their weights; they stand in the typed text after `place`, in this order.

    A BREAK after `end`, where the last share begins, is theirs.
    """
    text, weights = typed.plain.text, typed.weights
    kept = text.rstrip()
    same = 0  # characters at the end of both
    while same < min(len(tail), len(kept) - place) and tail[-1 - same] == kept[-1 - same]:
        same += 1
    parts: list[tuple[str, int | None]] = []  # with where each was typed; None: a separator that was not
    at = place
    for part in re.split(f"({SEPARATOR})", tail[: len(tail) - same]):
        found = text.find(part, at) if part.strip(SEPARATOR) else -1
        parts.append((part, found if found >= 0 else None))
        at = max(at, found)
    parts.append((tail[len(tail) - same :], len(kept) - same))
    for number, (part, start) in enumerate(parts):
        following = next((begin for _, begin in parts[number:] if begin is not None), len(kept))
        if start is not None:
            if None in weights[max(place, end) : start]:
                yield BREAK, None
            yield from zip(part, weights[start:], strict=False)
            place = start + len(part)
        elif part:
            yield (BREAK, None) if None in weights[place:following] else (part, 1.0)
            place = max(place, following)
    if None in weights[max(place, end) :]:
        yield BREAK, None


def list_parts(pieces: Iterable[Weighted]) -> list[list[Fragment]]:
    """Return pieces as fragments, cut at each BREAK and its spaces."""
    joined = [(letter, weight) for text, weight in pieces for letter in text]
    return cut_parts([weight for _, weight in joined], "".join(letter for letter, _ in joined))
