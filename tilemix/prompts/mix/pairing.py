"""Which amount belongs to which color: in a clause, across clauses, and for the colors that share one amount."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

from tilemix.prompts.mix.clauses import (
    COLORS,
    CUTS,
    EACH,
    NUMBERS_TOO,
    SOFT,
    Clause,
    Color,
    is_followed_by_words,
)
from tilemix.prompts.mix.naming import name_group, refuse_misspelled_name
from tilemix.prompts.mix.typed import CLOSING, OPENING, TypedMix, TypedShare
from tilemix.prompts.mix.words import GROUND

if TYPE_CHECKING:
    from tilemix.prompts.mix.tokens import Kind, Token

BRACKETS = frozenset(OPENING + CLOSING)
MOST_BETWEEN = 3  # words between a share and its color that are kept as text


def read_clause(text: str, clause: Clause, mix: TypedMix) -> list[Color]:
    """Read the shares of one clause; return its colors without an amount."""
    is_color_first = _is_color_first(clause)
    places = clause.amounts
    starts = [color.first for color in clause.colors]
    taken: set[int] = set()
    bounds = (
        [(before + 1, place) for before, place in pairwise([clause.first - 1, *places])]
        if is_color_first
        else [(place + 1, after) for place, after in pairwise([*places, clause.last + 1])]
    )
    for place, (begin, end) in zip(places, bounds, strict=True):
        inside = clause.colors[bisect_left(starts, begin) : bisect_left(starts, end)]
        color = (inside[-1] if is_color_first else inside[0]) if inside else None
        words = _words_between(clause, place, color, begin, end, is_color_first=is_color_first)
        amount = clause.tokens[place]
        if color is not None and len(words) <= MOST_BETWEEN:
            if any(word.value != "look" for word in words):  # "drak green"
                refuse_misspelled_name(text, words, clause.tokens[color.first : color.last + 1])
            name = name_group(text, clause.tokens, color, mix.notes)
            mix.add(TypedShare(amount, name, (color.first, color.last)), place)
            taken.add(color.first)
            continue
        named = _name_of_unknown(clause, begin, end, is_color_first=is_color_first)
        if named is None:
            mix.lone.append(place)
            continue
        mix.add(TypedShare(amount, "", named, is_unknown=True), place)
    left = [color for color in clause.colors if color.first not in taken]
    return _find_bases(clause, left, mix, is_color_first=is_color_first)


def _find_bases(clause: Clause, left: list[Color], mix: TypedMix, *, is_color_first: bool) -> list[Color]:
    """Return those of the colors without an amount that may be bases; the others are text, or a fault.

    A base stands before the amounts: "black 20% red flecks". "black 20% red" may mean either.
    """
    places = clause.amounts
    kinds = {token.kind for token in clause.tokens[clause.first : clause.last + 1]}
    is_even = is_color_first and [clause.tokens[place].value for place in places] == ["50"]
    ground = max(
        (place for place in range(clause.first, clause.last + 1) if clause.tokens[place].value == GROUND),
        default=-1,
    )
    ends = {color.last for color in clause.colors}
    bases: list[Color] = []
    for color in left:
        is_beside_color = color.first - 1 in ends  # "50% green olive": two colors in one share
        if color.first > places[-1] and is_followed_by_words(clause, color) and not is_beside_color:
            continue  # text
        is_before = color.last < places[0] or _is_behind_noun(clause, color, places[-1])
        # A color-first clause may begin with its base and the base's noun: "黑底红点20%".
        is_first = is_color_first and color is clause.colors[0]
        is_ground = color.last < ground or (is_first and clause.tokens[color.last + 1].kind == "noun")
        if is_even or is_ground or not EACH.isdisjoint(kinds) or (is_before and not is_color_first):
            bases.append(color)
        else:
            mix.bare.append(color)
    return bases


def _is_behind_noun(clause: Clause, color: Color, amount: int) -> bool:
    """Return whether a color stands behind the accents' noun: "20% red flecks in black"."""
    return (
        color.first > amount
        and clause.tokens[color.first - 1].kind == "link"
        and any(token.kind == "noun" for token in clause.tokens[amount : color.first])
    )


def _is_color_first(clause: Clause) -> bool:
    solid = [place for place in range(clause.first, clause.last + 1) if clause.tokens[place].kind not in SOFT]
    places = clause.amounts
    if solid[0] == places[0] or (clause.tokens[solid[0]].kind == "each" and solid[1:2] == places[:1]):
        return False
    behind = [place for place in solid if clause.tokens[place].kind != "each"]
    if behind[-1] == places[-1]:
        return True
    last_before = max((place for place in solid if place < places[0]), default=None)
    is_behind_color = any(color.last == last_before for color in clause.colors)
    # "black 20% red flecks": the granules' word says that the color before the percent is the base.
    latest = clause.colors[-1] if clause.colors else None
    if latest is not None and latest.first > places[-1]:
        following = clause.tokens[latest.last + 1 : clause.last + 1]
        if any(token.kind == "noun" for token in following) or _is_set_off(clause):
            return False
    return is_behind_color


def _is_set_off(clause: Clause) -> bool:
    """Return whether a base is set off from the first share: "black tile 20% red", "black (20% red)"."""
    first = clause.amounts[0]
    base = max((color.last for color in clause.colors if color.last < first), default=None)
    accent = min((color.first for color in clause.colors if color.first > first), default=None)
    if base is None or accent is None:
        return False
    between, inside = clause.tokens[base + 1 : first], clause.tokens[first:accent]
    is_bracketed = any(token.value in BRACKETS for token in between)
    return any(token.kind == "noun" for token in between) or (
        is_bracketed and not any(token.value in BRACKETS for token in inside)
    )


