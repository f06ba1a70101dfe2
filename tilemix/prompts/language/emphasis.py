r"""Emphasis, as the web UIs write it: `(x)` 1.1, `[x]` 1/1.1, `(x:1.5)`; nesting multiplies.

A backslash before `( ) [ ] \` makes them text, a bracket that is never closed reaches to the end, and `BREAK` begins a
new chunk. One pass with a stack for each kind of bracket, because the two kinds may overlap.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tilemix.errors import Message, PromptError
from tilemix.prompts.language.punctuation import find_punctuation
from tilemix.prompts.language.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tilemix.errors import Value

STRONGER = 1.1  # a round bracket; a square one divides by it
MOST_WEIGHT = 10.0  # up or down
MOST_NOTES = 5  # of what is not understood; a thousand would tell no more
SHOWN_BRACKET = 40  # characters of a bracket in a message
EXACT = 12  # decimals of a product, so that 1.1 / 1.1 is 1
SHOWN = 20  # characters of a weight in a message
BREAK = "BREAK"

TOKEN = re.compile(
    r"""
    \\(?P<escaped> [()\[\]\\]? )
    |(?P<open>     [(\[] )
    |:\s*+(?P<weight> [+-]?(?:[.\d]++(?:e[+-]?\d++)?|nan|inf(?:inity)?) )\s*+\)
    |(?P<close>    [)\]] )
    |(?P<text>     [^\\()\[\]:]++ | : )
    """,
    re.VERBOSE | re.IGNORECASE,
)
COUNT = re.compile(r"(?:^|[\s,;(])\d{1,4}\s*$")  # "red and black 3", before ":1)"
SHARE = re.compile(r"\s*\d+(?:[.,]\d+)?\s*%")  # "(red: 50%, black: 50%)"
RAL = re.compile(r"(?:RAL|РАЛ)[\s-]*\d+\s*$", re.IGNORECASE)
LONGEST_COUNT = 12  # characters that these two look at
BREAKS = re.compile(rf"\b{BREAK}\b")


class Fragment(NamedTuple):
    """Words of one weight."""

    text: str
    weight: float


class Emphasized(NamedTuple):
    """A text whose emphasis has been read."""

    plain: Traced  # without the syntax; a line end in the place of each BREAK
    weights: Sequence[float | None]  # of each character of it; None: a BREAK
    notes: tuple[Message, ...]


@dataclass(slots=True)
class _Group:
    """A bracket and what it holds."""

    place: int  # of the bracket, in the text
    start: int  # its first run
    end: int | None = None  # the run after its last; None: never closed
    factor: float = 1.0
    colon: int | None = None  # the last one in it, that no weight follows


def read_emphasis(text: Traced, *, field: str) -> Emphasized:
    """Read the emphasis in a text; `field` names it in messages.

    Raises:
        PromptError: a weight is not a number, or beyond 10.
    """
    reader = _Reader(text, field)
    place = 0
    while place < len(text.text):
        match = TOKEN.match(text.text, place)
        assert match is not None  # one of the five matches any character
        place = reader.take(match)
    return reader.finish()


class _Reader:
    """Reads a text token by token: runs of words, and the brackets around them."""

    def __init__(self, text: Traced, field: str) -> None:
        self._text = text
        self._field = field
        self._runs: list[tuple[int, int]] = []  # stretches of the text that are words
        self._breaks: set[int] = set()  # runs that are a BREAK
        self._groups: dict[str, list[_Group]] = {"(": [], "[": []}  # in the order of their opening
        self._open: dict[str, list[_Group]] = {"(": [], "[": []}
        self._notes: list[Message] = []

    def take(self, match: re.Match[str]) -> int:
        """Take a token and return where the next one begins."""
        kind, start, end = match.lastgroup, match.start(), match.end()
        if kind == "escaped":
            self._runs.append((start + 1, end))
        elif kind == "open":
            end = find_punctuation(match.string, start) or end
            if end > start + 1:
                self._runs.append((start, end))
            else:
                group = _Group(start, len(self._runs), factor=STRONGER if match[0] == "(" else 1 / STRONGER)
                self._groups[match[0]].append(group)
                self._open[match[0]].append(group)
        elif kind == "weight" and self._open["("]:
            if self._is_ratio(match):
                end -= 1
                self._runs.append((start, end))
                self._open["("][-1].colon = None
            else:
                self._close("(", self._read_weight(match))
        elif kind == "close" and self._open["(" if match[0] == ")" else "["]:
            group = self._close("(" if match[0] == ")" else "[")
            if group.colon is not None and not SHARE.match(match.string, group.colon + 1):
                self._note(group.place, end)
        else:
            if kind in ("close", "weight"):
                self._note(end - 1, end)
            elif match[0] == ":" and (around := [groups[-1] for groups in self._open.values() if groups]):
                max(around, key=lambda group: group.place).colon = start
            self._add_words(start, end)
        return end

    def _note(self, start: int, end: int) -> None:
        if len(self._notes) == MOST_NOTES:
            return
        typed, position = self._text.text[start:end][:SHOWN_BRACKET], self._text.position(start)
        self._notes.append(
            Message("prompt-not-understood", {"typed": typed, "position": position}, self._field)
        )

    def _close(self, bracket: str, factor: float | None = None) -> _Group:
        group = self._open[bracket].pop()
        group.end = len(self._runs)
        group.factor = group.factor if factor is None else factor
        return group

    def _is_ratio(self, match: re.Match[str]) -> bool:
        """Return whether what looks like a weight is the end of a ratio: "(red and black 3:1)"."""
        before = match.string[max(match.start() - LONGEST_COUNT, 0) : match.start()]
        return bool(match["weight"].isdecimal() and COUNT.search(before) and not RAL.search(before))

    def _read_weight(self, match: re.Match[str]) -> float:
        try:
            weight = float(match["weight"])
        except ValueError:  # "1.2.3"
            weight = math.nan
        if not abs(weight) <= MOST_WEIGHT:
            self._refuse(match["weight"][:SHOWN], match.start("weight"))
        return weight

    def _refuse(self, typed: str, place: int) -> NoReturn:
        position = self._text.position(place)
        raise PromptError(
            "prompt-bad-weight", field=self._field, typed=typed, position=position, most=MOST_WEIGHT
        )

    def _add_words(self, start: int, end: int) -> None:
        words = self._text.text
        for match in BREAKS.finditer(words, start, end):
            self._runs.append((start, start + len(words[start : match.start()].rstrip())))
            self._breaks.add(len(self._runs))
            self._runs.append(match.span())
            start = match.end()
            start += len(words[start:end]) - len(words[start:end].lstrip())
        self._runs.append((start, end))

    def finish(self) -> Emphasized:
        """Return what has been read."""
        ranges: list[tuple[int, int]] = []
        weights: list[float | None] = []
        for number, (factors, (start, end)) in enumerate(
            zip(zip(*map(self._multiply, "(["), strict=True), self._runs, strict=True)
        ):
            if number in self._breaks:
                ranges.append((start, start + 1))
                weights.append(None)
            elif start < end:
                weight = round(factors[0] * factors[1], EXACT)
                if not abs(weight) <= MOST_WEIGHT:
                    self._refuse(f"{weight:g}", start)
                ranges.append((start, end))
                weights += [weight] * (end - start)
        plain = self._text.pick(ranges)
        if self._breaks:
            letters = zip(plain.text, weights, strict=True)
            plain = Traced("".join("\n" if weight is None else one for one, weight in letters), plain.origins)
        return Emphasized(plain, weights, (*self._notes, *self._note_unclosed()))

    def _multiply(self, bracket: str) -> list[float]:
        """Return for each run the product of the brackets of one kind around it."""
        products = []
        around: list[tuple[int, float]] = []  # where each ends, the product up to it
        groups = iter(self._groups[bracket])
        group = next(groups, None)
        for run in range(len(self._runs)):
            while around and around[-1][0] <= run:
                around.pop()
            while group is not None and group.start == run:
                end = len(self._runs) if group.end is None else group.end
                if end > run:
                    around.append((end, group.factor * (around[-1][1] if around else 1)))
                group = next(groups, None)
            products.append(around[-1][1] if around else 1.0)
        return products

    def _note_unclosed(self) -> Iterator[Message]:
        for bracket, groups in self._open.items():
            if groups:
                position = self._text.position(groups[0].place)
                values: dict[str, Value] = {"typed": bracket, "position": position, "count": len(groups)}
                yield Message("prompt-unclosed", values, self._field)


def list_parts(weights: Sequence[float | None], text: str) -> list[list[Fragment]]:
    """Return the fragments of a text, cut at each BREAK and its spaces; `weights` are those of its characters."""
    parts: list[list[Fragment]] = [[]]
    place = 0
    for weight, group in groupby(weights):
        size = sum(1 for _ in group)
        if weight is None:
            parts += [[] for _ in range(size)]
        else:
            parts[-1].append(Fragment(text[place : place + size], weight))
        place += size
    for before, after in pairwise(parts):
        _strip(before, -1, str.rstrip)
        _strip(after, 0, str.lstrip)
    return parts


def _strip(part: list[Fragment], place: int, strip: Callable[[str], str]) -> None:
    """Take the spaces from one end of a part; `place` is 0 or -1."""
    while part:
        text, weight = part.pop(place)
        if stripped := strip(text):
            part.insert(len(part) if place else 0, Fragment(stripped, weight))
            return
