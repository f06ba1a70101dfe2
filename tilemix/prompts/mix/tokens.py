"""Cut a prompt into the pieces that a color mix is made of: one pass, linear in its length."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilemix.prompts.mix.words import fold, vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WORDS = 3  # in a phrase of the vocabulary; the longest has two
HAN_LETTERS = 5  # in a Chinese word of the vocabulary; the longest has four

HAN = "\u3400-\u4dbf\u4e00-\u9fff"
LETTER = rf"(?:[^\W\d_{HAN}]|[\u0300-\u036f])"
# Every quantifier is possessive: a match is never given back, so nothing is tried twice.
PIECE = re.compile(
    rf"""
    (?P<space>  (?:(?![\n\r\u2028\u2029])\s|[\u00ad\u200b-\u200f\u2060\ufeff])++ )
    |(?P<ral>   (?:RAL|РАЛ)[ \t\u00a0-]*+\d++ )
    |(?P<hex>   \#(?:[0-9a-f]{{6}}|[0-9a-f]{{3}})(?!\w) )
    |(?P<number>\d++(?:[.,．]\d++)*+ )
    |(?P<sign>  [%％﹪٪] )
    |(?P<separator> [,;+/|&，；＋／、､\n\r\u2028\u2029] )
    |(?P<link>  [-‐‑–—−:.=()\[\]：（）＝*•·~"'`«»„“”‘’] )
    |(?P<vulgar>[¼½¾⅓⅔] )
    |(?P<han>   [{HAN}]++ )
    |(?P<word>  {LETTER}++(?:['’ʼ\-‐‑]{LETTER}++)*+ )
    |(?P<other> . )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

Kind = Literal[
    "percent",  # "50%", "12,5 percent"; value: the number as typed
    "fraction",  # "half"; value: its percent
    "rest",
    "color",  # a color word; value: the trade name
    "ral",  # "RAL 3016"; value: the digits
    "hex",  # "#aa3f27"
    "separator",  # between shares: comma, semicolon, plus, slash, new line, "and"
    "link",  # between a share and its color: hyphen, colon, bracket, quote, "of"
    "granules",  # a word such as "granules" or "крошка", which adds nothing
    "word",  # anything else
]


class Token(NamedTuple):
    """A piece of the prompt, text[start:end]."""

    kind: Kind
    start: int
    end: int
    value: str = ""


class _Piece(NamedTuple):
    kind: str
    start: int
    end: int
    text: str


def tokenize(text: str) -> list[Token]:
    """Return the tokens of `text` in order; spaces are left out."""
    pieces = list(_cut(text))
    tokens: list[Token] = []
    place = 0
    while place < len(pieces):
        token, used = _read(pieces, place)
        tokens.append(token)
        place += used
    return tokens


def _cut(text: str) -> Iterator[_Piece]:
    for match in PIECE.finditer(text):
        kind = match.lastgroup or "other"
        if kind == "han":
            yield from _cut_han(match[0], match.start())
        elif kind == "word" and "-" in match[0]:
            yield from _cut_hyphenated(match[0], match.start())
        elif kind != "space":
            yield _Piece(kind, match.start(), match.end(), match[0])


def _cut_hyphenated(word: str, start: int) -> Iterator[_Piece]:
    """Cut "half-red" and "rest-black" in two; "dark-green" stays one word."""
    words = vocabulary()
    head, _, tail = word.partition("-")
    meaning = words.get(fold(head))
    if tail and meaning and meaning.kind in {"fraction", "rest"} and fold(word) not in words:
        yield _Piece("word", start, start + len(head), head)
        start, word = start + len(head) + 1, tail
    yield _Piece("word", start, start + len(word), word)


def _cut_han(run: str, start: int) -> Iterator[_Piece]:
    """Cut a run of Chinese characters, which has no spaces, into the longest known words."""
    words = vocabulary()
    place = unknown = 0
    while place < len(run):
        for length in range(min(HAN_LETTERS, len(run) - place), 0, -1):
            if run[place : place + length] in words:
                if unknown < place:
                    yield _Piece("word", start + unknown, start + place, run[unknown:place])
                yield _Piece("word", start + place, start + place + length, run[place : place + length])
                place += length
                unknown = place
                break
        else:
            place += 1
    if unknown < place:
        yield _Piece("word", start + unknown, start + place, run[unknown:place])


def _read(pieces: list[_Piece], place: int) -> tuple[Token, int]:
    """Return the token that begins at `place`, and how many pieces it takes."""
    piece = pieces[place]
    match piece.kind:
        case "number":
            following = pieces[place + 1] if place + 1 < len(pieces) else None
            if following is not None and following.kind == "sign":
                return Token("percent", piece.start, following.end, piece.text), 2
            meaning, _, end, used = _read_phrase(pieces, place + 1)
            if meaning == "percent":
                return Token("percent", piece.start, end, piece.text), 1 + used
        case "word" | "vulgar":
            meaning, value, end, used = _read_phrase(pieces, place)
            match meaning:
                case "color" | "fraction" | "rest" | "granules":
                    return Token(meaning, piece.start, end, value), used
                case "and":
                    return Token("separator", piece.start, end), used
                case "of":
                    return Token("link", piece.start, end), used
        case "ral":
            return Token("ral", piece.start, piece.end, fold(piece.text).lstrip("ralрал \t")), 1
        case "hex" | "separator" | "link":
            return Token(piece.kind, piece.start, piece.end, piece.text), 1
    return Token("word", piece.start, piece.end), 1


def _read_phrase(pieces: list[_Piece], place: int) -> tuple[str, str, int, int]:
    """Find the longest phrase of the vocabulary at `place`: its kind ("" for none), value, end, pieces taken."""
    words = vocabulary()
    phrase = ""
    best = ("", "", 0, 0)
    for used, piece in enumerate(pieces[place : place + MOST_WORDS], start=1):
        if piece.kind not in {"word", "vulgar"}:
            break
        phrase = f"{phrase} {fold(piece.text)}" if phrase else fold(piece.text)
        if meaning := words.get(phrase):
            best = (meaning.kind, meaning.value, piece.end, used)
    return best
