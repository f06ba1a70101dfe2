"""The web UIs' `parameters` text, written and read::

    ohwx_rubber_tile, 50% red, 50% black
    Negative prompt: blurry
    Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 1024x1024, Version: v1.10.1

The prompt and the negative prompt may have several lines. A value with a comma, a colon or a line end is a JSON
string. Some programs add a JSON object or list as it is, which the web UIs' own reader shreds; here it stays whole.

Source: the notation as A1111 1.10 writes and reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilemix.errors import Message

PARAMETERS_KEY = "parameters"  # of the text in a picture
NEGATIVE = "Negative prompt:"
# What web UIs, and sites that read their pictures, take for the start of another part.
PART_START = re.compile(rf"^(\s*)({NEGATIVE}|Steps:)", re.MULTILINE)
QUOTED = re.compile(r'[,:"\n]')
FEWEST_PAIRS = 3  # in the last line, for it to be parameters
# Keys have at most 80 characters here, so that a long text without a colon takes linear time.
PAIR = re.compile(r'(\w[\w \-/]{1,79}+):\s*+("(?:\\.|[^\\"])++"|[^,]*+)(?:,|$)')
BARE_JSON = re.compile(r"(?:^|,)\s*+(Hashes|Civitai resources|Civitai metadata):\s*+(?=[{\[])")


@dataclass(frozen=True, slots=True)
class Infotext:
    """How a program says that it made a picture, in the web UIs' terms."""

    prompt: str
    negative_prompt: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)  # in the order of the text
    notes: tuple[Message, ...] = field(default=(), compare=False)  # what is written here in another way


def write_infotext(prompt: str, negative_prompt: str, parameters: Iterable[tuple[str, str]]) -> str:
    """Return a `parameters` text.

    A prompt line that starts like another part ("Negative prompt:", "Steps:") starts in lower case here, which the
    text encoders turn everything into anyway.
    """
    lines = [_write_prompt(prompt)]
    if negative := _write_prompt(negative_prompt):
        lines.append(f"{NEGATIVE} {negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in parameters))
    return "\n".join(lines)


def parse_infotext(text: str) -> Infotext:
    """Return what a `parameters` text says.

    As in the web UIs, the last line is parameters if it holds three or more of them.
    """
    *lines, last = text.strip().split("\n")
    rest, parameters = _take_bare_json(last)
    pairs = PAIR.findall(rest)
    if len(pairs) + len(parameters) < FEWEST_PAIRS:
        lines.append(last)
        pairs, parameters = [], {}
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(NEGATIVE):
            part, stripped = negative, stripped.removeprefix(NEGATIVE).lstrip()
        part.append(stripped)
    named = {key.strip(): _unquote(value) for key, value in pairs}
    return Infotext("\n".join(prompt).strip(), "\n".join(negative).strip(), named | parameters)


def clean_name(name: str) -> str:
    """Return a file's name as it stands in a list of hashes, `name: digits, name: digits`."""
    return name.replace(":", "").replace(",", "")


def _write_prompt(text: str) -> str:
    lines = "\n".join(line.strip() for line in text.strip().splitlines())
    return PART_START.sub(lambda match: match[0].lower(), lines)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if QUOTED.search(value) else value


def _unquote(value: str) -> str:
    value = value.strip()
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def _take_bare_json(line: str) -> tuple[str, dict[str, str]]:
    """Return a line without the values that are JSON objects or lists, and these by their keys."""
    kept, found, place = [], {}, 0
    decoder = json.JSONDecoder()
    for match in BARE_JSON.finditer(line):
        if match.start() < place:
            continue  # inside of the one before
        try:
            _, end = decoder.raw_decode(line, match.end())
        except (ValueError, RecursionError):
            continue
        kept.append(line[place : match.start()])
        found[match[1]] = line[match.end() : end]
        place = end
    return "".join(kept) + line[place:], found
