"""From shares as typed to a mix whose shares total 100."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tilemix.errors import LIST_SEPARATOR, Message, MixError
from tilemix.prompts.mix.clauses import SOFT, make_clauses
from tilemix.prompts.mix.naming import shorten
from tilemix.prompts.mix.numbers import is_near, parse_number
from tilemix.prompts.mix.shares import PROPORTIONS, refuse_misspelled_rest
from tilemix.prompts.mix.unread import QUANTITIES, refuse_unread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tilemix.prompts.mix.tokens import Kind
    from tilemix.prompts.mix.typed import TypedMix, TypedShare

MOST_SHOWN = 12  # shares in a message
MOST_CHARACTERS = 40  # of each color there
HUNDRED = Decimal(100)
NOTHING = Decimal(0)
WHOLE = Decimal(1)
TENTH = Decimal("0.1")


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


def total_up(text: str, typed: TypedMix) -> ColorMix:
    """Return the mix of the shares in a text; add a note to them where the base gets nothing.

    Raises:
        MixError: an amount has no color, a color no amount, or the total is not 100.
    """
    refuse_unread(text, typed)
    _refuse_odd(text, typed)
    shares = list(typed.shares)
    if shares[0].amount is None:  # equal shares
        return make_mix([(share.color, WHOLE) for share in shares], WHOLE)
    kinds: set[Kind] = {share.amount.kind for share in shares if share.amount}
    if kinds & PROPORTIONS:
        return _proportion(text, typed, kinds)
    amounts = [_read_amount(share) for share in shares]
    known = sum((amount for amount in amounts if amount is not None), NOTHING)
    scale = HUNDRED if kinds == {"number"} and known < 2 else Decimal(1)
    rests = [share for share, amount in zip(shares, amounts, strict=True) if amount is None]
    if len({id(share.amount) for share in rests}) > 1:
        raise MixError("mix-two-rests")
    if typed.base is not None:
        shares, amounts = _add_base(text, typed, shares, amounts, known)
    rest = max(HUNDRED - known * scale, NOTHING)
    if rest == 0:
        _note_nothing_left(typed, [share.color for share in rests], known)
    percents = [
        (rest if amount is None else amount * scale) / share.divisor
        for share, amount in zip(shares, amounts, strict=True)
    ]
    total = sum(percents, NOTHING)
    if not is_near(total, 100):
        refuse_misspelled_rest(text, typed.tokens)
        refuse_total([(share.color, one) for share, one in zip(shares, percents, strict=True)], total)
    has_decimal = any(amount is not None and (amount * scale) % 1 for amount in amounts) or any(
        amount is not None and scale == 1 and amount.as_tuple().exponent != 0 for amount in amounts
    )
    named = [(share.color, percent) for share, percent in zip(shares, percents, strict=True)]
    unit = TENTH if has_decimal or any(percent % 1 for percent in percents) else WHOLE
    return make_mix(named, unit, typed.notes)


def _refuse_odd(text: str, typed: TypedMix) -> None:
    """Refuse the first amount without a color, or color without an amount.

    Raises:
        MixError: there is one.
    """
    bare = [(color.first, color.last) for color in typed.bare]
    if typed.lone and typed.base is not None:
        bare.append(typed.base.named)
    first = min([*((place, place) for place in typed.lone), *bare], default=None)
    if first is None:
        return
    if first in bare:
        raise _no_percent(text, typed, first)
    token = typed.tokens[first[0]]
    raise MixError("mix-no-color", typed=shorten(text[token.start : token.end]), position=token.start + 1)


def _add_base(
    text: str, typed: TypedMix, shares: list[TypedShare], amounts: list[Decimal | None], known: Decimal
) -> tuple[list[TypedShare], list[Decimal | None]]:
    """Add the base, which takes the rest; where nothing is left it is a fault, or noted beside "with"."""
    base = typed.base
    assert base is not None
    if known < HUNDRED and not is_near(known, 100):
        order = sorted([*zip(shares, amounts, strict=True), (base, None)], key=lambda pair: pair[0].named[0])
        return [share for share, _ in order], [amount for _, amount in order]
    if not any(token.kind == "with" for token in typed.tokens):
        raise _no_percent(text, typed, base.named)
    _note_nothing_left(typed, [base.color], known)
    return shares, amounts


def _note_nothing_left(typed: TypedMix, colors: Iterable[str], known: Decimal) -> None:
    typed.notes += [
        Message("mix-base-gets-nothing", {"color": color, "total": float(known)}, "prompt")
        for color in colors
    ]


def _no_percent(text: str, typed: TypedMix, named: tuple[int, int]) -> MixError:
    start, end = typed.tokens[named[0]].start, typed.tokens[named[1]].end
    return MixError("mix-no-percent", typed=shorten(text[start:end]), position=start + 1)


def _read_amount(share: TypedShare) -> Decimal | None:
    """Return the number of a share as typed; None for "rest"."""
    amount = share.amount
    assert amount is not None
    if amount.kind == "rest":
        return None
    number = parse_number(amount.value)
    if number is None:
        raise MixError("mix-bad-percent", typed=shorten(amount.value), position=amount.start + 1)
    return number


def _proportion(text: str, typed: TypedMix, kinds: set[Kind]) -> ColorMix:
    """Read parts, weights and ratios.

    Raises:
        MixError: they stand beside other amounts, or a color has none.
    """
    if len(kinds) > 1 or len({share.amount.source for share in typed.shares if share.amount}) > 1:
        odd = next(
            share.amount for share in typed.shares if share.amount and share.amount.kind in PROPORTIONS
        )
        raise MixError("mix-units", typed=shorten(text[odd.start : odd.end]), position=odd.start + 1)
    if typed.base is not None:
        raise _no_percent(text, typed, typed.base.named)
    _refuse_dropped(text, typed)
    amounts = [(share.color, _read_amount(share) or NOTHING) for share in typed.shares]
    total = sum((amount for _, amount in amounts), NOTHING)
    if total == 0:
        refuse_total(amounts, total)
    is_even = all(amount * HUNDRED % total == 0 for _, amount in amounts)
    return make_mix(amounts, WHOLE if is_even else TENTH, typed.notes)


def refuse_total(shares: Sequence[tuple[str, Decimal]], total: Decimal) -> NoReturn:
    """Refuse shares, colors with percents, whose total is not 100.

    The error has them twice: as `mix`, for the line, and as `shares`, JSON that another language is written from.

    Raises:
        MixError: always.
    """
    shown = [(color[:MOST_CHARACTERS], percent) for color, percent in shares[:MOST_SHOWN]]
    values = {
        "mix": LIST_SEPARATOR.join(f"{_format(percent)}% {color}" for color, percent in shown),
        "shares": json.dumps([(color, float(percent)) for color, percent in shown]),
    }
    if more := len(shares) - len(shown):
        raise MixError("mix-total-of-many", total=float(total), more=more, **values)
    raise MixError("mix-total", total=float(total), **values)


def _refuse_dropped(text: str, typed: TypedMix) -> None:
    """Refuse a color outside of the mix, such as that of "3 scoops red, 1 part black": its amount was not understood.

    Raises:
        MixError: there is one, and it does not say what color something else has: "on a red carpet".
    """
    for clause in make_clauses(typed.tokens, PROPORTIONS):
        for color in clause.colors:
            behind = range(color.last + 1, clause.last + 1)
            is_of_thing = any(typed.tokens[place].kind not in SOFT | QUANTITIES for place in behind)
            if color.first not in typed.roles and not is_of_thing:
                raise _no_percent(text, typed, (color.first, color.last))


def make_mix(
    amounts: Sequence[tuple[str, Decimal]], unit: Decimal, notes: list[Message] | None = None
) -> ColorMix:
    """Add up the colors that are named twice and scale the amounts to 100 in whole units by largest remainder.

    Shares of nothing are left out; those that round to nothing are added to `notes`.

    Raises:
        ValueError: an amount is below zero, or all are zero.
    """
    merged: dict[str, Decimal] = {}
    spelled: dict[str, str] = {}
    for name, amount in amounts:
        color = spelled.setdefault(name.casefold(), name)
        merged[color] = merged.get(color, NOTHING) + amount
    total = sum(merged.values(), NOTHING)
    if total <= 0 or min(merged.values()) < 0:
        raise ValueError(
            f"amounts {list(merged.values())} make no mix; expected none below zero, and one above"
        )
    exact = {color: amount * HUNDRED / total for color, amount in merged.items()}
    percents = {color: value.quantize(unit, rounding=ROUND_FLOOR) for color, value in exact.items()}
    missing = int((HUNDRED - sum(percents.values())) / unit)
    by_remainder = sorted(exact, key=lambda color: percents[color] - exact[color])
    for color in by_remainder[:missing]:
        percents[color] += unit
    if notes is not None:
        notes += [
            Message(
                "mix-share-too-small", {"color": color, "percent": round(float(exact[color]), 4)}, "prompt"
            )
            for color, percent in percents.items()
            if percent == 0 < exact[color]
        ]
    return ColorMix(tuple(ColorShare(color, percent) for color, percent in percents.items() if percent > 0))


def _format(percent: Decimal) -> str:
    return f"{percent.normalize():f}"
