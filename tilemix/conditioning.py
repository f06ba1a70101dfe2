"""Prompt -> the embeddings that an SDXL pipeline takes, through compel.

compel splits prompts of more than 77 tokens into chunks and reads its own emphasis (`word++`, `(a b)1.3`,
`("a", "b").and()`). Its pooled embedding is computed from the text with that syntax still in it
(https://github.com/damian0815/compel/issues/96), so the pooled vectors here come from the plain words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tilemix.errors import PromptError

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

WEIGHT_RANGE = (0.0, 5.0)  # of emphasis; beyond it nothing but noise comes out


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the UNet is told: positive and negative, as many tokens in each. Widths are SDXL's."""

    prompt_embeds: torch.Tensor  # (1, 77 * n, 2048)
    pooled_prompt_embeds: torch.Tensor  # (1, 1280)
    negative_prompt_embeds: torch.Tensor  # (1, 77 * n, 2048)
    negative_pooled_prompt_embeds: torch.Tensor  # (1, 1280)


def encode_prompt(pipeline: StableDiffusionXLPipeline, positive: str, negative: str) -> Conditioning:
    """Encode a prompt and a negative prompt with both text encoders of `pipeline`.

    An empty negative prompt is encoded like any other text, as cog-sdxl does; it is not all zeros.

    Raises:
        PromptError: the emphasis in a text cannot be read, or asks for what no SDXL prompt can do.
    """
    from compel import CompelForSDXL

    # Made anew each time: compel keeps the empty prompt's embedding, which is stale after any change of
    # the text encoders' weights or of the vocabulary.
    compel = CompelForSDXL(pipeline)
    plain = [read_plain_words(positive, what="prompt"), read_plain_words(negative, what="negative_prompt")]
    with torch.inference_mode():
        encoded = compel(positive, negative_prompt=negative)
        pooled = [compel.compel_2.conditioning_provider.get_pooled_embeddings([text]) for text in plain]
    return Conditioning(encoded.embeds, pooled[0], encoded.negative_embeds, pooled[1])


def read_plain_words(text: str, *, what: str) -> str:
    """Return `text` without compel's emphasis syntax.

    Raises:
        PromptError: the syntax cannot be read, or holds a `.swap()` or a `withLora()`, which compel would drop.
    """
    import pyparsing
    from compel import Compel
    from compel.prompt_parser import PromptParser

    # Without memory the parser's time is exponential in the depth of parentheses: 36 characters took over
    # 10 seconds (compel 2.5.1), with it 0.03. Calling this twice does nothing the second time.
    pyparsing.ParserElement.enable_packrat(None)
    try:
        conjunction = Compel.parse_prompt_string(text)
    except RecursionError as error:
        raise PromptError(f"{what}: parentheses nested too deep") from error
    except (PromptParser.ParsingException, pyparsing.ParseBaseException, IndexError, ValueError) as error:
        raise PromptError(f"{what}: the emphasis cannot be read: {str(error)[:120]!r}") from error
    if conjunction.lora_weights:
        raise PromptError(f"{what}: withLora() is not supported; lora_scale sets a LoRA's strength")
    return " ".join(_list_words(conjunction.prompts, what))


def _list_words(prompts: Iterable[object], what: str) -> Iterator[str]:
    for prompt in prompts:
        if hasattr(prompt, "prompts"):  # a Blend
            yield from _list_words(prompt.prompts, what)
            continue
        for fragment in prompt.children:  # type: ignore[attr-defined]
            if not hasattr(fragment, "text"):
                raise PromptError(f"{what}: .swap() is not supported")
            low, high = WEIGHT_RANGE
            if not low <= fragment.weight <= high:
                raise PromptError(f"{what}: emphasis of {fragment.weight:g}, expected {low:g} to {high:g}")
            if fragment.weight != 1 and not fragment.text.strip():
                # compel's parser takes `("")0.5`, its encoder fails on it.
                raise PromptError(f"{what}: emphasis on nothing")
            yield fragment.text