def _words_between(
    clause: Clause, place: int, color: Color | None, begin: int, end: int, *, is_color_first: bool
) -> list[Token]:
    """Return the words between an amount and its color, or all of its side where there is no color."""
    if color is None:
        low, high = begin, end
    elif is_color_first:
        low, high = color.last + 1, place
    else:
        low, high = place + 1, color.first
    return [token for token in clause.tokens[low:high] if token.kind in {"word", "number", "unread"}]


def _name_of_unknown(clause: Clause, begin: int, end: int, *, is_color_first: bool) -> tuple[int, int] | None:
    """Return the first and last token of an unknown color's name; None where there is nothing but soft words."""
    named = [
        place
        for place in range(begin, end)
        if clause.tokens[place].kind not in {"link", "filler", "each", "to", "or"}
    ]
    if all(clause.tokens[place].kind in {"number", "unread", "ratio"} for place in named):
        return None
    if not is_color_first:
        return named[0], named[-1]
    solid = [place for place in named if clause.tokens[place].kind != "noun"]
    return (solid[0], solid[-1]) if solid else None


def join_lone(text: str, bare: list[tuple[Clause, Color]], mix: TypedMix) -> list[tuple[Clause, Color]]:
    """Join the amounts and the colors that stand alone, where they take turns or stand in two equal rows."""
    if (
        mix.shares
        or not mix.lone
        or len(mix.lone) != len(bare)
        or any(_is_each(mix, place) for place in mix.lone)
    ):
        return bare
    cells = sorted(
        [*((place, None) for place in mix.lone), *((color.first, color) for _, color in bare)], key=_cell
    )
    kinds = [color is None for _, color in cells]
    half = len(kinds) // 2
    takes_turns = all(one != other for one, other in pairwise(kinds))
    two_rows = len(set(kinds[:half])) == len(set(kinds[half:])) == 1 and half > 1
    if not (takes_turns or two_rows):
        return bare
    lone, mix.lone = mix.lone, []
    for place, (_, color) in zip(lone, bare, strict=True):
        name = name_group(text, mix.tokens, color, mix.notes)
        mix.add(TypedShare(mix.tokens[place], name, (color.first, color.last)), place)
    return []


def _cell(cell: tuple[int, Color | None]) -> int:
    return cell[0]


def _is_each(mix: TypedMix, place: int) -> bool:
    """Return whether "each" or "equally" stands beside an amount or ends its list: "rest red and blue equally"."""
    return bool(kinds_beside(mix, place) & EACH) or _ends_with_each(mix, place)


def _ends_with_each(mix: TypedMix, place: int) -> bool:
    for at in range(place + 1, len(mix.tokens)):
        kind = mix.tokens[at].kind
        if kind in EACH:
            following = (token.kind for token in mix.tokens[at + 1 :] if token.kind not in SOFT)
            return next(following, "") not in NUMBERS_TOO
        if kind not in SOFT | COLORS | CUTS | {"shade"}:
            return False
    return False


def kinds_beside(mix: TypedMix, place: int) -> set[Kind]:
    """Return the kinds of the nearest tokens on both sides of one that are not soft."""
    kinds: set[Kind] = set()
    for step in (1, -1):
        at = place + step
        while 0 <= at < len(mix.tokens) and mix.tokens[at].kind in SOFT:
            at += step
        if 0 <= at < len(mix.tokens):
            kinds.add(mix.tokens[at].kind)
    return kinds


def give_each(text: str, bare: list[tuple[Clause, Color]], mix: TypedMix) -> None:
    """Give the amount of "50% each of red and black" to every color of the list."""
    amounts = sorted([*mix.lone, *_amount_places(mix)])
    if not any(_is_each(mix, place) for place in amounts):
        return
    mix.roles |= {at: token.kind for at, token in enumerate(mix.tokens) if token.kind in EACH}
    owners = {id(share.amount): share for share in mix.shares}
    for low, place, high in zip([-1, *amounts], amounts, [*amounts[1:], len(mix.tokens)], strict=False):
        if not _is_each(mix, place):
            continue
        owner = owners.get(id(mix.tokens[place]))
        behind = [(clause, color) for clause, color in bare if place < color.first < high]
        before = [(clause, color) for clause, color in bare if low < color.first < place]
        is_behind = owner.named[0] > place if owner else bool(behind) and not before
        group = behind if is_behind else before
        for clause, color in group:
            bare.remove((clause, color))
            name = name_group(text, mix.tokens, color, mix.notes)
            mix.add(TypedShare(mix.tokens[place], name, (color.first, color.last)), place)
        if group and place in mix.lone:
            mix.lone.remove(place)
        if mix.tokens[place].kind == "rest" or "equal" in kinds_beside(mix, place):
            for share in mix.shares:
                if share.amount is mix.tokens[place]:
                    share.divisor = len(group) + (owner is not None)
    mix.shares.sort(key=lambda share: share.named[0])


def _amount_places(mix: TypedMix) -> list[int]:
    own = {id(share.amount) for share in mix.shares}
    return [place for place, token in enumerate(mix.tokens) if id(token) in own]


def find_base(text: str, bare: list[tuple[Clause, Color]], mix: TypedMix) -> None:
    """Take the one color without an amount for the base; more of them are a fault, and so is one beside a "rest"."""
    has_rest = any(share.amount is not None and share.amount.kind == "rest" for share in mix.shares)
    if len(bare) == 1 and not has_rest and not mix.bare:
        _, color = bare[0]
        name = name_group(text, mix.tokens, color, mix.notes)
        mix.set_base(TypedShare(None, name, (color.first, color.last)))
    else:
        mix.bare += [color for _, color in bare]
