"""Words beside a color that may make another one of it: "warm gray", "army green". They are not dropped silently."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tilemix.errors import MixError
from tilemix.prompts.mix.naming import refuse_misspelled_name, shorten
from tilemix.prompts.mix.typed import CLOSING, OPENING

if TYPE_CHECKING:
    from tilemix.prompts.mix.tokens import Kind, Token
    from tilemix.prompts.mix.typed import TypedMix, TypedShare

JOINTS = frozenset("-‐‑")
BRACKETS = frozenset(OPENING + CLOSING + "\"'«»„“”‘’")


def refuse_half_names(text: str, mix: TypedMix) -> None:
    """Refuse a color of which the reader knows a part only.

    A word of the surface ("wet") leaves the color as it is, a tint ("warm") never does. Any other word may not in
    front of a color inside the mix, and on both sides of a color that two shares name: "army green, jungle green".

    Raises:
        MixError: there is one.
    """
    shares = [share for share in (*mix.shares, *filter(None, [mix.base])) if not share.is_unknown]
    counts = Counter(share.color for share in shares)
    first = min(mix.roles, default=0)
    for share in shares:
        is_twice = counts[share.color] > 1
        before = _list_words(text, mix, share.named[0], -1)
        behind = _list_words(text, mix, share.named[1], 1)
        if before and _may_change(mix, before, is_any=is_twice or before[-1] > first):
            _refuse(text, mix, share, before[::-1])
        if behind and _may_change(mix, behind, is_any=is_twice):
            _refuse(text, mix, share, behind)


def _list_words(text: str, mix: TypedMix, place: int, step: int) -> list[int]:
    """Return the words without a role that stand directly beside a token, the nearest first.

    In front of it a shade may be one: "a lighter shade of blue".
    """
    kinds: set[Kind] = {"word", "shade"} if step < 0 else {"word"}
    found: list[int] = []
    at = place + step
    while 0 <= at < len(mix.tokens):
        token = mix.tokens[at]
        typed = text[token.start : token.end]
        if token.kind in kinds and mix.roles.get(at, "text") == "text" and any(map(str.isalpha, typed)):
            found.append(at)
        elif token.kind != "link" or not (_is_joint(text, token) or (step < 0 and typed.isalpha())):
            break
        at += step
    return found


def _is_joint(text: str, token: Token) -> bool:
    """Return whether a sign is a bracket, a quotation mark, or a hyphen inside a word."""
    typed = text[token.start : token.end]
    around = (text[token.start - 1 : token.start], text[token.end : token.end + 1])
    return typed in BRACKETS or (typed in JOINTS and all(map(str.isalpha, around)))


def _may_change(mix: TypedMix, places: list[int], *, is_any: bool) -> bool:
    """Return whether one of the words may change the color; `is_any`: those that the reader does not know may."""
    words = [mix.tokens[place] for place in places]
    is_tint = any(word.value == "tint" or word.kind == "shade" for word in words)
    return is_tint or (is_any and any(word.value != "look" for word in words))


def _refuse(text: str, mix: TypedMix, share: TypedShare, places: list[int]) -> None:
    color = mix.tokens[share.named[0] : share.named[1] + 1]
    words = [mix.tokens[place] for place in places]
    refuse_misspelled_name(text, words, color)
    start, end = min(words[0].start, color[0].start), max(words[-1].end, color[-1].end)
    raise MixError(
        "mix-half-known",
        typed=shorten(" ".join(text[start:end].split())),
        position=start + 1,
        color=shorten(text[color[0].start : color[-1].end]),
    )
