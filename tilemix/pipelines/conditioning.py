"""What every family does with a prompt before its own encoders: emphasis is read, recent results are kept.

The emphasis is compel's (`word++`, `(a b)1.3`, `("a", "b").and()`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tilemix.errors import PromptError

if TYPE_CHECKING:
    from compel.prompt_parser import Blend, FlattenedPrompt

WEIGHT_RANGE = (0.0, 5.0)  # of emphasis; beyond it the model draws only noise
# The parser changes nothing without one of these; skipping it saves 10 ms. It adds spaces after commas.
SYNTAX = re.compile(r'[()"\\+-]|,\S')
KEPT_PROMPTS = 16  # 1.3 MB each at SDXL's size

Encoded = TypeVar("Encoded")


class PromptEncoder(Generic[Encoded]):
    """Encodes prompts and keeps the most recent results.

    Args:
        encode: encodes a prompt and a negative prompt.
        read_state: returns the state that the text encoders and the vocabulary depend on; a result of another state
            is not used.
    """

    def __init__(self, encode: Callable[[str, str], Encoded], read_state: Callable[[], Hashable]) -> None:
        self._encode = encode
        self._read_state = read_state
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()

    def encode(self, positive: str, negative: str) -> Encoded:
        """Return the two prompts encoded, now or before.

        Raises:
            PromptError: the text cannot be used.
        """
        key = (positive, negative, self._read_state())
        if key not in self._kept:
            self._kept[key] = self._encode(positive, negative)
            if len(self._kept) > KEPT_PROMPTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A prompt, read by compel's grammar."""

    words: str  # without the emphasis syntax
    is_emphasized: bool  # or blended, or in several parts


def parse_emphasis(text: str, *, field: str) -> ParsedText:
    """Read compel's emphasis in `text`; `field` names the text in messages.

    Raises:
        PromptError: it cannot be read, or holds a `.swap()` or a `withLora()`, which compel would drop.
    """
    if not SYNTAX.search(text):
        return ParsedText(text, is_emphasized=False)
    import pyparsing
    from compel import Compel
    from compel.prompt_parser import FlattenedPrompt, Fragment, PromptParser

    # Without memoization the parser's time is exponential in the depth of parentheses: 36 characters took over
    # 10 seconds (compel 2.5.1), with it 0.03. Calling this twice does nothing the second time.
    pyparsing.ParserElement.enable_packrat(None)
    try:
        conjunction = Compel.parse_prompt_string(text)
    except RecursionError as error:
        raise PromptError("prompt-emphasis-nested", field=field) from error
    except (PromptParser.ParsingException, pyparsing.ParseBaseException, IndexError, ValueError) as error:
        reason = str(error)[:120]
        raise PromptError("prompt-emphasis-unreadable", field=field, reason=reason) from error
    if conjunction.lora_weights:
        raise PromptError("prompt-with-lora", field=field)
    words = " ".join(_list_words(conjunction.prompts, field))
    match conjunction.prompts:
        case [FlattenedPrompt(children=[Fragment(weight=1)])]:
            return ParsedText(words, is_emphasized=False)
    return ParsedText(words, is_emphasized=True)


def _list_words(prompts: Iterable[Blend | FlattenedPrompt], field: str) -> Iterator[str]:
    from compel.prompt_parser import Blend, Fragment

    for prompt in prompts:
        if isinstance(prompt, Blend):
            yield from _list_words(prompt.prompts, field)
            continue
        for fragment in prompt.children:
            if not isinstance(fragment, Fragment):
                raise PromptError("prompt-swap", field=field)
            low, high = WEIGHT_RANGE
            if not low <= fragment.weight <= high:
                raise PromptError(
                    "prompt-emphasis-out-of-range", field=field, weight=fragment.weight, low=low, high=high
                )
            if fragment.weight != 1 and not fragment.text.strip():
                # compel's parser takes `("")0.5`, its encoder fails on it.
                raise PromptError("prompt-emphasis-of-nothing", field=field)
            yield fragment.text
