"""Color mixes: "50% red, 30% black, 20% pearl" and its many spellings.

A share is an amount with a color, either one first; separators are optional.
Text before the first and after the last share is kept::

    50% red, 30% black, 20% pearl, wet surface      красный 50 %, чёрный 50 %
    half red + half RAL 9005                         50%红色30%黑色20%珍珠白
    30% red, rest black                              black with 30% red flecks
    3 parts red, 1 part black                        red, black (equal shares)

A total between 99 and 101 percent is rounding and becomes 100. What is not
clear is refused, with the place and the reason; the one thing let through is
a color that is in no chart, because the model may know it. docs/mixes.md has
the grammar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tilemix.prompts.checks import check_text
from tilemix.prompts.mix.records import read_record
from tilemix.prompts.mix.shares import read_shares
from tilemix.prompts.mix.tokens import tokenize
from tilemix.prompts.mix.totals import ColorMix, ColorShare, total_up
from tilemix.prompts.mix.typed import TRIMMINGS, TypedMix
from tilemix.prompts.mix.words import TRADE

if TYPE_CHECKING:
    from tilemix.errors import Message

__all__ = ["ColorMix", "ColorShare", "ParsedText", "Span", "find_trade_codes", "parse_mix"]

LEADING_SEPARATORS = re.compile(r"^[\s,;+/|&，；＋／、､–—\-]+")
ATTACHED = tuple(".:!?)]}）：。»”’\"'")  # stands right after the mix, without a comma
CLOSING = re.compile(r"[)\]）]")


class Span(NamedTuple):
    """What a stretch of the prompt, text[start:end], does in its mix."""

    start: int
    end: int
    role: str  # share, color, shade, base, unknown, noun, filler, link, separator, with, each, equal, record or text
    value: str = ""  # the color's trade name, the number


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A prompt whose mix has been read."""

    mix: ColorMix | None  # None: the text holds no share
    head: str  # what is kept before the mix; the whole text where there is no mix
    tail: str  # what is kept after it
    notes: tuple[Message, ...]  # what was read differently from what was typed
    spans: tuple[Span, ...] = ()  # every visible character of the text is in one; in order

    @property
    def text(self) -> str:
        """The mix in its canonical spelling, the rest as typed; all as typed where there is no mix."""
        return f"{self.head}{'' if self.mix is None else self.mix}{self.tail}"


def parse_mix(text: str) -> ParsedText:
    """Read the color mix in `text`, wherever it stands.

    Raises:
        MixError: a share is not clear, a color is misspelled, an RAL number does not exist, the total is not 100.
        PromptError: the text is too long or contains control characters.
    """
    check_text(text, field="prompt")
    record = read_record(text)
    if record is not None and record.mix is not None:
        return ParsedText(record.mix, "", "", record.notes, (Span(0, len(text), "record"),))
    if record is not None and record.text is not None:
        inner = parse_mix(record.text)
        notes = (*inner.notes, *record.notes)
        return ParsedText(inner.mix, inner.head, inner.tail, notes, (Span(0, len(text), "record"),))
    typed = read_shares(text)
    if not typed.shares and not typed.lone:
        return ParsedText(None, text, "", (), (Span(0, len(text), "text"),) if text.strip() else ())
    mix = total_up(text, typed)
    notes = tuple(sorted(typed.notes, key=_position))
    return ParsedText(mix, *_keep_around(text, typed), notes, _list_spans(typed))


def find_trade_codes(text: str) -> list[Span]:
    """Return the codes of the trade in a text, each with the color of the chart that it stands for."""
    return [
        Span(token.start, token.end, "color", token.value)
        for token in tokenize(text)
        if token.source == TRADE
    ]


def _position(note: Message) -> int:
    position = note.values.get("position")
    return position if isinstance(position, int) else 0


def _list_spans(typed: TypedMix) -> tuple[Span, ...]:
    spans: list[Span] = []
    names = {share.named[1]: share.color for share in (*typed.shares, *filter(None, [typed.base]))}
    for place, token in enumerate(typed.tokens):
        role = typed.roles.get(place, "text")
        value = names.get(place, token.value if role == "share" else "")
        if role in {"text", "unknown"} and spans and spans[-1].role == role:
            spans[-1] = Span(spans[-1].start, token.end, role, value)
        else:
            spans.append(Span(token.start, token.end, role, value))
    return tuple(spans)


def _keep_around(text: str, typed: TypedMix) -> tuple[str, str]:
    """Return what stands before and after the canonical mix, which takes the place of the typed one."""
    head = text[: typed.start]
    if TRIMMINGS.fullmatch(head):
        head = ""
    elif head[-1].isspace():
        head = head.rstrip() + " "
    tail = text[typed.end :].strip()
    # A bracket that was opened before the mix is closed after it.
    if TRIMMINGS.fullmatch(tail) and not CLOSING.search(tail):
        tail = ""
    elif not tail.startswith(ATTACHED):
        tail = ", " + LEADING_SEPARATORS.sub("", tail)
    return head, "".join(f", {kept}" for kept in typed.between) + tail
