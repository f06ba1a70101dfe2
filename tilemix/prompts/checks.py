"""Checks for every text from outside, made before anything else reads it."""

from __future__ import annotations

import re

from tilemix.errors import PromptError
from tilemix.inputs import TextInput, find_input

MAX_PROMPT_CHARACTERS = find_input("prompt", TextInput).max_length

# In angle brackets, because a tokenizer finds a bare word inside other words, too ("TOK" in "stoked").
PLACEHOLDER_TOKEN = re.compile(r"<[A-Za-z0-9_-]{1,64}>")

# C0 and C1 controls except tab and line ends; marks that change the writing direction, with which a log line
# could show another text than was sent; halves of surrogate pairs, which are not text.
REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Soft hyphens, spaces and joiners of no width, marks of direction: they come with pasted text and say nothing.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]+")
VISIBLE = re.compile("[^\u00ad\u200b-\u200f\u2060\ufeff]+")


def check_text(text: str, *, field: str) -> None:
    """Refuse text that is too long, or contains control characters or lone surrogates.

    Empty text passes: an empty negative prompt means something. `field` names the text in the message.

    Raises:
        PromptError: the text cannot be used.
    """
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError("prompt-too-long", field=field, count=len(text), most=MAX_PROMPT_CHARACTERS)
    if match := REFUSED.search(text):
        number, position = ord(match[0]), match.start() + 1
        code = "prompt-surrogate" if 0xD800 <= number <= 0xDFFF else "prompt-control-character"
        raise PromptError(code, field=field, character=f"U+{number:04X}", position=position)


def check_prompt(text: str) -> None:
    """Check a prompt as `check_text` does, and refuse one without a visible character.

    Raises:
        PromptError: the prompt cannot be used.
    """
    check_text(text, field="prompt")
    if not text.strip():
        raise PromptError("prompt-empty", field="prompt", most=MAX_PROMPT_CHARACTERS)
