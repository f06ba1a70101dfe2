"""Prompt editing, as the web UIs write it: other words from a step on.

=================  ===================================================
`[from:to:when]`   from, then to
`[to:when]`        nothing, then to
`[from::when]`     from, then nothing
`[a|b|c]`          a in step 1, b in step 2, c in step 3, a in step 4
=================  ===================================================

`when` is a step, or with a decimal point a fraction of the steps; the text changes after it. All may be nested.
Brackets that do not pair off, and those around anything else, are text here: emphasis is read later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tilemix.errors import Message, PromptError
from tilemix.prompts.language.punctuation import find_punctuation
from tilemix.prompts.language.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_VERSIONS = 20  # different texts of one prompt
TOKEN = re.compile(r"(?P<mark>[:|])|(?P<open>[(\[])|(?P<close>[)\]])|(?:\\.|\\|[^\\\[\]():|])++", re.DOTALL)
WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*", re.IGNORECASE)
SHOWN = 40  # characters of a bracket in a message
MARKS = re.compile("[:|]")
PAIRS = {")": "(", "]": "["}

Range = tuple[int, int]
Item: TypeAlias = "Range | _Bracket | _Edit"


class Version(NamedTuple):
    """What a prompt is up to a step."""

    last_step: int  # 1-based; the steps in all for the last version
    text: Traced


@dataclass(slots=True)
class _Bracket:
    """A bracket, with the stretches of text and the brackets in it."""

    start: int  # its place in the text
    kind: str  # "(" or "[", "" for the whole text
    items: list[Item] = field(default_factory=list)
    colons: list[int] = field(default_factory=list)  # items that are ":"
    pipes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Edit:
    """A bracket whose text depends on the step."""

    start: int
    end: int
    options: list[list[Item]]
    when: int | None  # None: the options take turns

    def at(self, step: int) -> list[Item]:
        """Return what stands in its place at a step."""
        if self.when is None:
            return self.options[(step - 1) % len(self.options)]
        return self.options[0] if step <= self.when else self.options[1]

    def find_fault(self, steps: int) -> str | None:
        """Return the code of the note if some of its words stand at no step; None: all of them stand."""
        if self.when is None:
            return "prompt-edit-cut-short" if any(self.options[steps:]) else None
        if self.when >= steps:
            return "prompt-edit-without-effect"
        return "prompt-edit-cut-short" if self.when == 0 and self.options[0] else None


def read_editing(text: Traced, steps: int, *, field: str) -> tuple[list[Version], tuple[Message, ...], bool]:
    """Return the versions of a text over `steps` steps, notes of edits that change nothing, and whether it has edits.

    Raises:
        PromptError: there are more than 20 different versions.
    """
    if "[" not in text.text or not MARKS.search(text.text):
        return [Version(steps, text)], (), False
    reader = _Reader(text, steps)
    whole = reader.read()
    if not reader.edits:
        return [Version(steps, text)], (), False
    lasts = {steps}
    for edit in reader.edits:
        lasts |= set(range(1, steps)) if edit.when is None else {edit.when} & set(range(1, steps))
    found: list[Version] = []
    different: dict[tuple[Range, ...], Traced] = {}
    for last in sorted(lasts):
        ranges = tuple(_list_ranges(whole, last))
        if ranges not in different:
            if len(different) == MOST_VERSIONS:
                raise PromptError("prompt-too-many-versions", field=field, most=MOST_VERSIONS)
            different[ranges] = text.pick(ranges)
        found.append(Version(last, different[ranges]))
    notes = tuple(
        Message(
            code,
            {
                "typed": text.text[edit.start : edit.end][:SHOWN],
                "position": text.position(edit.start),
                "steps": steps,
            },
            field,
        )
        for edit in reader.edits
        if (code := edit.find_fault(steps)) is not None
    )
    groups = groupby(found, key=lambda version: version.text.text)
    return [list(group)[-1] for _, group in groups], notes, True


class _Reader:
    def __init__(self, text: Traced, steps: int) -> None:
        self._text = text.text
        self._steps = steps
        self.edits: list[_Edit] = []

    def read(self) -> _Bracket:
        """Return the whole text as a tree."""
        whole = _Bracket(0, "")
        stack = [whole]
        for match in TOKEN.finditer(self._text):
            kind, span = match.lastgroup, match.span()
            if kind == "mark":
                marks = stack[-1].colons if match[0] == ":" else stack[-1].pipes
                marks.append(len(stack[-1].items))
                stack[-1].items.append(span)
            elif kind == "open":
                stack.append(_Bracket(match.start(), match[0]))
            elif kind == "close" and stack[-1].kind == PAIRS[match[0]]:
                closed = stack.pop()
                stack[-1].items.append(self._close(closed, match.end()))
            else:
                if kind == "close":  # of another kind: it is text, and so are the brackets around it
                    _flatten(stack)
                stack[-1].items.append(span)
        _flatten(stack)
        return whole

    def _close(self, bracket: _Bracket, end: int) -> _Bracket | _Edit:
        """Return an edit, if a bracket that ends before `end` is one; the bracket with its signs, if not."""
        options, when = self._split(bracket) if bracket.kind == "[" else ([], None)
        if options:
            self.edits.append(_Edit(bracket.start, end, options, when))
            return self.edits[-1]
        bracket.items[:0] = [(bracket.start, bracket.start + 1)]
        bracket.items.append((end - 1, end))
        return bracket

    def _split(self, bracket: _Bracket) -> tuple[list[list[Item]], int | None]:
        """Return the texts that an edit changes between, and when; none if the bracket is no edit."""
        items, colons, pipes = bracket.items, bracket.colons, bracket.pipes
        is_digits = len(colons) < 2 and find_punctuation(self._text, bracket.start) is not None
        last = items[-1] if items else ()
        if (
            1 <= len(colons) <= 2
            and colons[-1] == len(items) - 2
            and isinstance(last, tuple)
            and not is_digits
        ):
            number = WHEN.fullmatch(self._text, *last)
            if number is not None:
                first = items[: colons[0]] if len(colons) == 2 else []
                then = items[colons[0] + 1 : colons[1]] if len(colons) == 2 else items[: colons[0]]
                return [first, then], self._count_steps(number[1])
        if pipes and not colons and not is_digits:
            return [items[before + 1 : after] for before, after in pairwise([-1, *pipes, len(items)])], None
        return [], None

    def _count_steps(self, when: str) -> int:
        number = float(when) * (self._steps if "." in when else 1)
        return int(min(max(number, 0), self._steps))


def _flatten(stack: list[_Bracket]) -> None:
    """Make the brackets that are open text of the whole."""
    whole = stack[0]
    for bracket in stack[1:]:
        whole.items += [(bracket.start, bracket.start + 1), *bracket.items]
    del stack[1:]


def _list_ranges(whole: _Bracket, step: int) -> Iterator[Range]:
    """List the stretches of text that stand at a step, in order."""
    stack = [iter(whole.items)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, tuple):
                yield item
            else:
                stack.append(iter(item.at(step) if isinstance(item, _Edit) else item.items))
                break
        else:
            stack.pop()
