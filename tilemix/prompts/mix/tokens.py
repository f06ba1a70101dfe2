"""Pieces of a prompt -> the tokens that a color mix is made of: amounts, units, colors, joints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilemix.prompts.mix.pieces import VULGAR, cut
from tilemix.prompts.mix.words import TRADE, ambiguous_words, fold, meanings, number_words, vocabulary

if TYPE_CHECKING:
    from tilemix.prompts.mix.pieces import Piece
    from tilemix.prompts.mix.words import Meaning

MOST_WORDS = 4  # in a phrase of the vocabulary
VULGAR_VALUES = dict(zip(VULGAR, ["1/4", "1/2", "3/4", "1/3", "2/3", "1/5", "1/8", "1/10"], strict=True))
DASHES = "-‐‑–—−"
DECIMAL_POINTS = str.maketrans({",": ".", "．": "."})
MOST_DIGITS = 8  # in a number as typed

Kind = Literal[
    "percent",  # "50%", "12,5 percent"; value: the number as typed
    "minus",  # "-5", a number below zero
    "part",  # "3 parts"; value: the number as typed
    "weight",  # "15 kg"
    "number",  # alone
    "range",  # "10-20%", "10 to 20%"
    "ratio",  # "3:1", "60/40"; value: the numbers, separated by ":"
    "fraction",  # "half", "1/3"; value: its percent
    "equal",  # "equal parts"
    "each",
    "rest",
    "to",
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
    "and": "separator", "with": "with", "of": "link", "to": "to", "noun": "noun", "filler": "filler",
}  # fmt: skip


NameValue = Callable[[str], str | None]  # a hex value -> the name of its color; None: the chart's nearest


class Token(NamedTuple):
    """A piece of the prompt, text[start:end]."""

    kind: Kind
    start: int
    end: int
    value: str = ""
    source: str = ""  # "trade": a code of the trade


def tokenize(text: str) -> list[Token]:
    """Return the tokens of `text` in order; spaces are left out."""
    pieces = list(cut(text))
    languages = _rank_languages(pieces)
    tokens: list[Token] = []
    place = 0
    while place < len(pieces):
        token, used = _read(pieces, place, languages, tokens)
        tokens.append(token)
        place += used
    return tokens


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


def parse_number(typed: str) -> Decimal | None:
    """Return a number as typed; None where it is not one, or has more than eight digits."""
    plain = typed.translate(DECIMAL_POINTS)
    if not plain or plain.count(".") > 1 or len(plain) > MOST_DIGITS:
        return None
    return Decimal(plain)


def _rank_languages(pieces: list[Piece]) -> list[str]:
    """Return the languages of the text, that with the most words first; none where no word needs it."""
    ambiguous = ambiguous_words()
    if not any(piece.folded in ambiguous for piece in pieces):
        return []
    counts: Counter[str] = Counter()
    for piece in pieces:
        if piece.folded and piece.folded not in ambiguous:
            counts.update(list(meanings().get(piece.folded, ())))
    return [language for language, _ in counts.most_common()]


def _read(pieces: list[Piece], place: int, languages: list[str], before: list[Token]) -> tuple[Token, int]:
    """Return the token that begins at `place`, and how many pieces it takes."""
    piece = pieces[place]
    start, end = piece.start, piece.end
    match piece.kind:
        case "number" | "mixed":
            value = piece.text if piece.kind == "number" else _value_of_mixed(piece.text)
            return _read_number(pieces, place, 1, value, languages, before)
        case "word" | "vulgar":
            return _read_words(pieces, place, languages, before)
        case "ratio" | "dashed":
            meaning, phrase_end, words = _read_phrase(pieces, place + 1, languages)
            if piece.kind == "dashed" and meaning is not None and meaning.kind == "percent":
                return Token("range", start, phrase_end), 1 + words
            is_signed = place + 1 < len(pieces) and pieces[place + 1].kind == "sign"
            end = pieces[place + 1].end if is_signed else end
            value = re.sub("[ ]?[:：∶‐‑–—−-][ ]?", ":", piece.text).replace(" ", "")
            return Token("ratio", start, end, value), 1 + is_signed
        case "ral":
            return Token("ral", start, end, fold(piece.text).lstrip("ralрал \t")), 1
        case "rgb":
            channels = [int(channel) for channel in re.findall(r"\d+", piece.text)[:3]]
            if max(channels) <= 255:
                return Token("hex", start, end, "#{:02x}{:02x}{:02x}".format(*channels)), 1
        case "hex" | "separator" | "link":
            return Token(piece.kind, start, end, piece.text), 1
    return Token("word", start, end), 1


def _value_of_mixed(typed: str) -> str:
    *whole, fraction = (
        re.split(r"[ \u00a0]", typed) if "/" in typed else (typed[:-1], VULGAR_VALUES[typed[-1]])
    )
    numerator, denominator = map(int, fraction.split("/"))
    if denominator == 0:
        return "0.0.0"
    value = Decimal(whole[0].strip()) + Decimal(numerator) / Decimal(denominator)
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _read_number(
    pieces: list[Piece], place: int, used: int, value: str, languages: list[str], before: list[Token]
) -> tuple[Token, int]:
    """Return the token of a number that takes `used` pieces, with the unit behind it."""
    start, end = pieces[place].start, pieces[place + used - 1].end
    following = pieces[place + used] if place + used < len(pieces) else None
    kind: Kind = "number"
    if following is not None and following.kind == "sign":
        kind, end, used = "percent", following.end, used + 1
    elif following is not None:
        meaning, phrase_end, words = _read_phrase(pieces, place + used, languages)
        unit = meaning.kind if meaning else ""
        if unit in {"percent", "part", "weight"}:
            kind, end, used = unit, phrase_end, used + words
    if kind == "number" and pieces[place].kind == "word":
        return Token("word", start, end), used
    if kind == "number" and [token.kind for token in before[-2:]] in (["number", "to"], ["number", "with"]):
        before.pop()
        first = before.pop()
        return Token("ratio", first.start, end, f"{first.value}:{value}"), used
    if kind == "percent" and _ends_range(before, start):
        before.pop()
        return Token("range", before.pop().start, end), used
    is_first = len(before) == 1 or (len(before) > 1 and before[-2].kind in {"separator", "with"})
    if kind != "number" and is_first and _is_dash(before[-1]) and before[-1].end == start:
        return Token("minus", before.pop().start, end, value), used
    return Token(kind, start, end, value), used


def _is_dash(token: Token) -> bool:
    return token.kind == "link" and token.value in DASHES


def _ends_range(before: list[Token], start: int) -> bool:
    """Return whether what stands before a percent makes it the end of a range: "10-", "10 to", "10 and"."""
    if len(before) < 2 or before[-2].kind not in {"number", "percent"}:
        return False
    joint = before[-1]
    if _is_dash(joint) or joint.value == "~":
        return before[-2].end == joint.start and joint.end == start
    if joint.kind == "to":
        return True
    is_alone = len(before) < 3 or before[-3].kind not in {"color", "ral", "hex"}
    return joint.kind == "separator" and not joint.value and before[-2].kind == "number" and is_alone


def _read_words(
    pieces: list[Piece], place: int, languages: list[str], before: list[Token]
) -> tuple[Token, int]:
    piece = pieces[place]
    meaning, end, used = _read_phrase(pieces, place, languages)
    number, number_used = _read_number_word(pieces, place)
    if number and number_used >= used:
        token, taken = _read_number(pieces, place, number_used, number, languages, before)
        if token.kind != "word":
            return token, taken
    if meaning is None:
        if piece.kind == "vulgar":
            numerator, denominator = map(int, VULGAR_VALUES[piece.text].split("/"))
            return Token("fraction", piece.start, piece.end, _percent(numerator, denominator)), 1
        return Token("word", piece.start, piece.end), 1
    if meaning.kind == "before":
        following = pieces[place + used] if place + used < len(pieces) else None
        number, number_used = _read_number_word(pieces, place + used)
        if following is not None and following.kind == "number":
            return Token("percent", piece.start, following.end, following.text), used + 1
        if number:
            end = pieces[place + used + number_used - 1].end
            return Token("percent", piece.start, end, number), used + number_used
    kind = OF_MEANING.get(meaning.kind, "word")
    source = TRADE if kind == "color" and TRADE in meanings()[_phrase(pieces, place, used)] else ""
    return Token(kind, piece.start, end, meaning.value, source), used


def _percent(numerator: int, denominator: int) -> str:
    """Return a fraction as a percent, with one decimal where it needs one."""
    return f"{Decimal(100) * numerator / denominator:.1f}".removesuffix(".0")


def percent_of_fraction(value: str) -> str | None:
    """Return the percent of "1/3" as a ratio token says it; None where it is not a part of a whole."""
    numbers = value.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() and len(number) <= 3 for number in numbers):
        return None
    numerator, denominator = map(int, numbers)
    return _percent(numerator, denominator) if 0 < numerator < denominator else None


def _phrase(pieces: list[Piece], place: int, used: int) -> str:
    return " ".join(piece.folded for piece in pieces[place : place + used])


def _read_phrase(pieces: list[Piece], place: int, languages: list[str]) -> tuple[Meaning | None, int, int]:
    """Find the longest phrase of the vocabulary at `place`: what it means (None: no phrase), its end, pieces taken."""
    words = vocabulary()
    phrase = ""
    best: tuple[Meaning | None, int, int] = (None, 0, 0)
    for used, piece in enumerate(pieces[place : place + MOST_WORDS], start=1):
        if not piece.folded:
            break
        phrase = f"{phrase} {piece.folded}" if phrase else piece.folded
        if used > 1 and phrase not in _beginnings():
            if phrase in words:
                best = (_choose(phrase, languages), piece.end, used)
            break
        if phrase in words:
            best = (_choose(phrase, languages), piece.end, used)
    return best


def _choose(phrase: str, languages: list[str]) -> Meaning:
    of_language = meanings()[phrase]
    return next((of_language[name] for name in languages if name in of_language), vocabulary()[phrase])


@cache
def _beginnings() -> frozenset[str]:
    """Return the beginnings of longer phrases: "the same" of "the same amount"."""
    phrases = [word.split() for word in (*vocabulary(), *number_words()) if " " in word]
    return frozenset(" ".join(words[:count]) for words in phrases for count in range(1, len(words)))


def _read_number_word(pieces: list[Piece], place: int) -> tuple[str, int]:
    """Find the longest number word at `place`: its digits ("" for none), pieces taken."""
    numbers = number_words()
    phrase = ""
    best = ("", 0)
    for used, piece in enumerate(pieces[place : place + MOST_WORDS], start=1):
        if not piece.folded:
            break
        phrase = f"{phrase} {piece.folded}" if phrase else piece.folded
        if phrase in numbers:
            best = (numbers[phrase], used)
        if phrase not in _beginnings():
            break
    return best
