"""From what the user typed to the prompt that is sent to the model.

The color mix is read and written in the words of the model's palette, then the
template is filled::

    "50 % rot, 30 % schwarz, Rest weiß"
    -> "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% white, photorealistic rubber tile, ..."

Loads no torch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilemix.errors import Message, MixError, Value
from tilemix.prompts.checks import check_prompt, check_text
from tilemix.prompts.mix import ColorMix, Span, find_trade_codes
from tilemix.prompts.reading import read_mix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tilemix.colors.palette import Palette
    from tilemix.prompts.template import PromptTemplate

logger = logging.getLogger(__name__)

NAMED = frozenset({"color", "base"})  # roles of colors
NO_MIX = Message("mix-not-found", {}, "prompt")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the text encoders."""

    typed: str  # what the user typed
    positive: str  # what is sent
    negative: str  # "" is really empty
    mix: ColorMix | None  # in the chart's names; None: no share was typed, so there is nothing to measure
    sent: ColorMix | None  # the same in the words of the model's palette
    notes: tuple[Message, ...]  # what was read differently from what was typed; that no mix was found
    spans: tuple[Span, ...] = field(
        default=(), compare=False
    )  # what every part of the text does; () if untouched


def rewrite(
    text: str,
    template: PromptTemplate,
    palette: Palette | None = None,
    *,
    negative_prompt: str | None = None,
) -> Prompt:
    """Return the prompt for `text`, and log its notes; a `negative_prompt` of None means the template's.

    Its colors are sent in the words of `palette`, the model's. Text with one of the template's trigger words or
    placeholder tokens is sent untouched.

    Raises:
        PromptError: a text is empty (the negative prompt may be), too long, or contains control characters.
        MixError: the color mix is not clear, or the palette has no color near one of it.
    """
    prompt = read_text(text, template, palette, negative_prompt=negative_prompt)
    for note in prompt.notes:
        logger.warning("%s", note)
    return prompt


def read_text(
    text: str,
    template: PromptTemplate,
    palette: Palette | None = None,
    *,
    negative_prompt: str | None = None,
) -> Prompt:
    """Do what `rewrite` does, and log no notes."""
    check_prompt(text)
    if negative_prompt is None:
        negative_prompt = template.negative_prompt
    else:
        check_text(negative_prompt, field="negative_prompt")
    marker = template.find_marker(text)
    if marker is not None:
        logger.info("prompt holds %r: sent untouched", marker)
        return _read_complete(text, palette, negative_prompt)
    read = read_mix(text, palette)
    notes = read.notes if read.mix else (*read.notes, NO_MIX)
    return Prompt(text, template.fill(read.text), negative_prompt, read.mix, read.sent, notes, read.spans)


def _read_complete(text: str, palette: Palette | None, negative_prompt: str) -> Prompt:
    """Read a prompt that is sent untouched. Its mix is only drafted and measured, so an unclear one is not refused."""
    try:
        read = read_mix(text, palette)
    except MixError as error:
        logger.info("no mix to measure: %s", error)
        notes = _note_other_words(text, find_trade_codes(text), palette)
        return Prompt(text, text, negative_prompt, None, None, notes)
    colors = [span for span in read.spans if span.role in NAMED] if palette is not None else []
    codes = [code for code in find_trade_codes(text) if code.start not in {color.start for color in colors}]
    notes = _note_other_words(text, sorted([*colors, *codes]), palette)
    return Prompt(text, text, negative_prompt, read.mix, read.sent, notes)


def _note_other_words(text: str, colors: Iterable[Span], palette: Palette | None) -> tuple[Message, ...]:
    """Say of the colors in a prompt that is sent untouched that the model knows them by other words."""
    notes = []
    for color in colors:
        typed, word = text[color.start : color.end], color.value
        if palette is not None:
            from tilemix.colors.answers import find_answer  # numpy

            answer = find_answer(palette, word)
            word = answer.color.word if answer is not None else word
        if typed.casefold() != word:
            values: dict[str, Value] = {"typed": typed, "position": color.start + 1, "color": word}
            notes.append(Message("mix-known-by-another-word", values, "prompt"))
    return tuple(notes)
