"""The checks that every text from outside passes before anything else looks at it."""

from __future__ import annotations

import re

from tilemix.errors import PromptError
from tilemix.inputs import TextInput, find_input

MAX_PROMPT_CHARACTERS = find_input("prompt", TextInput).max_length

# In angle brackets: a tokenizer would find a bare word inside of other words ("TOK" in "stoked").
PLACEHOLDER_TOKEN = re.compile(r"<[A-Za-z0-9_-]{1,64}>")

# C0 and C1 controls but tab and the line ends, the characters that turn the writing direction of what
# follows (a log line would show another text than was sent), and halves of surrogate pairs (not text at all).
REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_text(text: str, *, field: str) -> None:
    """Refuse text that is too long, or that holds control characters or lone surrogates.

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
    """Do what `check_text` does, and refuse a prompt without a visible character.

    Raises:
        PromptError: the prompt cannot be used.
    """
    check_text(text, field="prompt")
    if not text.strip():
        raise PromptError("prompt-empty", field="prompt", most=MAX_PROMPT_CHARACTERS)
