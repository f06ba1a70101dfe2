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

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from tilemix.errors import LIST_SEPARATOR, UNDERSTOOD, MixError
from tilemix.prompts.checks import INVISIBLE, VISIBLE, check_text
from tilemix.prompts.mix.clauses import CUTS
from tilemix.prompts.mix.denial import leave_out, note_denied
from tilemix.prompts.mix.numbers import parse_number
from tilemix.prompts.mix.records import read_record
from tilemix.prompts.mix.shares import PERCENTS, read_shares
from tilemix.prompts.mix.tokens import NameValue, name_nothing, tokenize
from tilemix.prompts.mix.totals import MOST_SHOWN, ColorMix, ColorShare, total_up
from tilemix.prompts.mix.typed import CLOSING, STOPS, TRIMMINGS, TypedMix, TypedShare
from tilemix.prompts.mix.unread import refuse_unread_text
from tilemix.prompts.mix.words import TRADE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tilemix.errors import Message, Value

__all__ = ["ColorMix", "ColorShare", "ParsedText", "Span", "find_trade_codes", "parse_mix"]

LEADING_SEPARATORS = re.compile(r"^[\s,;+/|&，；＋／、､–—\-]+")
ATTACHED = tuple(".:!?)]}）】》〉」』〕：。»”’\"'")  # stands right after the mix, without a comma


class Span(NamedTuple):
    """What a stretch of the prompt, text[start:end], does in its mix."""

    start: int
    end: int
    # share, color, shade, base, unknown, noun, filler, link, separator, with, each, equal, record, ignored or text;
    # break, where the prompt language was read
    role: str
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


def parse_mix(text: str, name_value: NameValue = name_nothing) -> ParsedText:
    """Read the color mix in `text`, wherever it stands.

    `name_value` may name the color of a hex value; where it returns None, the chart does.

    Characters that cannot be seen are dropped before it is read; a text without a mix keeps them.

    Raises:
        MixError: a share is not clear, a color is misspelled, an RAL number does not exist, the total is not 100.
        PromptError: the text is too long or contains control characters.
    """
    check_text(text, field="prompt")
    if not INVISIBLE.search(text):
        return _parse_visible(text, name_value)
    places = [place for match in VISIBLE.finditer(text) for place in range(*match.span())]
    try:
        parsed = _parse_visible("".join(text[place] for place in places), name_value)
    except MixError as error:
        raise MixError(error.code, field=error.field, **_point(error.values, places)) from error
    return replace(
        parsed,
        head=text if parsed.mix is None else parsed.head,
        notes=tuple(replace(note, values=_point(note.values, places)) for note in parsed.notes),
        spans=tuple(
            span._replace(start=places[span.start], end=places[span.end - 1] + 1) for span in parsed.spans
        ),
    )


def _point(values: Mapping[str, Value], places: Sequence[int]) -> dict[str, Value]:
    """Return a message's values, its position moved from the visible text to the typed one."""
    position = values.get("position")
    return {**values, "position": places[position - 1] + 1} if isinstance(position, int) else {**values}


def _parse_visible(text: str, name_value: NameValue) -> ParsedText:
    record = read_record(text, name_value)
    if record is not None and record.mix is not None:
        return ParsedText(record.mix, "", "", record.notes, tuple(Span(*piece) for piece in record.pieces))
    if record is not None and record.text is not None:
        inner = parse_mix(record.text, name_value)
        notes = (*inner.notes, *record.notes)
        spans = [
            span for piece in record.pieces for span in _open(text, Span(*piece), record.text, inner.spans)
        ]
        return ParsedText(inner.mix, inner.head, inner.tail, notes, tuple(spans))
    try:
        typed = read_shares(text, name_value)
        if not typed.shares and not typed.lone:
            refuse_unread_text(text, typed.tokens)
            return ParsedText(None, text, "", (), (Span(0, len(text), "text"),) if text.strip() else ())
        note_denied(text, typed)
        mix = total_up(text, typed)
    except MixError as error:
        raise _say_understood(text, error) from error
    notes = tuple(sorted(typed.notes, key=_position))
    return ParsedText(mix, *_keep_around(text, typed), notes, _list_spans(typed))


def find_trade_codes(text: str) -> list[Span]:
    """Return the codes of the trade in a text, each with the color of the chart that it stands for."""
    return [
        Span(token.start, token.end, "color", token.value)
        for token in tokenize(text)
        if token.source == TRADE
    ]


def _open(text: str, piece: Span, inner: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Return the spans of the prompt in a piece of JSON, where it stands there without escapes; else the piece."""
    if piece.role != "text" or text[piece.start + 1 : piece.end - 1] != inner:
        return (piece,)
    first, last = piece.start, piece.end
    shifted = (Span(span.start + first + 1, span.end + first + 1, span.role, span.value) for span in spans)
    return (Span(first, first + 1, "record"), *shifted, Span(last - 1, last, "record"))


def _say_understood(text: str, error: MixError) -> MixError:
    """Return a refusal that also says which shares were read before the place that it names."""
    if error.position is None:
        return error
    try:
        before = read_shares(text[: error.position - 1])
    except MixError:
        return error
    begin = max((place for place, token in enumerate(before.tokens) if token.kind in CUTS), default=-1)
    if error.code == "mix-no-percent":  # "black 20% red": whose percent it is, is the question
        shares = [
            share for share in before.shares if share.named[0] < begin or not _is_color_first(before, share)
        ]
    else:
        shares = before.shares
    read = [
        (share.color, number)
        for share in shares
        if share.amount is not None and share.amount.kind in PERCENTS and not share.is_unknown
        if (number := parse_number(share.amount.value)) is not None
    ][:MOST_SHOWN]
    if not read:
        return error
    said = {
        UNDERSTOOD: LIST_SEPARATOR.join(f"{number.normalize():f}% {color}" for color, number in read),
        "understood_shares": json.dumps([(color, float(number)) for color, number in read]),
    }
    return MixError(error.code, field=error.field, **error.values, **said)


def _is_color_first(typed: TypedMix, share: TypedShare) -> bool:
    return share.amount is not None and share.amount.start > typed.tokens[share.named[0]].start


def _position(note: Message) -> int:
    position = note.values.get("position")
    return position if isinstance(position, int) else 0


def _list_spans(typed: TypedMix) -> tuple[Span, ...]:
    spans: list[Span] = []
    names = {share.named[1]: share.color for share in (*typed.shares, *filter(None, [typed.base]))}
    for place, token in enumerate(typed.tokens):
        role = "ignored" if token.kind == "denied" else typed.roles.get(place, "text")
        value = names.get(place, token.value if role == "share" else "")
        if role in {"text", "unknown"} and spans and spans[-1].role == role:
            spans[-1] = Span(spans[-1].start, token.end, role, value)
        else:
            spans.append(Span(token.start, token.end, role, value))
    return tuple(spans)


def _keep_around(text: str, typed: TypedMix) -> tuple[str, str]:
    """Return what stands before and after the canonical mix, which takes the place of the typed one."""
    head = leave_out(text, typed.tokens, 0, typed.start)
    if TRIMMINGS.fullmatch(head):
        head = ""
    elif head[-1].isspace():
        head = head.rstrip() + " "
    tail = leave_out(text, typed.tokens, typed.end, len(text)).strip()
    # A bracket that was opened before the mix is closed after it.
    if STOPS.fullmatch(tail) and not set(CLOSING) & set(tail):
        tail = ""
    elif not tail.startswith(ATTACHED):
        tail = ", " + LEADING_SEPARATORS.sub("", tail)
    return head, "".join(f", {kept}" for kept in typed.between) + tail
