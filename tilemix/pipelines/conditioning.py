"""What every family does with a prompt before its own encoders: it is listed by step, and recent results are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from tilemix.prompts.language import Fragment, Traced, parse

KEPT_TEXTS = 64  # 0.6 MB for each chunk at SDXL's size

Parts = tuple[tuple[Fragment, ...], ...]  # a prompt, cut at each BREAK


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as the denoiser takes it."""

    states: torch.Tensor  # (1, tokens, width)
    pooled: torch.Tensor | None = None  # (1, width); None: the family has none


@dataclass(frozen=True, slots=True)
class Guidance:
    """What the denoiser follows up to a step; all of a picture have as many tokens."""

    last_step: int  # 1-based; all steps for the last one
    prompt: EncodedText
    negative: EncodedText | None = None  # None: the family reads no negative prompt


class PromptEncoder:
    """Encodes prompts and keeps the most recent results, of every text by itself.

    Args:
        encode: encodes a prompt at a clip skip.
        read_state: returns the state that the text encoders and the vocabulary depend on; a result of another state
            is not used.
    """

    def __init__(
        self, encode: Callable[[Parts, int | None], EncodedText], read_state: Callable[[], Hashable]
    ) -> None:
        self._encode = encode
        self._read_state = read_state
        self._kept: OrderedDict[Hashable, EncodedText] = OrderedDict()

    def encode(
        self, positive: str, negative: str | None, *, steps: int, clip_skip: int | None = None
    ) -> list[Guidance]:
        """Return what a prompt and a negative prompt say over `steps` steps; see `Family.encode` for `clip_skip`.

        An empty negative prompt is encoded like any other text, as cog-sdxl does; it is not all zeros. None: the
        family reads no negative prompt.

        Raises:
            PromptError: a text cannot be used.
        """
        listed = [
            list_versions(text, steps, field=field)
            for text, field in ((positive, "prompt"), (negative, "negative_prompt"))
            if text is not None
        ]
        lasts = sorted({last for versions in listed for last, _ in versions})
        by_step = [
            [next(parts for last, parts in versions if last >= step) for step in lasts] for versions in listed
        ]
        texts = {parts: self._encode_kept(parts, clip_skip) for versions in by_step for parts in versions}
        longest = max(text.states.shape[1] for text in texts.values())
        for parts, text in texts.items():
            if text.states.shape[1] < longest:
                texts[parts] = self._lengthen(text, longest, clip_skip)
        return [
            Guidance(last, *(texts[parts] for parts in both))
            for last, *both in zip(lasts, *by_step, strict=True)
        ]

    def _encode_kept(self, parts: Parts, clip_skip: int | None) -> EncodedText:
        key = (parts, clip_skip, self._read_state())
        if key not in self._kept:
            self._kept[key] = self._encode(parts, clip_skip)
            if len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _lengthen(self, text: EncodedText, tokens: int, clip_skip: int | None) -> EncodedText:
        """Return a text with as many tokens, those of an empty one after its own."""
        empty = self._encode_kept(((),), clip_skip).states
        missing = (tokens - text.states.shape[1]) // empty.shape[1]
        return EncodedText(torch.cat([text.states, *[empty] * missing], dim=1), text.pooled)


def list_versions(text: str, steps: int, *, field: str) -> list[tuple[int, Parts]]:
    """Return what a prompt says up to each step at which it changes; `field` names it in messages.

    Raises:
        PromptError: something in it looks like syntax and is not.
    """
    return [
        (version.last_step, tuple(tuple(part) for part in version.parts))
        for version in parse(Traced.begin(text), steps=steps, field=field).versions
    ]
