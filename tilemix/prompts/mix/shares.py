"""Find the shares in a prompt: which amount belongs to which color, and what is mere text.

The grammar, over the tokens of a text::

    mix    = share (separator share)*          share = amount color | color amount
    amount = percent | fraction | rest         color = shade? (word | RAL | hex)+ shade?
           | parts | weight | number           base  = color, alone: it takes the rest

Separators cut the text into clauses. In a clause the amounts stand before
their colors or after them: before, if it begins with one ("50% red 50%
black"); after, if it ends with one ("red 50% black 50%"). An amount and a
color that stand alone in their clauses belong together where the two kinds
take turns, as in the cells of a table.
"""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import takewhile

from tilemix.errors import LIST_SEPARATOR, MixError
from tilemix.prompts.mix.clauses import SOFT, Clause, Color, is_ground, is_pure, make_clauses, settle
from tilemix.prompts.mix.denial import deny
from tilemix.prompts.mix.leftovers import refuse_half_names
from tilemix.prompts.mix.naming import MOST_WORDS, name_group, name_unknown, refuse_misspelled, shorten
from tilemix.prompts.mix.pairing import find_base, give_each, is_followed_by_words, join_lone, read_clause
from tilemix.prompts.mix.spelling import find_near_words
from tilemix.prompts.mix.tokens import (
    Kind,
    NameValue,
    Token,
    name_nothing,
    name_values,
    parse_number,
    percent_of_fraction,
    tokenize,
)
from tilemix.prompts.mix.typed import TypedMix, TypedShare, close_mix

PERCENTS: frozenset[Kind] = frozenset({"percent", "fraction"})
HIGHEST = 101  # percent; up to here a total counts as 100
MOST_NAMED = 6  # numbers in a message


def read_shares(text: str, name_value: NameValue = name_nothing) -> TypedMix:
    """Return the shares in `text`; `name_value` may name the color of a hex value.

    Raises:
        MixError: a share is not clear, a color is misspelled, or an RAL number does not exist.
    """
    tokens, amounts = settle(name_values(tokenize(text), name_value))
    tokens = deny(text, tokens, amounts)
    mix = TypedMix(tokens)
    clauses = make_clauses(tokens, amounts)
    ratios = [place for place, token in enumerate(tokens) if token.kind == "ratio"]
    if "number" in amounts:
        return _read_numbers(text, clauses, mix)
    if any(clause.amounts for clause in clauses):
        _refuse_unreadable_amounts(text, clauses)
        _read_clauses(text, clauses, mix)
    elif len(ratios) == 1 and _read_ratio(text, clauses, ratios[0], mix):
        close_mix(text, mix)
        refuse_half_names(text, mix)
    else:
        _read_names(text, clauses, mix)
    return mix


def _read_numbers(text: str, clauses: list[Clause], mix: TypedMix) -> TypedMix:
    """Read "60 blue 40 black": every number stands with a color, and they total 100, or 1.

    Raises:
        MixError: two numbers stand with colors, and this is not a mix.
    """
    numbers = [token for token in mix.tokens if token.kind == "number"]
    try:
        _read_clauses(text, clauses, mix)
        is_whole = not (mix.lone or mix.bare or mix.base) and not any(
            share.is_unknown for share in mix.shares
        )
    except MixError:
        if len(numbers) < 2:
            return TypedMix(mix.tokens)
        raise
    amounts = [parse_number(token.value) for token in numbers]
    total = sum((amount or Decimal(0) for amount in amounts), Decimal(0))
    has_rest = any(share.amount is not None and share.amount.kind == "rest" for share in mix.shares)
    is_total = is_near(total, 100) or is_near(total, 1) or (has_rest and total < 100)
    if is_whole and None not in amounts and is_total:
        return mix
    if sum(not share.is_unknown for share in mix.shares) < 2:
        return TypedMix(mix.tokens)
    typed = LIST_SEPARATOR.join(shorten(text[token.start : token.end]) for token in numbers[:MOST_NAMED])
    raise MixError("mix-numbers", numbers=typed, position=numbers[0].start + 1)


