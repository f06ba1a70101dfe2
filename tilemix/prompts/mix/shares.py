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

from decimal import Decimal
from itertools import takewhile
from typing import TYPE_CHECKING

from tilemix.errors import LIST_SEPARATOR, MixError
from tilemix.prompts.mix.clauses import (
    AMOUNTS,
    COLORS,
    SOFT,
    SUM,
    Clause,
    Color,
    is_ground,
    is_pure,
    make_clauses,
    settle,
)
from tilemix.prompts.mix.denial import deny
from tilemix.prompts.mix.leftovers import refuse_half_names
from tilemix.prompts.mix.naming import MOST_WORDS, name_group, name_unknown, refuse_misspelled, shorten
from tilemix.prompts.mix.numbers import is_near, parse_number
from tilemix.prompts.mix.pairing import find_base, give_each, join_lone, kinds_beside, read_clause
from tilemix.prompts.mix.rows import read_rows
from tilemix.prompts.mix.spelling import find_near_words
from tilemix.prompts.mix.tokens import Kind, NameValue, Token, is_word, name_nothing, name_values, tokenize
from tilemix.prompts.mix.typed import TypedMix, TypedShare, close_mix

if TYPE_CHECKING:
    from collections.abc import Sequence

PROPORTIONS: frozenset[Kind] = frozenset({"part", "weight"})
PERCENTS: frozenset[Kind] = frozenset({"percent", "fraction"})
UNREADABLE: dict[Kind, str] = {"range": "mix-range", "minus": "mix-minus", "unclear": "mix-unclear-number"}
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
    if {token.kind for token in tokens if token.kind in AMOUNTS} <= {"percent"} and read_rows(
        text, clauses, mix
    ):
        close_mix(text, mix)
        refuse_half_names(text, mix)
    elif "number" in amounts:
        return _read_numbers(text, clauses, mix)
    elif any(clause.amounts for clause in clauses):
        _refuse_unreadable_amounts(text, clauses)
        _read_clauses(text, clauses, mix)
    else:
        _read_names(text, clauses, mix)
    return mix


def _read_numbers(text: str, clauses: list[Clause], mix: TypedMix) -> TypedMix:
    """Read "60 blue 40 black": every number stands with a color, and they total 100, or 1.

    Raises:
        MixError: two numbers stand with colors, and this is not a mix.
    """
    numbers = [token for token in mix.tokens if token.kind == "number"]
    mix.roles |= {place: "filler" for place, token in enumerate(mix.tokens) if token.source == SUM}
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
    if None not in amounts and is_total and (is_whole or len(numbers) > 1):
        _refuse_counted(text, mix, has_rest=has_rest)
        return mix
    if sum(not share.is_unknown for share in mix.shares) < 2:
        return TypedMix(mix.tokens)
    typed = LIST_SEPARATOR.join(shorten(text[token.start : token.end]) for token in numbers[:MOST_NAMED])
    raise MixError("mix-numbers", numbers=typed, position=numbers[0].start + 1)


def _refuse_counted(text: str, mix: TypedMix, *, has_rest: bool) -> None:
    """Refuse a number of something else: "room 60 black, room 40 red", "one in 5 granules red, rest black".

    Raises:
        MixError: there is one.
    """
    for place, role in mix.roles.items():
        if role != "share":
            continue
        first = place - (mix.tokens[place - 1].value == "." and place > 1)  # "No. 60 black"
        first = first - 1 if first > 0 and is_word(text, mix.tokens[first - 1]) else place
        behind = mix.tokens[place + 1] if place + 1 < len(mix.tokens) else None
        is_counted = behind is not None and (is_word(text, behind) or (has_rest and behind.kind == "noun"))
        if first < place or is_counted:
            start, end = mix.tokens[first].start, mix.tokens[place + is_counted].end
            raise MixError("mix-leftover", typed=shorten(text[start:end]), position=start + 1)


def refuse_misspelled_rest(text: str, tokens: Sequence[Token]) -> None:
    """Look for a misspelled color after a "rest" or a "half" that was therefore taken for text: "rest blakc".

    Raises:
        MixError: there is one.
    """
    for place, token in enumerate(tokens):
        if token.kind == "unread":
            following = takewhile(lambda one: one.kind != "separator", tokens[place + 1 : place + 6])
            refuse_misspelled(text, [one for one in following if one.kind not in SOFT], is_last_first=False)


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
            if all(token.kind in SOFT for token in mix.tokens[clause.first : clause.last + 1]):
                continue  # "rubber tile, red"
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
            if token.kind in UNREADABLE:
                typed = shorten(text[token.start : token.end])
                raise MixError(UNREADABLE[token.kind], typed=typed, position=token.start + 1)


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
        is_proportion = share.amount is not None and share.amount.kind in PROPORTIONS
        is_over = not has_rest and not is_proportion and total + amount > HIGHEST
        is_text = (is_full or is_over) and (is_near(amount, 100) or not _may_be_name(words))
        if is_full and is_proportion:  # "200 g per tile"
            mix.remove(share)
            continue
        if is_text and not find_near_words(text[words[0].start : words[-1].end]):
            mix.remove(share)
            continue
        is_last_first = share.amount is not None and share.amount.start > words[0].start
        refuse_misspelled(text, words, is_last_first=is_last_first)
        share.color = name_unknown(text, words, mix.notes)
    if is_full:
        whole = [
            place
            for place in mix.lone
            if mix.tokens[place].kind in PERCENTS and is_near(parse_number(mix.tokens[place].value) or 0, 100)
        ]
        mix.roles |= dict.fromkeys(whole, "filler")  # the sum
        weights = [place for place in mix.lone if mix.tokens[place].kind in PROPORTIONS]  # "..., 15 kg"
        for token in (
            mix.tokens[place] for place in weights if kinds_beside(mix, place) & {*COLORS, *PERCENTS}
        ):
            raise MixError(
                "mix-units", typed=shorten(text[token.start : token.end]), position=token.start + 1
            )
        mix.lone = [place for place in mix.lone if place not in {*whole, *weights}]


def _may_be_name(words: list[Token]) -> bool:
    """Return whether words beside a percent may name a color: "20% gold", but not "90% recycled rubber"."""
    solid = [word for word in words if word.kind not in SOFT]
    return len(solid) <= MOST_WORDS and any(word.value != "look" for word in solid)
