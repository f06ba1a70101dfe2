"""New tokens for both text encoders: their rows are trained, the encoders are frozen.

Source: An Image is Worth One Word, section 3, https://arxiv.org/abs/2208.01618
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from tilemix.errors import TrainingError
from tilemix.pipelines.sdxl import set_tokenizers, vocabularies_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tilemix.pipelines.sdxl import SdxlPipeline


class LearnedRows(nn.Module):
    """A token embedding with trainable rows after the base's: ids from the base's size on select from `rows`.

    Args:
        base: the encoder's own embedding; never written.
        rows: (tokens, width), the starting values; trained in fp32.
    """

    def __init__(self, base: nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows.detach().to(base.weight.device, torch.float32, copy=True))

    @property
    def weight(self) -> torch.Tensor:
        """The base's matrix; the encoder reads its dtype and device."""
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
    """Add `tokens` to both vocabularies of the pipeline and return the trainable rows by encoder.

    A token starts as the mean of the vectors of its initial word. Without one it starts at random, with the
    mean and the standard deviation of the encoder's own rows.

    Raises:
        TrainingError: a token is already in the vocabulary, or an initial word has no tokens.
    """
    learned, tokenizers = {}, []
    for place, vocabulary in enumerate(vocabularies_of(pipeline)):
        tokenizer, base = copy.deepcopy(vocabulary.tokenizer), vocabulary.embedding
        matrix = base.weight.detach().float()
        generator = torch.Generator().manual_seed(seed + place)
        rows = []
        for token in tokens:
            if token in tokenizer.get_vocab():
                raise TrainingError("embedding-token-taken", token=token, tokenizer=vocabulary.tokenizer_name)
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
        tokenizers.append(tokenizer)
        learned[vocabulary.encoder_name] = LearnedRows(base, torch.stack(rows))
        vocabulary.encoder.set_input_embeddings(learned[vocabulary.encoder_name])
    set_tokenizers(pipeline, tokenizers)
    return learned
