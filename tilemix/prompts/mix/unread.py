"""What a text says beside its colors and was not read: numbers, fractions, limits. It is refused, never dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilemix.errors import MixError
from tilemix.prompts.mix.clauses import COLORS, CUTS, SOFT
from tilemix.prompts.mix.naming import shorten
from tilemix.prompts.mix.numbers import read_fraction
from tilemix.prompts.mix.tokens import is_word
from tilemix.prompts.mix.words import LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tilemix.prompts.mix.tokens import Kind, Token
    from tilemix.prompts.mix.typed import TypedMix

QUANTITIES: frozenset[Kind] = frozenset({"unread", "number", "ratio", "range", "minus", "unclear"})
NAMES = frozenset({"share", "color", "shade", "base", "unknown"})  # roles
BREAKS = frozenset("\n\r\u2028\u2029;；|")  # separators behind which the number of a row stands
PERCENT_SIGNS = frozenset("%％﹪٪")
LIMIT_SIGNS = frozenset("≤≥⩽⩾")
BRACKETS = frozenset("<>")  # a limit where they stand directly before a number
ARROWS = frozenset("-=–—<>")


def refuse_unread(text: str, mix: TypedMix) -> None:
    """Refuse a number, a fraction or a limit that was not read and stands directly beside a share of the mix.

    Raises:
        MixError: there is one.
    """
    roles = [mix.roles.get(place, "text") for place in range(len(mix.tokens))]
    numbering = _find_numbering(mix.tokens, roles)

    def is_name(at: int) -> bool:
        following = mix.tokens[at + 1] if at + 1 < len(mix.tokens) else None
        is_of_something = following is not None and is_word(text, following)  # "2 white chairs"
        return roles[at] in NAMES or (mix.tokens[at].kind in COLORS and not is_of_something)

    for place, token in enumerate(mix.tokens):
        if roles[place] == "share":
            _refuse_limit(text, mix.tokens, roles, place)
        elif (
            token.kind in QUANTITIES
            and roles[place] == "text"
            and place not in numbering
            and _is_beside(text, mix.tokens, place, is_name, is_text=False)
        ):
            raise _leftover(text, token)


def refuse_unread_text(text: str, tokens: Sequence[Token]) -> None:
    """Refuse a text without a mix in which a number stands beside a color.

    One number beside the only color is text, but for a fraction and a percent sign.

    Raises:
        MixError: it is one.
    """
    colors = [place for place, token in enumerate(tokens) if token.kind in COLORS]
    numbers = [place for place, token in enumerate(tokens) if token.kind in QUANTITIES]
    is_plain = len(colors) + len(numbers) < 3  # "34 red"
    for place in numbers if colors else ():
        token = tokens[place]
        is_number = token.kind == "number" or (token.kind == "ratio" and read_fraction(token.value) is None)
        if is_plain and (is_number or (token.kind == "unread" and text[token.start] not in PERCENT_SIGNS)):
            continue
        if _is_beside(text, tokens, place, lambda at: tokens[at].kind in COLORS | {"shade"}, is_text=True):
            raise _leftover(text, token)


def _leftover(text: str, token: Token) -> MixError:
    return MixError("mix-leftover", typed=shorten(text[token.start : token.end]), position=token.start + 1)


def _is_beside(
    text: str, tokens: Sequence[Token], place: int, is_name: Callable[[int], bool], *, is_text: bool
) -> bool:
    """Return whether a number stands beside a share or a color, with nothing but soft words and signs between.

    A comma may stand between where the number is alone in its clause, not so behind a mix.
    What is followed by a word is a number of that: "2 tiles".
    """
    following = tokens[place + 1] if place + 1 < len(tokens) else None
    if following is not None and (following.kind == "noun" or is_word(text, following)):
        return False
    before = tokens[place - 1] if place else None
    if before is not None and following is not None and before.value == ":" and following.value == ")":
        return False  # a weight: "(red:1.2)"
    is_label = (
        following is not None
        and following.kind == "link"
        and following.value == ":"
        and before is not None
        and (before.kind in {"noun", "filler"} or is_word(text, before))
    )
    return _reaches(text, tokens, place, -1, is_name, crosses=is_text) or (
        not is_label and _reaches(text, tokens, place, 1, is_name, crosses=True)
    )


def _reaches(
    text: str,
    tokens: Sequence[Token],
    place: int,
    step: int,
    is_name: Callable[[int], bool],
    *,
    crosses: bool,
) -> bool:
    """Return whether a name follows on one side; a further number on the way stands beside it itself."""
    at = place + step
    while 0 <= at < len(tokens):
        token = tokens[at]
        if is_name(at):
            return True
        if token.kind == "separator":
            if not crosses or not _is_alone(tokens, place):
                return False
            crosses = False  # one is enough: "20, 5% red"
        elif token.kind not in SOFT | {"or"} and (token.kind != "word" or is_word(text, token)):
            return False
        at += step
    return False


def _is_alone(tokens: Sequence[Token], place: int) -> bool:
    """Return whether nothing but numbers and signs stands between two separators."""
    for step in (-1, 1):
        at = place + step
        while 0 <= at < len(tokens) and tokens[at].kind not in CUTS:
            if tokens[at].kind not in QUANTITIES | {"link", "to", "or"}:
                return False
            at += step
    return True


def _find_numbering(tokens: Sequence[Token], roles: Sequence[str]) -> set[int]:
    """Return the numbers of a numbered list: "1) 50% red 2) 50% black"; a line may begin with the number alone."""
    places = []
    is_marked = True
    for place, token in enumerate(tokens):
        if token.kind not in QUANTITIES or roles[place] != "text" or not token.value.isdecimal():
            continue
        following = tokens[place + 1] if place + 1 < len(tokens) else None
        is_mark = following is not None and following.value in {".", ")"} and following.start == token.end
        begins = place == 0 or (tokens[place - 1].kind == "separator" and tokens[place - 1].value in BREAKS)
        if is_mark or begins:
            places.append(place)
            is_marked = is_marked and following is not None and following.value == ")"
    values = [int(tokens[place].value) for place in places]
    is_list = values == list(range(1, len(values) + 1)) and (len(values) > 1 or is_marked)
    return set(places) if is_list else set()


def _refuse_limit(text: str, tokens: Sequence[Token], roles: Sequence[str], place: int) -> None:
    """Refuse "up to 20%", "20% or more", "≤ 20%".

    Raises:
        MixError: the amount is one.
    """
    amount = tokens[place]
    start = amount.start
    while start > 0 and text[start - 1].isspace():
        start -= 1
    sign = text[start - 1 : start]
    is_bracket = sign in BRACKETS and start == amount.start and text[start - 2 : start - 1] not in ARROWS
    if sign and (sign in LIMIT_SIGNS or is_bracket):
        raise MixError("mix-limit", typed=shorten(text[start - 1 : amount.end]), position=start)
    for step in (-1, 1):
        at = place + step
        while 0 <= at < len(tokens) and tokens[at].kind in SOFT and tokens[at].source != LIMIT:
            at += step
        if not 0 <= at < len(tokens) or tokens[at].source != LIMIT:
            continue
        limit = tokens[at]
        is_joint = limit.kind == "with" and at > 0 and roles[at - 1] in NAMES  # "20% red over 80% black"
        if not is_joint and (step == -1 or limit.kind == "word"):
            first, last = sorted((limit, amount), key=lambda token: token.start)
            raise MixError("mix-limit", typed=shorten(text[first.start : last.end]), position=first.start + 1)
