"""Cut a prompt at the borders of its words, numbers and signs: one pass, linear in its length."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from tilemix.colors.shades import is_blend
from tilemix.prompts.mix.words import fold, number_words, units, vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

HAN_LETTERS = 5  # in a Chinese word of the vocabulary
LONGEST_LETTERS = 40  # of a word that can be one of the vocabulary

HAN = "\u3400-\u4dbf\u4e00-\u9fff"
LETTER = rf"(?-i:[^\W\d_{HAN}]|[\u0300-\u036f])"  # ranges of no case compile slowly under (?i)
VULGAR = "¼½¾⅓⅔⅕⅛⅒"
NUMBER = r"(?:\d++(?:[.,．]\d++)*+|(?<![\w.,])\.\d++)"
# Every quantifier is possessive: what a piece has taken it never gives back, so nothing is tried twice.
PIECE = rf"""
    (?P<space>  (?:(?![\n\r\u2028\u2029])\s)++ )
    |(?P<ral>   (?:RAL|РАЛ)[ \t\u00a0-]*+\d++ )
    |(?P<hex>   \#(?:[0-9a-f]{{6}}|[0-9a-f]{{3}})(?!\w) )
    |(?P<rgb>   rgba?\([ ]*+\d{{1,3}}[ ,]++\d{{1,3}}[ ,]++\d{{1,3}}(?:[ ]*+[,/][ ]*+[\d.]++%?)?[ ]*+\) )
    |(?P<code>  [A-Za-z]++(?<=p)\d{{1,3}}(?![^\W_]) )
    |(?P<mixed> \d{{1,3}}[ \u00a0]\d{{1,2}}/\d{{1,2}}(?![\d/:]) | \d{{1,3}}[ \u00a0]?[{VULGAR}] )
    |(?P<ratio> {NUMBER}(?:[:/]{NUMBER})++(?!\d)
                | {NUMBER}[ ]?[:：∶/][ ]?{NUMBER}(?:[ ]?[:：∶/][ ]?{NUMBER})*+(?![\d.,]*+[ ]?[%％]) )
    |(?P<dashed>{NUMBER}[-‐‑–—−]{NUMBER}(?:[-‐‑–—−]{NUMBER})*+(?![ ]?[%％]|\w) )
    |(?P<number>{NUMBER} )
    |(?P<sign>  [%％﹪٪] )
    |(?P<separator> [,;+/|&，；＋／、､\n\r\u2028\u2029] )
    |(?P<link>  [-‐‑–—−:.=()\[\]：（）【】《》〈〉「」『』〔〕＝*•·~～〜…±≈"'`«»„“”‘’_→>] )
    |(?P<vulgar>[{VULGAR}] )
    |(?P<han>   (?-i:[{HAN}]++) )
    |(?P<word>  {LETTER}++(?:['’ʼ\-‐‑_]{LETTER}++)*+ )
    |(?P<other> . )
    """
JOINTS = re.compile("[-‐‑_]")
JOINED = re.compile("[-‐‑_]|[^-‐‑_]+")

PieceKind = Literal[
    "ral", "hex", "rgb", "mixed", "ratio", "dashed", "number", "sign", "separator", "link", "vulgar", "word", "other",
]  # fmt: skip
PIECE_KINDS: dict[str, PieceKind] = {kind: kind for kind in get_args(PieceKind)}


class Piece(NamedTuple):
    """A piece of the prompt, text[start:end]; a sign may have no length."""

    kind: PieceKind
    start: int
    end: int
    text: str
    folded: str = ""  # what the vocabulary has it under; "": not a word


@cache
def _compile() -> re.Pattern[str]:
    dotted = "|".join(re.escape(word).replace(r"\.", r"\.[ ]?") for word in units() if "." in word)
    flags = re.VERBOSE | re.IGNORECASE | re.DOTALL
    return re.compile(rf"(?P<dotted>(?<!\w)(?:{dotted})) | {PIECE}", flags)


def cut(text: str) -> Iterator[Piece]:
    """Yield the pieces of `text` in order; spaces are left out."""
    for match in _compile().finditer(text):
        kind = match.lastgroup or "other"
        if kind == "han":
            yield from _cut_han(match[0], match.start())
        elif kind == "code":
            yield from _cut_code(match[0], match.start())
        elif kind == "word":
            yield from _cut_joined(match[0], match.start())
        elif kind == "dotted":
            yield Piece("word", match.start(), match.end(), match[0], fold(match[0].replace(" ", "")))
        elif kind != "space":
            folded = fold(match[0]) if kind in {"vulgar", "other"} else ""
            yield Piece(PIECE_KINDS[kind], match.start(), match.end(), match[0], folded)


def _word(text: str, start: int) -> Piece:
    return Piece("word", start, start + len(text), text, fold(text) if len(text) <= LONGEST_LETTERS else "")


def _cut_code(typed: str, start: int) -> Iterator[Piece]:
    """Cut "BLACKp15" in two, the percent with a sign of no length; "mp3" stays a word."""
    name, _, digits = typed.rpartition("p")
    meaning = vocabulary().get(fold(name))
    if name.isupper() or (meaning is not None and meaning.kind == "color"):
        yield _word(name, start)
        end = start + len(typed)
        yield Piece("number", start + len(name), end, digits)
        yield Piece("sign", end, end, "")
    else:
        yield Piece("word", start, start + len(typed), typed, fold(typed))


def _cut_joined(word: str, start: int) -> Iterator[Piece]:
    """Cut "half-red", "red-black" and "red_black" where every part is known; "dark-green" stays one word.

    Two colors are joined by a separator, unless they make one hue: "blue-green".
    """
    whole = _word(word, start)
    words = vocabulary()
    if not JOINTS.search(word) or not whole.folded or whole.folded in words or whole.folded in number_words():
        yield whole
        return
    if (joined := whole.folded.replace(" ", "")) in words and words[joined].kind == "color":
        yield whole._replace(folded=joined)
        return
    found = list(JOINED.finditer(word))
    parts = [_word(one[0], start + one.start()) for one in found[::2]]
    is_number = parts[0].folded in number_words()
    if is_number and len(parts) == 2 and (parts[1].folded in units() or _adds_up(*parts)):
        yield parts[0]._replace(end=parts[1].start)  # "two-thirds"
        yield parts[1]
        return
    meanings = [words.get(part.folded) for part in parts]
    is_begun = meanings[0] is not None and meanings[0].kind in {"fraction", "rest"}
    if not is_begun and not all(meanings) and not all(part.folded in number_words() for part in parts):
        yield whole
        return
    yield parts[0]
    for joint, part, (left, right) in zip(found[1::2], parts[1:], pairwise(meanings), strict=True):
        is_pair = (
            left and right and left.kind == right.kind == "color" and not is_blend(left.value, right.value)
        )
        kind: PieceKind = "separator" if is_pair else "link"
        yield Piece(kind, start + joint.start(), start + joint.end(), joint[0])
        yield part


def _adds_up(tens: Piece, unit: Piece) -> bool:
    """Return whether two words joined by a hyphen are one number: "seventy-five"."""
    values = [number_words().get(part.folded, "") for part in (tens, unit)]
    return len(values[0]) == 2 and values[0].endswith("0") and len(values[1]) == 1


def _cut_han(run: str, start: int) -> Iterator[Piece]:
    """Cut a run of Chinese characters, which has no spaces, into the longest known words."""
    words, numbers = vocabulary(), number_words()
    place = unknown = 0
    while place < len(run):
        for length in range(min(HAN_LETTERS, len(run) - place), 0, -1):
            piece = run[place : place + length]
            if piece in words or piece in numbers:
                if unknown < place:
                    yield _word(run[unknown:place], start + unknown)
                yield _word(piece, start + place)
                place += length
                unknown = place
                break
        else:
            place += 1
    if unknown < place:
        yield _word(run[unknown:place], start + unknown)
