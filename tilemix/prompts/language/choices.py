"""Choices that the seed makes: `{red|black}`, and `__color__`, a line of the file color.txt.

Both may be nested, and a line of a file may hold choices again. One number is drawn for each choice, when it ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tilemix.errors import Message, PromptError
from tilemix.prompts.checks import MAX_PROMPT_CHARACTERS
from tilemix.prompts.language.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tilemix.prompts.language.wildcards import Wildcards

MOST_CHOICES = 200
SHOWN = 40  # characters of a choice in a message
SIGNS = re.compile("[{]|__")
WILDCARD = r"__(?=[^\s_])(?P<name>(?:[^\s_]|_(?!_))++)__"
TOKEN = re.compile(WILDCARD + r"|(?P<sign>[{|}])|(?:\\.|[^\\{|}_]++|.)", re.DOTALL)
COUNTED = re.compile(r"\s*(?:[\d-]+\$\$|\d*\.?\d+::)")  # other tools' "2$$a|b" and "0.5::a|1::b"


class Choice(NamedTuple):
    """A choice and its outcome."""

    typed: str
    chosen: str
    position: int  # 1-based character


class Chosen(NamedTuple):
    """A text whose choices have been made."""

    text: Traced
    choices: tuple[Choice, ...]  # in the order drawn
    notes: tuple[Message, ...]


@dataclass(slots=True)
class _Frame:
    """A text in work: the prompt, or the line that a wildcard became."""

    tokens: Iterator[re.Match[str]]
    wildcard: str  # its name; "" for the prompt
    origin: int | None  # where the wildcard was typed; None: the prompt
    depth: int  # braces that were open when it began

    def trace(self, text: str, start: int) -> Traced:
        """Return a stretch of its text, with where it was typed."""
        origins = range(start, start + len(text)) if self.origin is None else [self.origin] * len(text)
        return Traced(text, origins)


@dataclass(slots=True)
class _Brace:
    """An open brace, or the whole text."""

    start: int  # in its own text
    options: list[list[Traced]] = field(default_factory=lambda: [[]])


def choose(text: str, seed: int, wildcards: Wildcards, *, field: str) -> Chosen:
    """Make the choices in a text; `field` names it in messages.

    Raises:
        PromptError: a wildcard is unknown or includes itself, there are too many choices, the text becomes too long.
    """
    if not SIGNS.search(text):
        return Chosen(Traced.begin(text), (), ())
    return _Chooser(text, seed, wildcards, field).choose()


class _Chooser:
    def __init__(self, text: str, seed: int, wildcards: Wildcards, field: str) -> None:
        self._draw = Random(seed).random
        self._wildcards = wildcards
        self._field = field
        self._whole = _Brace(0)
        self._braces = [self._whole]
        self._frames = [_Frame(TOKEN.finditer(text), "", None, 1)]
        self._choices: list[Choice] = []
        self._notes: list[Message] = []

    def choose(self) -> Chosen:
        """Read the text to its end."""
        while self._frames:
            frame = self._frames[-1]
            match = next(frame.tokens, None)
            if match is not None:
                self._take(match, frame)
                continue
            while len(self._braces) > frame.depth:  # never closed
                self._keep_as_text(self._braces.pop(), [], frame)
            self._frames.pop()
        text = Traced.join(self._whole.options[0])
        if len(text.text) > MAX_PROMPT_CHARACTERS:
            raise PromptError(
                "prompt-too-long", field=self._field, count=len(text.text), most=MAX_PROMPT_CHARACTERS
            )
        return Chosen(text, tuple(self._choices), tuple(self._notes))

    def _take(self, match: re.Match[str], frame: _Frame) -> None:
        is_inside = len(self._braces) > frame.depth
        if match["name"]:
            self._open_wildcard(match, frame)
        elif match["sign"] == "{":
            self._braces.append(_Brace(match.start()))
        elif match["sign"] == "|" and is_inside:
            self._braces[-1].options.append([])
        elif match["sign"] == "}" and is_inside:
            self._close(match, frame)
        else:
            self._braces[-1].options[-1].append(frame.trace(match[0], match.start()))

    def _open_wildcard(self, match: re.Match[str], frame: _Frame) -> None:
        typed, name = match[0][:SHOWN], match["name"]
        origin = match.start() if frame.origin is None else frame.origin
        names = [one.wildcard for one in self._frames if one.wildcard]
        if name in names:
            circle = " > ".join([*names[names.index(name) :], name])[:SHOWN]
            raise PromptError("prompt-wildcard-circle", field=self._field, names=circle, position=origin + 1)
        lines = self._wildcards.find(name, field=self._field, position=origin + 1)
        line = lines[self._pick(len(lines))]
        self._choices.append(Choice(typed, line, origin + 1))
        self._frames.append(_Frame(TOKEN.finditer(line), name, origin, len(self._braces)))

    def _close(self, match: re.Match[str], frame: _Frame) -> None:
        brace = self._braces.pop()
        if len(brace.options) == 1:
            self._keep_as_text(brace, [frame.trace("}", match.start())], frame)
            return
        typed = match.string[brace.start : match.end()][:SHOWN]
        position = frame.trace("{", brace.start).position(0)
        for option in brace.options:
            if option and COUNTED.match(option[0].text):
                raise PromptError("prompt-counted-choice", field=self._field, typed=typed, position=position)
        option = brace.options[self._pick(len(brace.options))]
        self._choices.append(Choice(typed, "".join(piece.text for piece in option), position))
        self._braces[-1].options[-1] += option

    def _keep_as_text(self, brace: _Brace, end: list[Traced], frame: _Frame) -> None:
        opening = frame.trace("{", brace.start)
        self._notes.append(Message("prompt-braces", {"position": opening.position(0)}, self._field))
        pieces = self._braces[-1].options[-1]
        for place, option in enumerate(brace.options):
            pieces += [frame.trace("|", brace.start)] if place else [opening]
            pieces += option
        pieces += end

    def _pick(self, count: int) -> int:
        if len(self._choices) == MOST_CHOICES:
            raise PromptError("prompt-too-many-choices", field=self._field, most=MOST_CHOICES)
        return int(self._draw() * count)
