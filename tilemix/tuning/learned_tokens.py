"""New tokens of both text encoders whose rows are learned while the encoders stand still.

Source: An Image is Worth One Word, section 3, https://arxiv.org/abs/2208.01618
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from tilemix.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tilemix.pipelines.parts import SdxlPipeline

ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


class LearnedRows(nn.Module):
    """A token embedding with more rows behind it: ids from the base's size on are looked up in `rows`.

    Args:
        base: the encoder's own embedding; it is never written.
        rows: (tokens, width), where learning starts; learned in fp32.
    """

    def __init__(self, base: nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows.detach().to(base.weight.device, torch.float32, copy=True))

    @property
    def weight(self) -> torch.Tensor:
        """The base's matrix, which the encoder asks for its dtype and device."""
        return self.base.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors of token ids (n, tokens): (n, tokens, width)."""
        size = self.base.num_embeddings
        known: torch.Tensor = self.base(ids.clamp(max=size - 1))
        learned = self.rows[(ids - size).clamp(min=0)].to(known.dtype)
        return torch.where((ids >= size)[..., None], learned, known)


def add_tokens(
    pipeline: SdxlPipeline, tokens: Sequence[str], initial_words: Mapping[str, str], seed: int
) -> dict[str, LearnedRows]:
    """Put `tokens` into both vocabularies of the pipeline and return what is learned of each encoder.

    A token starts as the mean of the vectors of its initial word; without one, at random, with the mean
    and the deviation of the encoder's own rows.

    Raises:
        TrainingError: a token is a word of the vocabulary already, or an initial word is none.
    """
    learned = {}
    for place, (encoder_name, tokenizer_name) in enumerate(ENCODERS.items()):
        tokenizer = copy.deepcopy(getattr(pipeline, tokenizer_name))
        encoder = getattr(pipeline, encoder_name)
        base = encoder.get_input_embeddings()
        matrix = base.weight.detach().float()
        generator = torch.Generator().manual_seed(seed + place)
        rows = []
        for token in tokens:
            if token in tokenizer.get_vocab():
                raise TrainingError("embedding-token-taken", token=token, tokenizer=tokenizer_name)
            if token in initial_words:
                ids = tokenizer(initial_words[token], add_special_tokens=False).input_ids
                if not ids:
                    word = initial_words[token]
                    raise TrainingError("training-initial-word-empty", typed=word, token=token)
                rows.append(matrix[ids].mean(dim=0).cpu())
            else:
                noise = torch.randn(matrix.shape[1], generator=generator)
                rows.append((matrix.mean(dim=0) + noise.to(matrix.device) * matrix.std(dim=0)).cpu())
        for token in tokens:
            tokenizer.add_tokens([token])
        setattr(pipeline, tokenizer_name, tokenizer)
        learned[encoder_name] = LearnedRows(base, torch.stack(rows))
        encoder.set_input_embeddings(learned[encoder_name])
    return learned