def is_near(total: Decimal | int, whole: int) -> bool:
    """Return whether a total is `whole` but for rounding, one percent of it."""
    return abs(Decimal(total) - whole) * 100 <= whole


def _read_ratio(text: str, clauses: list[Clause], place: int, mix: TypedMix) -> bool:
    """Read "3:1 red:black": as many colors as numbers; return whether it is one.

    Raises:
        MixError: there are more or fewer colors than numbers.
    """
    ratio = mix.tokens[place]
    if mix.tokens[place + 1 : place + 2] and mix.tokens[place + 1].kind == "word":  # "10 to 20 cm"
        return False
    numbers = [parse_number(number) for number in re.split("[:/]", ratio.value)]
    colors = [color for clause in clauses for color in clause.colors]
    while len(colors) > len(numbers) and _is_of_text(clauses, colors[-1]):
        colors.pop()
    if len(colors) == len(numbers) and None not in numbers:
        for number, color in zip(numbers, colors, strict=True):
            name = name_group(text, mix.tokens, color, mix.notes)
            amount = ratio._replace(kind="part", value=str(number))
            mix.add(TypedShare(amount, name, (color.first, color.last)), place)
        return True
    percent = percent_of_fraction(ratio.value)
    if percent is not None and len(colors) == 2 - (percent == "50"):
        return False
    total = sum((number or Decimal(0) for number in numbers), Decimal(0))
    if len(colors) >= 2 or (colors and is_near(total, 100)):
        typed = shorten(text[ratio.start : ratio.end])
        raise MixError(
            "mix-ratio", typed=typed, position=ratio.start + 1, numbers=len(numbers), colors=len(colors)
        )
    return False


def _is_of_text(clauses: list[Clause], color: Color) -> bool:
    return any(color in clause.colors and is_followed_by_words(clause, color) for clause in clauses)


def refuse_misspelled_rest(text: str) -> None:
    """Look for a misspelled color after a "rest" or a "half" that was therefore taken for text: "rest blakc".

    Raises:
        MixError: there is one.
    """
    tokens = tokenize(text)
    for place, (typed, settled) in enumerate(zip(tokens, settle(tokens)[0], strict=True)):
        if typed.kind in {"rest", "fraction"} and typed.kind != settled.kind:
            following = takewhile(lambda token: token.kind != "separator", tokens[place + 1 : place + 6])
            refuse_misspelled(
                text, [token for token in following if token.kind not in SOFT], is_last_first=False
            )


def _read_names(text: str, clauses: list[Clause], mix: TypedMix) -> None:
    """Read "red, black" and "equal parts red, black": colors that take equal shares, or one that takes all.

    Without a word such as "equally" every clause is a color and nothing else.
    """
    is_equal = any(token.kind == "equal" for token in mix.tokens)
    colors = [color for clause in clauses if is_pure(clause) for color in clause.colors]
    if not colors or (is_equal and len(colors) < 2):
        return
    if not is_equal:
        for clause in clauses:
            is_name = is_pure(clause) and len(clause.colors) == 1 and not is_ground(clause)
            if not is_name or clause.opener == "with":
                return
    for color in colors:
        name = name_group(text, mix.tokens, color, mix.notes)
        mix.add(TypedShare(None, name, (color.first, color.last)), None)
    for place, token in enumerate(mix.tokens):
        if token.kind == "equal":
            mix.roles[place] = "equal"
    close_mix(text, mix)
    if not is_equal:
        mix.start, mix.end = 0, len(text)


