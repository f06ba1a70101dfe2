"""Adapters named in a prompt, as the web UIs write it: `<lora:name>`, `<lora:name:0.4>`, `<lora:name:0.4:0.8>`.

The first number is the scale in the text encoders, the second that in the UNet; one alone is both, none is 1. They may
be named: `<lora:name:te=0.4:unet=0.8>`; with `unet=0.8` alone the text encoders have 1. A hypernetwork,
`<hypernet:name:0.6>`, has one strength.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from tilemix.errors import PromptError

if TYPE_CHECKING:
    from tilemix.prompts.language.traced import Traced

MOST_TAGS = 16
MOST_SCALE = 10.0  # up or down
SHOWN = 40  # characters of a tag in a message
TAG = re.compile(r"<\s*+(\w++)\s*+:([^<>]*+)(>?)")
HYPERNETWORK = "hypernet"
KINDS = ("lora", "lyco", HYPERNETWORK)
PARTS = ("te", "unet")


class LoraTag(NamedTuple):
    """An adapter that a prompt asks for."""

    name: str  # as typed
    text_scale: float  # in the text encoders
    unet_scale: float
    position: int  # 1-based character
    kind: str = KINDS[0]  # one of KINDS


def take_tags(text: Traced, *, field: str) -> tuple[Traced, list[LoraTag]]:
    """Take the tags out of a text, each with the comma or the space that would be left over.

    Raises:
        PromptError: a tag is not closed, is of another kind, or has a scale that cannot be used; there are too many.
    """
    tags: list[LoraTag] = []
    kept: list[tuple[int, int]] = []
    words = text.text
    place = 0
    last = ","  # character that is kept; a text begins as after a comma
    for match in TAG.finditer(words):
        typed = words[match.start() : match.end()][:SHOWN]
        position = text.position(match.start())
        if not match[3]:
            raise PromptError("prompt-bad-tag", field=field, typed=typed, position=position)
        if match[1].lower() not in KINDS:
            raise PromptError("prompt-bad-tag", field=field, typed=typed, position=position)
        if len(tags) == MOST_TAGS:
            raise PromptError("prompt-too-many-tags", field=field, most=MOST_TAGS)
        tags.append(_read_tag(match[2], typed, position, field)._replace(kind=match[1].lower()))
        end = place + len(words[place : match.start()].rstrip())
        last = words[end - 1] if end > place else last
        following = words[match.end() :].lstrip()
        kept.append((place, end))
        place = match.end()
        if last == "," and following.startswith(","):  # "wet, <lora:a>, matt": one of the two commas goes
            place = len(words) - len(following) + 1
    if not tags:
        return text, tags
    kept.append((place, len(words)))
    return _strip(text.pick(kept)), tags


def _strip(text: Traced) -> Traced:
    """Return a text without the spaces before it, and the comma and spaces after it."""
    start = len(text.text) - len(text.text.lstrip())
    return text.pick([(start, len(text.text.rstrip().removesuffix(",").rstrip()))])


def _read_tag(inside: str, typed: str, position: int, field: str) -> LoraTag:
    name, *numbers = (part.strip() for part in inside.split(":"))
    scales: dict[str, float] = {}
    places = iter(PARTS)  # of the numbers without a name
    for number in numbers[: len(PARTS)]:
        named, sign, value = (part.strip() for part in number.rpartition("="))
        part = named if sign else next(places)
        if part in scales:
            part = ""  # twice
        try:
            scales[part] = float(value)
        except ValueError:
            scales[part] = math.nan
    if not name or len(numbers) > len(PARTS) or set(scales) - set(PARTS):
        raise PromptError("prompt-bad-tag", field=field, typed=typed, position=position)
    if not all(abs(scale) <= MOST_SCALE for scale in scales.values()):
        raise PromptError("prompt-bad-scale", field=field, typed=typed, position=position, most=MOST_SCALE)
    text_scale = scales.get("te", 1.0)
    return LoraTag(name, text_scale, scales.get("unet", text_scale), position)
