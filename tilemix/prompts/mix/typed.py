"""What a reader finds in a prompt: the shares as typed, what every token does in the mix, the text to keep."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilemix.prompts.mix.clauses import SOFT
from tilemix.prompts.mix.pieces import JOINTS
from tilemix.prompts.mix.words import PART

if TYPE_CHECKING:
    from tilemix.errors import Message
    from tilemix.prompts.mix.clauses import Color
    from tilemix.prompts.mix.tokens import Token

OPENING = "([（【《〈「『〔"
CLOSING = ")]）】》〉」』〕"
OPENED = frozenset(OPENING + "\"'«„“‘")
LINE_ENDS = frozenset("\n\r\u2028\u2029")
# Bullets, quotation marks and stops around the shares are not kept; nor are the numbers of a list before them.
STOPS = re.compile(r"[\s.,:;+/|&=*•·~≈)\]，。；：、）\-‐‑–—−\"'`«»„“”‘’_→>]*")
TRIMMINGS = re.compile(r"[\s\d.,:;+/|&=*•·~≈)\]，。；：、）\-‐‑–—−\"'`«»„“”‘’_→>]*")


@dataclass(slots=True)
class TypedShare:
    """A share as typed."""

    amount: Token | None  # None: a color alone; it takes an equal share, or the rest
    color: str  # a trade name, or an unknown color as typed
    named: tuple[int, int]  # the tokens that name the color, first and last
    is_unknown: bool = False
    divisor: int = 1  # so many colors divide the amount: "the rest equally"


@dataclass(slots=True)
class TypedMix:
    """The shares of a prompt and where they stand; text[start:end] is the mix."""

    tokens: list[Token] = field(default_factory=list)
    shares: list[TypedShare] = field(default_factory=list)  # in the order typed; empty: mere text
    base: TypedShare | None = None  # takes what the shares leave
    bare: list[Color] = field(default_factory=list)  # further colors without an amount, a fault
    lone: list[int] = field(default_factory=list)  # tokens: amounts without a color, a fault
    between: list[str] = field(default_factory=list)  # text inside the mix that belongs to no share
    notes: list[Message] = field(default_factory=list)
    roles: dict[int, str] = field(default_factory=dict)  # token -> what it does in the mix
    start: int = 0
    end: int = 0

    def add(self, share: TypedShare, place: int | None) -> None:
        """Add a share; `place` is its amount's token."""
        self.shares.append(share)
        if place is not None:
            self.roles[place] = "share"
        self._mark(share.named, "unknown" if share.is_unknown else "color")

    def set_base(self, share: TypedShare) -> None:
        """Take a color alone for the base."""
        self.base = share
        self._mark(share.named, "base")

    def remove(self, share: TypedShare) -> None:
        """Take a share for text after all."""
        self.shares.remove(share)
        self.roles = {
            place: role
            for place, role in self.roles.items()
            if self.tokens[place] is not share.amount and not share.named[0] <= place <= share.named[1]
        }

    def _mark(self, named: tuple[int, int], role: str) -> None:
        for place in range(named[0], named[1] + 1):
            kind = self.tokens[place].kind
            self.roles[place] = (
                kind if kind in {"shade", "noun", "filler", "link"} and role != "unknown" else role
            )


def close_mix(text: str, mix: TypedMix) -> None:
    """Say where the mix begins and ends, and keep the text inside it that belongs to no share."""
    places = sorted(mix.roles)
    first, last = _begin_of_clause(mix.tokens, places[0]), places[-1]
    while first > 0 and (mix.tokens[first - 1].kind == "filler" or _is_stop_of_filler(mix.tokens, first - 1)):
        first -= 1  # "ca. 60% red"
    if all(token.kind in {"with", "to"} for token in mix.tokens[:first]):
        first = 0  # "mit 60% rot"
    table = _begin_of_table(mix.tokens, first)
    mix.roles |= {place: mix.tokens[place].kind for place in range(table, first)}
    first = table
    mix.start, mix.end = mix.tokens[first].start, mix.tokens[last].end
    run: list[Token] = []
    for place in range(first, last + 1):
        token = mix.tokens[place]
        is_bracket = token.kind == "link" and token.value in OPENING + CLOSING
        if place in mix.roles or token.kind in {"separator", "with", "denied"} or is_bracket:
            _keep(text, run, mix)
            run = []
        else:
            run.append(token)
        if place not in mix.roles:
            mix.roles[place] = token.kind if token.kind in {*SOFT, "separator", "with", "denied"} else "text"
    _balance(text, mix, first, last)


