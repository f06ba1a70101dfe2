"""Chunks of weighted words -> the states of a CLIP text encoder.

Without weights a chunk goes through the encoder as it is, in a pass of its own, so that the numbers are those of
diffusers' `encode_prompt` bit for bit. Weights act through compel's arithmetic: above 1 away from the states of an
empty text, below 1 also towards those of the text with the words masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from tilemix.pipelines.chunks import CHUNK_TOKENS, Chunk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

TOKENS = CHUNK_TOKENS + 2  # with begin and end
OWN_CLIP_SKIP = 2  # as web UIs count: the states before the last layer, which SDXL was trained on


class ClipText:
    """A tokenizer and its text encoder, for one prompt.

    Args:
        tokenizer: of the encoder.
        encoder: on its device.
        clip_skip: which states are taken, counted from the end: 1 the last layer's, 2 those before it.
        norm: goes over the states; None: nothing does, as in SDXL.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: CLIPTextModel | CLIPTextModelWithProjection,
        clip_skip: int = OWN_CLIP_SKIP,
        *,
        norm: torch.nn.Module | None = None,
    ) -> None:
        from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType

        self._tokenizer = tokenizer
        self._encoder = encoder
        self._layer = _AtLayer(encoder, clip_skip, norm)
        # Made anew for each prompt: it keeps the empty text's states, which change with the encoder's weights.
        self._provider = EmbeddingsProvider(
            tokenizer=tokenizer,
            text_encoder=self._layer,
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            device=encoder.device,
        )

    def encode(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the states of a chunk (1, 77, width), and its pooled vector (1, width) if the encoder has one.

        The pooled vector is that of the plain words: it has no weights.
        """
        states, pooled = self._encode_plain("".join(fragment.text for fragment in chunk))
        words = [fragment for fragment in chunk if self.count_tokens([fragment.text])[0]]
        if any(fragment.weight != 1 for fragment in words):
            states = self._provider.get_embeddings_for_weighted_prompt_fragments(
                [[fragment.text for fragment in words]],
                [[fragment.weight for fragment in words]],
                device=self._encoder.device,
            )
        return states, pooled

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without begin and end."""
        if not texts:
            return []
        rows = self._tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return [len(row) for row in rows]

    def _encode_plain(self, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        row = self._tokenizer(
            text, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt", verbose=False
        )
        output = self._encoder(row.input_ids.to(self._encoder.device), output_hidden_states=True)
        return self._layer.take(output.hidden_states), getattr(output, "text_embeds", None)


class _AtLayer:
    """A text encoder whose states before the last layer are those of another layer, as compel asks for them."""

    def __init__(
        self,
        encoder: CLIPTextModel | CLIPTextModelWithProjection,
        clip_skip: int,
        norm: torch.nn.Module | None,
    ) -> None:
        self._encoder = encoder
        self._clip_skip = clip_skip
        self._norm = norm
        self.device = encoder.device
        self.dtype = encoder.dtype

    def __call__(self, *args: object, **options: object) -> SimpleNamespace:
        states = self.take(self._encoder(*args, **options).hidden_states)
        return SimpleNamespace(hidden_states=(states, None))

    def take(self, every: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the states of the layer out of those of every layer."""
        states = every[-self._clip_skip]
        normed: torch.Tensor = states if self._norm is None else self._norm(states)
        return normed