def _refuse_unreadable_amounts(text: str, clauses: list[Clause]) -> None:
    """Refuse ranges and numbers below zero in the clauses with shares and beside them."""
    holds = [bool(clause.amounts) for clause in clauses]
    first, last = holds.index(True), len(holds) - 1 - holds[::-1].index(True)
    for clause in clauses[max(first - 1, 0) : last + 2]:
        for place in clause.amounts:
            token = clause.tokens[place]
            if token.kind in {"range", "minus"}:
                typed = shorten(text[token.start : token.end])
                code = "mix-range" if token.kind == "range" else "mix-minus"
                raise MixError(code, typed=typed, position=token.start + 1)


def _read_clauses(text: str, clauses: list[Clause], mix: TypedMix) -> None:
    holds = [bool(clause.amounts) for clause in clauses]
    first, last = first_held, last_held = holds.index(True), len(holds) - 1 - holds[::-1].index(True)
    # Clauses that are a color and nothing else belong to the mix, too; one with other words may hold its base.
    while first > 0 and is_pure(clauses[first - 1]):
        first -= 1
    while last + 1 < len(clauses) and is_pure(clauses[last + 1]):
        last += 1
    bare: list[tuple[Clause, Color]] = []
    for number, clause in enumerate(clauses[max(first - 1, 0) : last + 1], start=max(first - 1, 0)):
        if clause.amounts:
            bare += [(clause, color) for color in read_clause(text, clause, mix)]
        elif is_pure(clause) or (number + 1 < len(clauses) and clauses[number + 1].opener == "with"):
            bare += [(clause, color) for color in clause.colors]
        elif first_held < number < last_held and not is_ground(clause):
            mix.bare += clause.colors  # "60% red, a little black, 40% white"
    bare = join_lone(text, bare, mix)
    give_each(text, bare, mix)
    if _total_known(mix)[1]:
        bare = [(clause, color) for clause, color in bare if not is_ground(clause)]  # of the picture
    find_base(text, bare, mix)
    _name_unknowns(text, mix)
    if mix.shares:
        close_mix(text, mix)
        refuse_half_names(text, mix)


def _total_known(mix: TypedMix) -> tuple[Decimal, bool]:
    """Return what the shares of known colors total, and whether that is a mix of percents with nothing left."""
    known = [share.amount for share in mix.shares if share.amount and not share.is_unknown]
    total = sum((parse_number(amount.value) or Decimal(0) for amount in known if amount.value), Decimal(0))
    return total, is_near(total, 100) and all(amount.kind in PERCENTS for amount in known)


def _name_unknowns(text: str, mix: TypedMix) -> None:
    """Name the colors that no chart has, or take them for text: the other shares total 100, and no color is near.

    Raises:
        MixError: a known color is near.
    """
    total, is_full = _total_known(mix)
    has_rest = any(share.amount is not None and share.amount.kind == "rest" for share in mix.shares)
    for share in [share for share in mix.shares if share.is_unknown]:
        words = mix.tokens[share.named[0] : share.named[1] + 1]
        amount = (share.amount and parse_number(share.amount.value)) or Decimal(0)
        is_over = not has_rest and total + amount > HIGHEST
        is_text = (is_full or is_over) and (is_near(amount, 100) or not _may_be_name(words))
        if is_text and not find_near_words(text[words[0].start : words[-1].end]):
            mix.remove(share)
            continue
        is_last_first = share.amount is not None and share.amount.start > words[0].start
        refuse_misspelled(text, words, is_last_first=is_last_first)
        share.color = name_unknown(text, words, mix.notes)
    if is_full:
        whole = [
            place for place in mix.lone if is_near(parse_number(mix.tokens[place].value or "0") or 0, 100)
        ]
        mix.roles |= dict.fromkeys(whole, "filler")  # the sum
        mix.lone = [place for place in mix.lone if place not in whole]


def _may_be_name(words: list[Token]) -> bool:
    """Return whether words beside a percent may name a color: "20% gold", but not "90% recycled rubber"."""
    solid = [word for word in words if word.kind not in SOFT]
    return len(solid) <= MOST_WORDS and any(word.value != "look" for word in solid)
