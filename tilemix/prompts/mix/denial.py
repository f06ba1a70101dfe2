"""Colors that a text does not want: "60% red, 40% blue, no black". They are left out of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilemix.errors import Message, MixError
from tilemix.prompts.mix.clauses import COLORS, CUTS, SOFT
from tilemix.prompts.mix.naming import shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tilemix.prompts.mix.tokens import Kind, Token
    from tilemix.prompts.mix.typed import TypedMix


def deny(text: str, tokens: list[Token], amounts: Collection[Kind]) -> list[Token]:
    """Return the tokens, those of "no black" and "no flecks" with the kind `denied`.

    Raises:
        MixError: what is denied has an amount.
    """
    if not any(token.value == "not" for token in tokens):
        return tokens
    denied = list(tokens)
    for place, token in enumerate(tokens):
        if token.value != "not":
            continue
        first = _skip(text, tokens, place + 1)
        if _kind(tokens, first) in amounts and _kind(tokens, _skip(text, tokens, first + 1)) in COLORS:
            raise _refuse(text, token, tokens[first])
        if _kind(tokens, first) not in COLORS:
            if (last := _end_of_nouns(tokens, place)) == place:
                continue
        else:
            last = _end_of_list(text, tokens, first, amounts)
        if _waits_for_color(tokens, place, amounts, -1) or _waits_for_color(tokens, last, amounts, 1):
            raise _refuse(text, token, tokens[last])
        for at in range(place, last + 1):
            denied[at] = tokens[at]._replace(kind="denied")
    return denied


def note_denied(text: str, mix: TypedMix) -> None:
    """Note what is left out.

    Raises:
        MixError: the mix has a share of a denied color.
    """
    colors = {share.color for share in (*mix.shares, *filter(None, [mix.base]))}
    for first, last in _list_denied(mix.tokens):
        if any(token.value in colors for token in mix.tokens[first : last + 1]):
            raise _refuse(text, mix.tokens[first], mix.tokens[last])
        start = mix.tokens[first].start
        typed = shorten(text[start : mix.tokens[last].end])
        mix.notes.append(Message("mix-denied-left-out", {"typed": typed, "position": start + 1}, "prompt"))


def leave_out(text: str, tokens: Sequence[Token], start: int, end: int) -> str:
    """Return text[start:end] without what is denied, and without the separators around that."""
    kept, at = "", start
    for first, last in _list_denied(tokens):
        if start <= tokens[first].start and tokens[last].end <= end:
            begin, stop = tokens[first].start, tokens[last].end
            while first > 0 and tokens[first - 1].kind in CUTS | {"filler"} and tokens[first - 1].start >= at:
                first -= 1
                begin = tokens[first].start
            kept += text[at:begin].rstrip() if stop == end else text[at:begin]
            at = stop
    return kept + text[at:end]


def _list_denied(tokens: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last token of each "no black"."""
    first = None
    for place, token in enumerate(tokens):
        begins = token.kind == "denied" and (first is None or token.value == "not")
        if first is not None and (begins or token.kind != "denied"):
            yield first, place - 1
            first = None
        if begins:
            first = place
    if first is not None:
        yield first, len(tokens) - 1


def _kind(tokens: Sequence[Token], place: int) -> str:
    return tokens[place].kind if 0 <= place < len(tokens) else ""


def _skip(text: str, tokens: Sequence[Token], place: int) -> int:
    """Return the first token from `place` on that is not a small word such as "the", "any", "light", "wet"."""
    while place < len(tokens):
        token = tokens[place]
        is_small = token.kind in SOFT and text[token.start].isalpha()
        if not (is_small or token.kind == "shade" or token.value == "look"):
            break
        place += 1
    return place


def _end_of_nouns(tokens: Sequence[Token], place: int) -> int:
    """Return the last token of "no flecks" where nothing else follows, or else `place`."""
    last = place
    while _kind(tokens, last + 1) in {"noun", "filler"}:
        last += 1
    has_noun = any(token.kind == "noun" for token in tokens[place : last + 1])
    return last if has_noun and _kind(tokens, last + 1) in CUTS | {""} else place


def _end_of_list(text: str, tokens: Sequence[Token], color: int, amounts: Collection[Kind]) -> int:
    """Return the last token of "black granules or white borders" that begins with a color."""
    last = color
    while _kind(tokens, last + 1) in {"noun", "shade"}:
        last += 1
    joint = last + 1
    is_joint = (
        joint < len(tokens) and tokens[joint].kind in {"separator", "or", "word"} and not tokens[joint].value
    )
    following = _skip(text, tokens, joint + 1)
    if is_joint and _kind(tokens, following) in COLORS and _beside(tokens, following, 1) not in amounts:
        return _end_of_list(text, tokens, following, amounts)
    while _kind(tokens, last + 1) == "word" and tokens[last + 1].value != "not":
        last += 1  # "no white border"
    return last


def _waits_for_color(tokens: Sequence[Token], place: int, amounts: Collection[Kind], step: int) -> bool:
    """Return whether an amount stands beside a token that no color stands on the other side of: "60% not red"."""
    beside = _find_solid(tokens, place, step)
    return _kind(tokens, beside) in amounts and _beside(tokens, beside, step) not in COLORS


def _beside(tokens: Sequence[Token], place: int, step: int) -> str:
    """Return the kind of the nearest token that is not soft."""
    return _kind(tokens, _find_solid(tokens, place, step))


def _find_solid(tokens: Sequence[Token], place: int, step: int) -> int:
    place += step
    while 0 <= place < len(tokens) and tokens[place].kind in SOFT:
        place += step
    return place


def _refuse(text: str, first: Token, last: Token) -> MixError:
    typed = shorten(" ".join(text[first.start : last.end].split()))
    return MixError("mix-denied", typed=typed, position=first.start + 1)
