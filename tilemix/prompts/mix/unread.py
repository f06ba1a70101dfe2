"""What a text says beside its colors and was not read: numbers, fractions, limits. It is refused, never dropped."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

from tilemix.errors import MixError
from tilemix.prompts.mix.clauses import COLORS, CUTS, EACH, SOFT
from tilemix.prompts.mix.naming import shorten
from tilemix.prompts.mix.numbers import is_near, parse_number, read_fraction
from tilemix.prompts.mix.tokens import is_word
from tilemix.prompts.mix.words import LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tilemix.prompts.mix.tokens import Kind, Token
    from tilemix.prompts.mix.typed import TypedMix

QUANTITIES: frozenset[Kind] = frozenset({"unread", "number", "ratio", "range", "minus", "unclear"})
NAMES = frozenset({"share", "color", "shade", "base", "unknown"})  # roles
BETWEEN: frozenset[Kind] = SOFT | EACH | {"or", "shade"}
ALONE: frozenset[Kind] = QUANTITIES | {"link", "to", "or"}
BREAKS = frozenset("\n\r\u2028\u2029;；|")  # separators behind which the number of a row stands
PERCENT_SIGNS = frozenset("%％﹪٪")
LIMIT_SIGNS = frozenset("≤≥⩽⩾")
COLONS = frozenset({":", "："})
JOINTS = frozenset({"/", "+"})
LIKE_DIGITS = frozenset("lIOoОоЗз")
FIRST_HAN = "\u3400"
ENDS = frozenset("!?！？。")
BRACKETS = frozenset("<>")  # a limit where they stand directly before a number
ARROWS = frozenset("-=–—<>")


def refuse_unread(text: str, mix: TypedMix) -> None:
    """Refuse a number, a fraction or a limit that was not read and stands directly beside a share of the mix.

    One unknown word between a number and an amount does not part them: "15 up 20% red".

    Raises:
        MixError: there is one.
    """
    tokens = mix.tokens
    roles = [mix.roles.get(place, "text") for place in range(len(tokens))]
    numbering = _find_numbering(tokens, roles)

    def is_name(_: int, at: int) -> bool:
        is_of_thing = at + 1 < len(tokens) and is_word(text, tokens[at + 1])  # "2 white chairs"
        return roles[at] in NAMES or (tokens[at].kind in COLORS and not is_of_thing)

    around = _Around(text, tokens, is_name)
    for place, token in enumerate(tokens):
        if roles[place] == "share":
            _refuse_limit(text, tokens, roles, place)
            if around.is_stuck_to_letter(place):
                raise _leftover(text, tokens[place - 1]._replace(end=token.end))
        elif token.kind in QUANTITIES and roles[place] == "text" and place not in numbering:
            is_close = roles[place + 2 : place + 3] == ["share"] and around.is_before_word(place)
            is_begun = around.is_begun_range(place) and "share" in roles[place:]
            crosses = place > 0 and tokens[place - 1].value in JOINTS
            if (
                is_close
                or is_begun
                or around.is_named(place, crosses_back=crosses)
                or _is_ratio_of_mix(token)
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
    if not colors:
        return

    def is_name(place: int, at: int) -> bool:
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        is_of_thing = following is not None and (  # "two black ones", "two black tiles"
            is_word(text, following) or (text[tokens[place].start].isalpha() and following.kind == "noun")
        )
        return tokens[at].kind in COLORS and not (at > place and is_of_thing)

    around = _Around(text, tokens, is_name)
    for place in numbers:
        token = tokens[place]
        is_plain = token.kind in {"number", "ratio"} and read_fraction(token.value) is None
        is_plain = is_plain or (token.kind == "unread" and text[token.start] not in PERCENT_SIGNS)
        if is_plain and len(colors) + len(numbers) < 3:  # "34 red"
            continue
        crosses = len(colors) > 1 or (place > 0 and tokens[place - 1].value == "/")
        is_mix = len(colors) > 1 and _is_ratio_of_mix(token)
        if is_mix or around.is_named(place, crosses_back=crosses):
            raise _leftover(text, token)


def _is_ratio_of_mix(token: Token) -> bool:
    """Return whether a ratio totals 100, as that of a mix: "60% red, 40% black, or 50/50"."""
    numbers = [parse_number(number) or Decimal(0) for number in re.split("[:/]", token.value)]
    return len(numbers) > 1 and is_near(sum(numbers, Decimal(0)), 100)


def _leftover(text: str, token: Token) -> MixError:
    return MixError("mix-leftover", typed=shorten(text[token.start : token.end]), position=token.start + 1)


class _Around:
    """What stands around the numbers of a text; `is_name` says of a number and a token whether that is a name."""

    def __init__(self, text: str, tokens: Sequence[Token], is_name: Callable[[int, int], bool]) -> None:
        self._text = text
        self._tokens = tokens
        self._is_name = is_name

    def is_named(self, place: int, *, crosses_back: bool) -> bool:
        """Return whether a name stands beside a number, with nothing but soft words and signs between.

        A separator may stand between where the number is alone in its clause; behind it only if `crosses_back`.
        """
        if self._is_counting(place):
            return False
        before, following = self._token(place - 1), self._token(place + 1)
        if before is not None and before.value == ".":
            before = self._token(place - 2)  # "No. 12: 50% red"
        is_colon = following is not None and following.value in COLONS
        is_label = (
            is_colon
            and before is not None
            and (  # "order 12: 50% red"
                before.kind in {"noun", "filler"} or is_word(self._text, before)
            )
        )
        return self._reaches(place, -1, crosses=crosses_back) or (
            not is_label and self._reaches(place, 1, crosses=True)
        )

    def is_before_word(self, place: int) -> bool:
        """Return whether a word stands behind a number, not written together with it as that of "35mm"."""
        following = self._token(place + 1)
        is_apart = following is not None and following.start > self._tokens[place].end
        return is_apart and following is not None and is_word(self._text, following)

    def is_begun_range(self, place: int) -> bool:
        """Return whether a range begins with a number: "20 to maybe 30%"."""
        following = self._token(place + 1)
        return following is not None and following.kind in {"to", "or"}

    def is_stuck_to_letter(self, place: int) -> bool:
        """Return whether a letter stands directly before an amount and may be a digit of it: "l0%"."""
        before = self._token(place - 1)
        if before is None or before.end != self._tokens[place].start or before.end - before.start != 1:
            return False
        letter = self._text[before.start]
        return letter in LIKE_DIGITS or (before.kind == "word" and letter.isalpha() and letter < FIRST_HAN)

    def _token(self, place: int) -> Token | None:
        return self._tokens[place] if 0 <= place < len(self._tokens) else None

    def _is_counting(self, place: int) -> bool:
        """Return whether a number is one of something else, "2 tiles", or a weight: "(red:1.2)"."""
        before, following = self._token(place - 1), self._token(place + 1)
        if following is None:
            return False
        is_weight = before is not None and before.value == ":" and following.value == ")"
        return is_weight or following.kind == "noun" or is_word(self._text, following)

    def _reaches(self, place: int, step: int, *, crosses: bool) -> bool:
        """Return whether a name follows on one side; a further number on the way stands beside it itself."""
        at = place + step
        while (token := self._token(at)) is not None:
            if self._is_name(place, at):
                return True
            if token.kind in CUTS:
                if not crosses or not self._is_alone(place):
                    return False
                crosses = False  # one is enough: "20, 5% red"
            elif self._ends(at, step):
                return False
            at += step
        return False

    def _ends(self, at: int, step: int) -> bool:
        """Return whether a token ends what may stand between a number and a name."""
        token, following = self._tokens[at], self._token(at + 1)
        is_stop = token.value == "." and following is not None and token.end < following.start
        is_end = self._text[token.start] in ENDS and (
            step < 0 or self._text[token.end : token.end + 1].isspace()
        )
        if is_end or (step < 0 and is_stop):
            return True
        return token.kind not in BETWEEN and (token.kind != "word" or is_word(self._text, token))

    def _is_alone(self, place: int) -> bool:
        """Return whether nothing but numbers and signs stands between two separators."""
        for step in (-1, 1):
            at = place + step
            while (token := self._token(at)) is not None and token.kind not in CUTS:
                if token.kind not in ALONE:
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
