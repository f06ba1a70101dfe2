"""Pieces of a prompt -> the tokens that a color mix is made of: amounts, units, colors, joints."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilemix.prompts.mix.amounts import CROSSES, Amount, AmountReader
from tilemix.prompts.mix.numbers import (
    VULGAR_VALUES,
    Number,
    count_languages,
    find_phrase,
    find_unit,
    read_number,
)
from tilemix.prompts.mix.pieces import cut
from tilemix.prompts.mix.words import MINUS, PART, TRADE, ambiguous_words, fold, meanings, vocabulary

if TYPE_CHECKING:
    from tilemix.prompts.mix.words import Meaning

DASHES = "-‐‑–—−"
RANGE_SIGNS = frozenset(DASHES + "~～〜…±.")
Kind = Literal[
    "percent",  # "50%", "12,5 percent"; value: the number as typed
    "minus",  # "-5", a number below zero
    "part",  # "3 parts"; value: the number as typed
    "weight",  # "15 kg"; value: grams
    "unclear",  # "1.500 kg" where the text does not say whether that is 1.5
    "number",  # alone
    "range",  # "10-20%", "10 to 20%"
    "ratio",  # "3:1", "60/40"; value: the numbers, separated by ":" or "/"
    "unread",  # a number, a fraction or a percent sign that belongs to no share
    "fraction",  # "half", "1/3"; value: its percent
    "equal",  # "equal parts"
    "each",
    "rest",
    "to",
    "or",  # between two numbers of which one counts
    "color",  # a color word; value: the trade name
    "shade",  # "light"
    "ral",  # "RAL 3016"; value: the digits
    "hex",  # "#aa3f27", "rgb(170, 63, 39)"; value: "#aa3f27", or the name of the color that it is
    "separator",  # between shares: comma, semicolon, plus, slash, new line, "and"
    "with",  # between a base and its accents
    "link",  # between a share and its color: hyphen, colon, bracket, quote, "of"
    "noun",  # a word such as "granules" or "крошка", which says nothing new
    "filler",  # "about", "a"
    "denied",  # "no black"
    "word",  # anything else
]
OF_MEANING: dict[str, Kind] = {
    "color": "color", "shade": "shade", "fraction": "fraction", "equal": "equal", "rest": "rest", "each": "each",
    "percent": "unread", "and": "separator", "with": "with", "of": "link", "to": "to", "or": "or",
    "noun": "noun", "filler": "filler",
}  # fmt: skip


COUNTED: frozenset[Kind] = frozenset({"percent", "part", "weight", "fraction"})  # an amount with its unit

JOINTS: frozenset[Kind] = frozenset({"link", "to", "or", "with", "separator"})  # between two amounts

NameValue = Callable[[str], str | None]  # a hex value -> the name of its color; None: the chart's nearest


class Token(NamedTuple):
    """A piece of the prompt, text[start:end]."""

    kind: Kind
    start: int
    end: int
    value: str = ""
    source: str = (
        ""  # of a color: "trade" for a code of the trade; of parts: what is counted; of a ratio: its sign;
        # of a word: "limit" for "up to", "part" for "parts"
    )


def tokenize(text: str) -> list[Token]:
    """Return the tokens of `text` in order; spaces are left out."""
    return _Reader(text).read()


def name_nothing(_: str) -> str | None:
    """Leave every hex value to the chart."""
    return None


def name_values(tokens: list[Token], name_value: NameValue) -> list[Token]:
    """Return the tokens, each hex value that `name_value` has a name for with that in its place."""
    named = [name_value(token.value) if token.kind == "hex" else None for token in tokens]
    return [
        token if name is None else token._replace(value=name)
        for token, name in zip(tokens, named, strict=True)
    ]


class _Reader:
    """Reads the pieces of a text from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = list(cut(text))
        self.amounts = AmountReader(text, self.pieces)
        self.tokens: list[Token] = []
        is_ambiguous = any(piece.folded in ambiguous_words() for piece in self.pieces)
        counts = count_languages(self.pieces) if is_ambiguous else None
        self.languages = [language for language, _ in counts.most_common()] if counts else []

    def read(self) -> list[Token]:
        place = 0
        while place < len(self.pieces):
            token, used = self._read(place)
            self.tokens.append(token)
            place += used
        return self.tokens

    def _read(self, place: int) -> tuple[Token, int]:
        """Return the token that begins at `place`, and how many pieces it takes."""
        piece = self.pieces[place]
        match piece.kind:
            case "number" | "mixed" | "word" | "vulgar" | "other":
                amount = self._read_number(place)
                return self._read_words(place) if amount is None else self._take_amount(place, amount)
            case "ratio" | "dashed":
                return self._take_amount(place, self.amounts.read_ratio(place))
            case "sign":
                return self._take_amount(place, self.amounts.read_sign(place))
            case "ral":
                value = fold(piece.text).lstrip("ralрал \t")
                return Token("ral", piece.start, piece.end, value), 1
            case "rgb":
                channels = [int(channel) for channel in re.findall(r"\d+", piece.text)[:3]]
                if max(channels) <= 255:
                    value = "#{:02x}{:02x}{:02x}".format(*channels)
                    return Token("hex", piece.start, piece.end, value), 1
            case "hex" | "separator" | "link":
                return Token(piece.kind, piece.start, piece.end, piece.text), 1
        return Token("word", piece.start, piece.end), 1

    def _take(
        self, kind: Kind, place: int, used: int, value: str = "", source: str = ""
    ) -> tuple[Token, int]:
        return Token(kind, self.pieces[place].start, self.pieces[place + used - 1].end, value, source), used

    def _read_number(self, place: int) -> Amount | None:
        """Read a number with its unit; None where a word is not a number, or begins a longer phrase."""
        number = read_number(self.pieces, place)
        if number is None:
            return None
        is_word = self.pieces[place].kind == "word"
        words = find_phrase(self.pieces, place, vocabulary())[1] if is_word else 0
        if words > number.used:
            return None
        amount = self.amounts.read_unit(place, number)
        if amount.kind != "number":
            return amount
        if words == number.used or (is_word and self._is_article(place, number)):
            return None  # "ein", and "neuf", which is nine or new
        return self.amounts.read_crossed(place, number)

    def _is_article(self, place: int, number: Number) -> bool:
        """Return whether "one" or "a" is not a number: it stands neither in a ratio nor in a range."""
        is_one = number.value == "1" and not "\u3400" <= self.pieces[place].text[0] <= "\u9fff"
        if not is_one or [token.kind for token in self.tokens[-2:]] == ["number", "to"]:
            return False
        phrase, _ = find_phrase(self.pieces, place + number.used, vocabulary())
        return not phrase or self._choose(phrase).kind not in {"to", "or"}

    def _read_words(self, place: int) -> tuple[Token, int]:
        piece = self.pieces[place]
        phrase, used = find_phrase(self.pieces, place, vocabulary())
        if not phrase:
            fraction = VULGAR_VALUES.get(piece.text)
            if fraction is None:
                return self._take("word", place, 1)
            return self._take_amount(place, self.amounts.read_fraction_of(place, 1, fraction))
        meaning = self._choose(phrase)
        if meaning.kind == "before" and place + used < len(self.pieces):
            number = read_number(self.pieces, place + used)
            if number is not None:
                return self._take("percent", place, used + number.used, number.value)
        if meaning.kind == "fraction":
            return self._take_amount(place, self.amounts.read_fraction_of(place, used, meaning.value))
        if meaning.kind == "part":
            return self._take("noun", place, used, "", PART)
        kind = OF_MEANING.get(meaning.kind, "word")
        if kind == "color":
            return self._take(kind, place, used, meaning.value, TRADE if TRADE in meanings()[phrase] else "")
        unit, _ = find_unit(self.pieces, place, {"limit", "minus"})
        source = unit.kind if unit is not None and meaning.kind != "text" else ""
        return self._take(kind, place, used, meaning.value, source)

    def _choose(self, phrase: str) -> Meaning:
        of_language = meanings()[phrase]
        return next(
            (of_language[name] for name in self.languages if name in of_language), vocabulary()[phrase]
        )

    def _take_amount(self, place: int, amount: Amount) -> tuple[Token, int]:
        token, used = self._take(amount.kind, place, amount.used, amount.value, amount.source)
        return self._join(token), used

    def _join(self, token: Token) -> Token:
        """Return an amount, together with the tokens before it where they are one range or one ratio."""
        before = self.tokens
        if not before or not (before[-1].kind in JOINTS or before[-1].source == MINUS):
            return token
        is_pair = [one.kind for one in before[-2:]] in (["number", "to"], ["number", "with"])
        is_hyphen = len(before) > 1 and before[-2].kind == "number" and self._is_tight_dash(token.start)
        if token.kind == "number" and (is_pair or is_hyphen):
            before.pop()
            first = before.pop()
            return Token("ratio", first.start, token.end, f"{first.value}:{token.value}", ":")
        if token.kind in COUNTED and (length := self._count_range()):
            start = before[-length].start
            del before[-length:]
            return Token("range", start, token.end)
        is_first = len(before) == 1 or (len(before) > 1 and before[-2].kind in {"separator", "with"})
        if token.kind in COUNTED and before[-1].source == MINUS:
            return token._replace(kind="minus", start=before.pop().start)
        if token.kind in COUNTED and is_first and _is_dash(before[-1]) and before[-1].end == token.start:
            return token._replace(kind="minus", start=before.pop().start)
        return token

    def _is_tight_dash(self, start: int) -> bool:
        joint = self.tokens[-1]
        return _is_dash(joint) and self.tokens[-2].end == joint.start and joint.end == start

    def _count_range(self) -> int:
        """Return how many tokens before an amount are the beginning of a range: "10 -", "10 to", "10 and", "10..."."""
        before = self.tokens
        end = len(before)
        while end > 1 and before[end - 1].kind == "link" and not before[end - 1].value:
            end -= 1  # "tra il 20 e il 30%"
        at = end - 1
        while at > 0 and before[at].kind == "link" and before[at].value in RANGE_SIGNS:
            at -= 1
        signs = "".join(token.value for token in before[at + 1 : end])
        if signs:
            is_range = signs != "."
        else:
            joint = before[at]
            at -= 1
            is_and = joint.kind == "separator" and not joint.value
            is_range = joint.kind in {"to", "or"} or is_and
            if is_and and not (at >= 0 and before[at].kind == "number" and not self._is_behind_color(at)):
                return 0
        if at < 0 or not is_range or before[at].kind not in COUNTED | {"number", "ratio"}:
            return 0
        if before[at].kind in COUNTED and signs and self._is_behind_color(at):
            return 0  # "red 50% - 50% black"
        return len(before) - at

    def _is_behind_color(self, at: int) -> bool:
        return at > 0 and self.tokens[at - 1].kind in {"color", "ral", "hex"}


def is_word(text: str, token: Token) -> bool:
    """Return whether a token is a word, and not a sign such as "±" or "x"."""
    typed = text[token.start : token.end]
    return token.kind == "word" and typed not in CROSSES and any(map(str.isalnum, typed))


def _is_dash(token: Token) -> bool:
    return token.kind == "link" and token.value in DASHES
