"""Prompt -> the embeddings that an SDXL pipeline takes: plain words directly, the rest through compel.

compel splits prompts of more than 77 tokens into chunks and reads its own emphasis (`word++`, `(a b)1.3`,
`("a", "b").and()`). Its pooled embedding is computed from the text with that syntax still in it
(https://github.com/damian0815/compel/issues/96), so the pooled vectors here come from the plain words.

A text without emphasis that fits into 77 tokens needs none of it. Then both prompts go through each encoder in
one batch, 2 passes instead of compel's 6, and the numbers are the same except for the last bit.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tilemix.errors import PromptError

if TYPE_CHECKING:
    from tilemix.pipelines.parts import SdxlPipeline

WEIGHT_RANGE = (0.0, 5.0)  # of emphasis; beyond it the model draws only noise
TOKENS = 77  # that a text encoder takes at a time
# The parser changes nothing without one of these; skipping it saves 10 ms. It adds spaces after commas.
SYNTAX = re.compile(r'[()"\\+-]|,\S')
KEPT_PROMPTS = 16  # 1.3 MB each at SDXL's size


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the UNet gets, positive and negative, with the same number of tokens. Widths are SDXL's."""

    prompt_embeds: torch.Tensor  # (1, 77 * n, 2048)
    pooled_prompt_embeds: torch.Tensor  # (1, 1280)
    negative_prompt_embeds: torch.Tensor  # (1, 77 * n, 2048)
    negative_pooled_prompt_embeds: torch.Tensor  # (1, 1280)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by the names of the pipeline's arguments."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class PromptEncoder:
    """Encodes prompts and keeps the most recent results.

    Args:
        pipeline: an SDXL pipeline.
        read_state: returns the state that the text encoders and the vocabulary depend on; a result of another state
            is not used.
    """

    def __init__(self, pipeline: SdxlPipeline, read_state: Callable[[], Hashable]) -> None:
        self._pipeline = pipeline
        self._read_state = read_state
        self._kept: OrderedDict[Hashable, Conditioning] = OrderedDict()

    def encode(self, positive: str, negative: str) -> Conditioning:
        """Return `encode_prompt` of the two, computed now or kept from before.

        Raises:
            PromptError: as `encode_prompt`.
        """
        key = (positive, negative, self._read_state())
        if key not in self._kept:
            self._kept[key] = encode_prompt(self._pipeline, positive, negative)
            if len(self._kept) > KEPT_PROMPTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def encode_prompt(pipeline: SdxlPipeline, positive: str, negative: str) -> Conditioning:
    """Encode a prompt and a negative prompt with both text encoders of `pipeline`.

    An empty negative prompt is encoded like any other text, as cog-sdxl does; it is not all zeros.

    Raises:
        PromptError: the emphasis in a text cannot be read, or asks for something that an SDXL prompt cannot do.
    """
    prompts = [parse_emphasis(positive, field="prompt"), parse_emphasis(negative, field="negative_prompt")]
    plain = [prompt.words for prompt in prompts]
    with torch.inference_mode():
        if not any(prompt.is_emphasized for prompt in prompts):
            batch = _tokenize(pipeline, plain)
            if batch is not None:
                return _encode_tokens(pipeline, batch)
        return encode_with_compel(pipeline, [positive, negative], plain)


def _tokenize(pipeline: SdxlPipeline, texts: Sequence[str]) -> list[torch.Tensor] | None:
    """Return the texts' tokens for each encoder, (n, 77); None where a text has more."""
    batch = []
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        rows = tokenizer(list(texts), padding="max_length", max_length=TOKENS, verbose=False).input_ids
        if any(len(row) > TOKENS for row in rows):
            return None
        batch.append(torch.tensor(rows))
    return batch


def _encode_tokens(pipeline: SdxlPipeline, batch: Sequence[torch.Tensor]) -> Conditioning:
    """Encode a prompt and a negative prompt, (2, 77) tokens for each encoder, in one pass each."""
    first, second = (
        encoder(tokens.to(encoder.device), output_hidden_states=True)
        for encoder, tokens in zip((pipeline.text_encoder, pipeline.text_encoder_2), batch, strict=True)
    )
    # SDXL takes the states before the last layer, and the second encoder's pooled vector.
    embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled = second.text_embeds
    return Conditioning(embeds[:1], pooled[:1], embeds[1:], pooled[1:])


def encode_with_compel(pipeline: SdxlPipeline, texts: Sequence[str], plain: Sequence[str]) -> Conditioning:
    """Encode a prompt and a negative prompt through compel.

    Args:
        pipeline: an SDXL pipeline.
        texts: the two prompts, with their emphasis.
        plain: the same two without it, for the pooled vectors.
    """
    from compel import CompelForSDXL

    # Made anew each time: compel keeps the empty prompt's embedding, which is stale after any change of
    # the text encoders' weights or of the vocabulary.
    compel = CompelForSDXL(pipeline)
    positive, negative = texts
    encoded = compel(positive, negative_prompt=negative)
    pooled = [compel.compel_2.conditioning_provider.get_pooled_embeddings([text]) for text in plain]
    return Conditioning(encoded.embeds, pooled[0], encoded.negative_embeds, pooled[1])


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
    from compel.prompt_parser import PromptParser

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
    weights = [
        [fragment.weight for fragment in getattr(prompt, "children", ())] for prompt in conjunction.prompts
    ]
    return ParsedText(words, is_emphasized=weights != [[1.0]])


def _list_words(prompts: Iterable[object], field: str) -> Iterator[str]:
    for prompt in prompts:
        if hasattr(prompt, "prompts"):  # a Blend
            yield from _list_words(prompt.prompts, field)
            continue
        for fragment in prompt.children:  # type: ignore[attr-defined]
            if not hasattr(fragment, "text"):
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
