"""Color mixes: "50% red, 30% black, 20% pearl" and its many spellings.

A share is a percent with a color, either one first; separators are optional.
Text before the first and after the last share is kept::

    50% red, 30% black, 20% pearl, wet surface      красный 50 %, чёрный 50 %
    half red + half RAL 9005                         50%红色30%黑色20%珍珠白
    30% red, rest black                              red, black (equal shares)

A total from 99 to 101 percent counts as rounding and becomes 100. Anything
unclear is refused, with its place and the reason. Only a color that is not in
the chart passes, because the model may know it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, NamedTuple

from tilemix.errors import MixError
from tilemix.prompts.checks import check_text
from tilemix.prompts.mix.naming import shorten
from tilemix.prompts.mix.shares import TRIMMINGS, TypedMix, TypedShare, read_shares, refuse_misspelled_rest

if TYPE_CHECKING:
    from tilemix.errors import Message

MOST_DIGITS = 8  # in a percent as typed
MOST_SHOWN = 12  # shares in a message
LOWEST_TOTAL = Decimal(99)
HIGHEST_TOTAL = Decimal(101)
HUNDRED = Decimal(100)
WHOLE = Decimal(1)
TENTH = Decimal("0.1")

LEADING_SEPARATORS = re.compile(r"^[\s,;+/|&，；＋／、､–—\-]+")
ATTACHED = tuple(".:!?)]}）：。»”’\"'")  # stands right after the mix, without a comma
CLOSING = re.compile(r"[)\]）]")
DECIMAL_POINTS = str.maketrans({",": ".", "．": "."})


class ColorShare(NamedTuple):
    """One color of a mix."""

    color: str  # a trade name from the chart, or as typed when the chart has no such color
    percent: Decimal  # above 0, 100 at most; whole or with one decimal


@dataclass(frozen=True, slots=True)
class ColorMix:
    """A color mix; `str(mix)` is how it is sent to the model: "50% red, 30% black, 20% pearl"."""

    shares: tuple[ColorShare, ...]  # in the order typed; percents total 100

    def __str__(self) -> str:
        return ", ".join(f"{_format(percent)}% {color}" for color, percent in self.shares)


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A prompt whose mix has been read."""

    mix: ColorMix | None  # None: the text holds no share
    text: str  # the mix in its canonical spelling, the rest as typed; all of it as typed if there is no mix
    notes: tuple[Message, ...]  # what was read differently from what was typed


def parse_mix(text: str) -> ParsedText:
    """Read the color mix in `text`, wherever it stands.

    Raises:
        MixError: a share is unclear, a color is misspelled, an RAL number does not exist, the total is not 100.
        PromptError: the text is too long or contains control characters.
    """
    check_text(text, field="prompt")
    typed = read_shares(text)
    if not typed.shares:
        return ParsedText(None, text, ())
    mix = _total(text, typed)
    return ParsedText(mix, _assemble(text, typed, mix), tuple(typed.notes))


def _format(percent: Decimal) -> str:
    return f"{percent.normalize():f}"


def _read_amount(share: TypedShare) -> Decimal | None:
    """Return the percent of a share as typed; None for "rest", 1 for a color alone (equal shares)."""
    amount = share.amount
    if amount is None:
        return Decimal(1)
    if amount.kind == "rest":
        return None
    typed = amount.value.translate(DECIMAL_POINTS)
    if typed.count(".") > 1 or len(typed) > MOST_DIGITS:
        raise MixError("mix-bad-percent", typed=shorten(amount.value), position=amount.start + 1)
    return Decimal(typed)


def _total(text: str, typed: TypedMix) -> ColorMix:
    """Merge the shares and bring their total to 100."""
    amounts = [_read_amount(share) for share in typed.shares]
    known = sum((amount for amount in amounts if amount is not None), Decimal(0))
    rest = max(HUNDRED - known, Decimal(0))
    percents = [rest if amount is None else amount for amount in amounts]
    total = sum(percents, Decimal(0))
    is_equal = typed.shares[0].amount is None
    if not is_equal:
        if amounts.count(None) > 1:
            raise MixError("mix-two-rests")
        if not LOWEST_TOTAL <= total <= HIGHEST_TOTAL:
            refuse_misspelled_rest(text)
            read = [
                f"{_format(percent)}% {share.color[:40]}"
                for share, percent in zip(typed.shares, percents, strict=True)
            ]
            shown, more = ", ".join(read[:MOST_SHOWN]), len(read) - MOST_SHOWN
            if more > 0:
                raise MixError("mix-total-of-many", total=float(total), mix=shown, more=more)
            raise MixError("mix-total", total=float(total), mix=shown)

    merged: dict[str, Decimal] = {}
    spelled: dict[str, str] = {}
    for share, percent in zip(typed.shares, percents, strict=True):
        color = spelled.setdefault(share.color.casefold(), share.color)
        merged[color] = merged.get(color, Decimal(0)) + percent
    has_decimal = any(percent.as_tuple().exponent != 0 for percent in percents)
    return _apportion(merged, total, TENTH if has_decimal else WHOLE)


def _apportion(amounts: dict[str, Decimal], total: Decimal, unit: Decimal) -> ColorMix:
    """Scale `amounts` to 100 in whole units by largest remainder; shares of 0 are left out."""
    exact = {color: amount * HUNDRED / total for color, amount in amounts.items()}
    percents = {color: value.quantize(unit, rounding=ROUND_FLOOR) for color, value in exact.items()}
    missing = int((HUNDRED - sum(percents.values())) / unit)
    by_remainder = sorted(exact, key=lambda color: percents[color] - exact[color])
    for color in by_remainder[:missing]:
        percents[color] += unit
    return ColorMix(tuple(ColorShare(color, percent) for color, percent in percents.items() if percent > 0))


def _assemble(text: str, typed: TypedMix, mix: ColorMix) -> str:
    """Put the canonical mix in place of the typed one."""
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
    return head + ", ".join([str(mix), *typed.between]) + tail
