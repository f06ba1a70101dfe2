r"""The prompt language, as the web UIs have it: emphasis, editing by step, adapters by name, choices.

=============================================  ==================================================================
`(x)`, `((x))`, `[x]`, `(x:1.5)`               emphasis: 1.1, 1.21, 1/1.1, 1.5
`[from:to:when]`, `[to:when]`, `[from::when]`  other words from a step on
`[a|b]`                                        words that take turns
`BREAK`                                        begins a new chunk of 75 tokens
`<lora:name:0.4>`, `<hypernet:name:0.6>`       an adapter
`{a|b}`, `__color__`                           a choice, made by the seed
`\( \) \[ \] \\`                               the characters themselves
=============================================  ==================================================================

Texts and weights are those of the web UIs' own parser. Digits and percent signs never become syntax, so a color mix
stays what it is. Every stage takes time linear in the text, and none calls itself for a depth of brackets.

Loads no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tilemix.errors import Message, PromptError
from tilemix.prompts.language.choices import SIGNS
from tilemix.prompts.language.editing import read_editing
from tilemix.prompts.language.emphasis import MOST_NOTES, Emphasized, Fragment, list_parts, read_emphasis
from tilemix.prompts.language.tags import LoraTag, take_tags
from tilemix.prompts.language.traced import Traced

__all__ = ["Fragment", "LoraTag", "Script", "Traced", "Version", "parse"]

SHOWN = 20  # characters in a message
MANY_STEPS = 100  # so that an edit shows
# compel's own grammar, which earlier versions took: it would go to the model as words.
OTHER_NOTATIONS = (
    (re.compile(r"(?<![.\d])\s?\)\d\.\d+(?![\w%:/]|[.,]\d)"), "(x:1.3)"),
    (re.compile(r"(?<=\w)(?:\+{2,}|-{2,})(?![^\s,.;)\]])"), "(x:1.2)"),
    (re.compile(r"(?<=[\w)])[)\"](?:\++|-{2,})(?![^\s,.;)\]])"), "(x:1.2)"),
    (re.compile(r"(?<=[\w)])\"\d*\.\d+(?![\w%])|(?<=\w)\)\.\d+(?![\w%])"), "(x:1.3)"),
    (re.compile(r"\)\s?\^\s?\d[\d.]*"), "(x:1.3)"),
    (re.compile(r"\.(?:and|blend)\("), "BREAK"),
    (re.compile(r"\.swap\("), "[x:y:0.5]"),
    (re.compile(r"\b(?:with|use)Lora\("), "<lora:x:0.5>"),
)
# What other grammars, or this one in a slip, would read: a brace without its other half, a wildcard that is not closed,
# prompts that are joined by AND. "RED AND BLACK" is a text in capitals.
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
LEFT_OVER = re.compile(r"(?<![\w\\])__(?=[ \t]?[^\W_])[^\s,;_]*|\bAND\b(?=[\s\d%.,]+[^\W\d_]*[a-z])")


@dataclass(frozen=True, slots=True)
class Version:
    """What a prompt is up to a step."""

    last_step: int  # 1-based; all steps for the last version
    emphasized: Emphasized

    @property
    def parts(self) -> list[list[Fragment]]:
        """The words with their weights, cut at each BREAK."""
        return list_parts(self.emphasized.weights, self.emphasized.plain.text)


@dataclass(frozen=True, slots=True)
class Script:
    """A prompt whose syntax has been read."""

    text: Traced  # without the tags, with its edits and emphasis
    versions: tuple[Version, ...]  # by step, one at least
    tags: tuple[LoraTag, ...]
    notes: tuple[Message, ...]
    is_timed: bool  # it holds edits, whose steps are counted from the number of steps


def parse(text: Traced, *, steps: int, field: str) -> Script:
    """Read a prompt whose choices have been made; `field` names it in messages.

    Args:
        text: the prompt.
        steps: denoising steps that will be drawn.
        field: "prompt" or "negative_prompt".

    Raises:
        PromptError: something in it looks like syntax and is not.
    """
    text, tags = take_tags(text, field=field)
    edited, notes, is_timed = read_editing(text, steps, field=field)
    versions = tuple(
        Version(version.last_step, read_emphasis(version.text, field=field)) for version in edited
    )
    for version in versions:
        notes += tuple(note for note in version.emphasized.notes if note not in notes)
    return Script(text, versions, tuple(tags), notes, is_timed)


def refuse_other_notations(text: Traced, *, field: str) -> None:
    """Refuse what another grammar would read, and this one would leave to the model as words.

    Raises:
        PromptError: there is some.
    """
    for notation, right in OTHER_NOTATIONS:
        if match := notation.search(text.text):
            position = text.position(match.start())
            typed = match[0][:SHOWN]
            raise PromptError(
                "prompt-other-notation", field=field, typed=typed, position=position, right=right
            )


def note_left_over(text: Traced, *, field: str) -> list[Message]:
    """Return notes of what looks like syntax in a text whose choices have been made, and goes to the model as words."""
    found = [(match.start(), match[0]) for match in LEFT_OVER.finditer(text.text)]
    depth = 0
    for match in BRACES.finditer(text.text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            depth = 0
            found.append((match.start(), match[0]))
    return [
        Message("prompt-not-understood", {"typed": typed[:SHOWN], "position": text.position(start)}, field)
        for start, typed in sorted(found)[:MOST_NOTES]
    ]


def is_plain(text: str) -> bool:
    """Return whether a text is words alone: no choice, edit, emphasis, break or adapter in it."""
    if SIGNS.search(text):
        return False
    try:
        script = parse(Traced.begin(text), steps=MANY_STEPS, field="prompt")
    except PromptError:
        return False
    weights = [version.emphasized.weights for version in script.versions]
    return not script.tags and len(weights) == 1 and set(weights[0]) <= {1.0}
