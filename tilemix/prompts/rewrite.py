"""From what the user typed to the prompt that is sent to the model.

The color mix is read and written in its canonical spelling, then the template
is filled::

    "50 % rot, 30 % schwarz, Rest weiß"
    -> "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% white, photorealistic rubber tile, ..."

Loads no torch, and numpy only to find the nearest granule color of a hex value
or an RAL number.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilemix.errors import Message, MixError
from tilemix.prompts.checks import check_prompt, check_text
from tilemix.prompts.mix import ColorMix, find_trade_codes, parse_mix

if TYPE_CHECKING:
    from tilemix.prompts.mix import Span
    from tilemix.prompts.template import PromptTemplate

logger = logging.getLogger(__name__)

NO_MIX = Message("mix-not-found", {}, "prompt")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the text encoders."""

    typed: str  # what the user typed
    positive: str  # what is sent
    negative: str  # "" is really empty
    mix: ColorMix | None  # None: no share was typed, so there is nothing to measure
    notes: tuple[Message, ...]  # what was read differently from what was typed; that no mix was found
    spans: tuple[Span, ...] = field(
        default=(), compare=False
    )  # what every part of the text does; () if untouched


def rewrite(text: str, template: PromptTemplate, *, negative_prompt: str | None = None) -> Prompt:
    """Return the prompt for `text`, and log its notes; a `negative_prompt` of None means the template's.

    Text with one of the template's trigger words or placeholder tokens is sent untouched.

    Raises:
        PromptError: a text is empty (the negative prompt may be), too long, or contains control characters.
        MixError: the color mix is not clear.
    """
    prompt = read_text(text, template, negative_prompt=negative_prompt)
    for note in prompt.notes:
        logger.warning("%s", note)
    return prompt


def read_text(text: str, template: PromptTemplate, *, negative_prompt: str | None = None) -> Prompt:
    """Do what `rewrite` does, and log no notes."""
    check_prompt(text)
    if negative_prompt is None:
        negative_prompt = template.negative_prompt
    else:
        check_text(negative_prompt, field="negative_prompt")
    marker = template.find_marker(text)
    if marker is not None:
        logger.info("prompt holds %r: sent untouched", marker)
        return Prompt(text, text, negative_prompt, _read_mix_if_clear(text), _note_trade_codes(text))
    parsed = parse_mix(text)
    notes = parsed.notes if parsed.mix else (*parsed.notes, NO_MIX)
    return Prompt(text, template.fill(parsed.text), negative_prompt, parsed.mix, notes, parsed.spans)


def _note_trade_codes(text: str) -> tuple[Message, ...]:
    """Say of the codes in a prompt that is sent untouched that the model may know other words for them."""
    return tuple(
        Message(
            "mix-known-by-another-word",
            {"typed": text[code.start : code.end], "position": code.start + 1, "color": code.value},
            "prompt",
        )
        for code in find_trade_codes(text)
    )


def _read_mix_if_clear(text: str) -> ColorMix | None:
    """Return the mix in a prompt that is sent untouched. It is only measured, so an unclear one is not refused."""
    try:
        return parse_mix(text).mix
    except MixError as error:
        logger.info("no mix to measure: %s", error)
        return None