def _balance(text: str, mix: TypedMix, first: int, last: int) -> None:
    """Take the other halves of the brackets in the mix into it, where nothing but small words stands between."""
    opened = closed = 0  # brackets without the other half
    for letter in text[mix.start : mix.end]:
        opened += letter in OPENING
        if letter in CLOSING:
            closed += opened == 0
            opened = max(opened - 1, 0)
    place = first - 1
    while closed > 0 and place >= 0 and mix.tokens[place].kind in SOFT:
        if text[mix.tokens[place].start] in OPENING:
            closed -= 1
            mix.roles |= {at: mix.tokens[at].kind for at in range(place, first)}
            mix.start, first = mix.tokens[place].start, place
        place -= 1
    until = 0  # fillers before it end their part
    for place in range(last + 1, len(mix.tokens)):
        token = mix.tokens[place]
        if token.kind == "filler" and place >= until:
            until = _end_of_fillers(mix.tokens, place)
        if opened > 0 and text[token.start] in CLOSING:
            opened -= 1
        elif token.kind != "noun" and place >= until and not _is_hyphen_of_noun(text, mix.tokens, place):
            break
        mix.roles[place] = token.kind
        mix.end = token.end


def _is_hyphen_of_noun(text: str, tokens: list[Token], place: int) -> bool:
    """Return whether a token is the sign in "black-colored"."""
    after = tokens[place + 1] if place + 1 < len(tokens) else None
    is_joint = JOINTS.fullmatch(text[tokens[place].start : tokens[place].end]) is not None
    return is_joint and after is not None and after.kind == "noun" and after.start == tokens[place].end


def _end_of_fillers(tokens: list[Token], place: int) -> int:
    """Return the end of the fillers that end a part, as in "40% red please"; 0 where other words follow."""
    while place < len(tokens) and tokens[place].kind in {"filler", "noun"}:
        place += 1
    is_end = place == len(tokens) or tokens[place].kind in {"separator", "with", "denied"}
    return place if is_end else 0


def _begin_of_table(tokens: list[Token], first: int) -> int:
    """Return where the table of the mix begins, if a line of headings stands before it: "Color;Share"."""
    end = first
    while end > 0 and tokens[end - 1].value in LINE_ENDS:
        end -= 1
    start = end
    while start > 0 and tokens[start - 1].value not in LINE_ENDS:
        start -= 1
    heading = tokens[start:end] if end < first else []
    amounts = [token for token in heading if token.source == PART or token.kind == "unread"]
    others = [token for token in heading if token not in amounts]
    return start if amounts and all(token.kind in SOFT | {"separator"} for token in others) else first


def _begin_of_clause(tokens: list[Token], first: int) -> int:
    """Return where the clause begins if nothing but soft words stands before the mix in it: "base color: black"."""
    place = first
    while place > 0 and tokens[place - 1].kind in SOFT and tokens[place - 1].value not in OPENED:
        place -= 1
    is_begin = place == 0 or tokens[place - 1].kind == "separator"
    return place if is_begin and any(token.kind != "link" for token in tokens[place:first]) else first


def _is_stop_of_filler(tokens: list[Token], place: int) -> bool:
    token = tokens[place]
    return token.kind == "link" and token.value in ".~≈" and (place == 0 or tokens[place - 1].kind != "word")


def _keep(text: str, run: list[Token], mix: TypedMix) -> None:
    solid = [place for place, token in enumerate(run) if token.kind not in SOFT]
    if not solid:
        return
    first, last = solid[0], solid[-1]
    typed = text[run[first].start : run[last].end]
    following = run[last + 1] if last + 1 < len(run) else None
    if not TRIMMINGS.fullmatch(typed):
        mix.between.append(typed)
    elif following is not None and following.kind == "noun" and any(map(str.isdigit, typed)):
        mix.between.append(text[run[first].start : following.end])  # "2 tiles"
