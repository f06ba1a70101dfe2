"""Learned tokens put into a pipeline's vocabulary: both tokenizers, both embedding matrices."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tilemix.adapters.embedding_file import EmbeddingFile
from tilemix.errors import AdapterError

logger = logging.getLogger(__name__)


class TokenInstaller:
    """The learned tokens of one pipeline: both tokenizers and both embedding matrices, replaced as a whole.

    The learned rows stand after the base's. Those of the base are never written, but for a token that the
    base brings itself: its row is kept, and put back when the token goes.

    Args:
        pipeline: an SDXL pipeline; its `tokenizer` and `tokenizer_2` are replaced by every call.
    """

    def __init__(self, pipeline: object) -> None:
        self._pipeline = pipeline
        self._tokenizers = {name: getattr(pipeline, name) for name in ("tokenizer", "tokenizer_2")}
        self._rows = {name: self._embedding(name).weight.shape[0] for name in self.widths}
        self._kept: dict[str, dict[int, torch.Tensor]] = {name: {} for name in self._rows}
        self._installed: tuple[str, ...] = ()
        self._installs = 0

    @property
    def state(self) -> int:
        """A number that every change of the vocabulary changes."""
        return self._installs

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embeddings."""
        return {name: self._embedding(name).weight.shape[1] for name in ("text_encoder", "text_encoder_2")}

    @property
    def installed(self) -> tuple[str, ...]:
        """The tokens in place, in the order of their rows."""
        return self._installed

    def install(self, embeddings: Sequence[tuple[EmbeddingFile, Sequence[str]]]) -> None:
        """Make the vocabulary the base's plus the tokens of `embeddings`, in that order; [] gives the base back.

        A token that is there already, from an earlier embedding or as an added token of the base, gets the
        new row.

        Raises:
            AdapterError: a token is a word of the base's vocabulary, or named twice for one file.
        """
        sources: dict[str, tuple[EmbeddingFile, int]] = {}  # token -> its file, and its row there
        for file, tokens in embeddings:
            for place, token in enumerate(tokens):
                if tokens.index(token) != place:
                    raise AdapterError(f"placeholder token {token!r} is named twice")
                if token in sources:
                    earlier = sources[token][0].name
                    logger.warning("%s: token %s replaces the one of %s", file.name, token, earlier)
                sources[token] = (file, place)
        prepared = {
            name: self._add_tokens(name, encoder, list(sources))
            for name, encoder in zip(self._tokenizers, self._rows, strict=True)
        }
        self._installs += 1
        for name, encoder in zip(self._tokenizers, self._rows, strict=True):
            tokenizer, ids = prepared[name]
            self._set_rows(
                encoder, {ids[token]: file.rows[encoder][row] for token, (file, row) in sources.items()}
            )
            setattr(self._pipeline, name, tokenizer)
        self._installed = tuple(sources)

    def _add_tokens(
        self, tokenizer_name: str, encoder: str, tokens: Sequence[str]
    ) -> tuple[object, dict[str, int]]:
        """Return a copy of the base's tokenizer with the tokens in it, and their ids."""
        tokenizer = copy.deepcopy(self._tokenizers[tokenizer_name])
        vocabulary = tokenizer.get_vocab()
        added = set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
        ids: dict[str, int] = {}
        expected = self._rows[encoder]
        for token in tokens:
            if token in added:
                ids[token] = vocabulary[token]
                continue
            if token in vocabulary:
                raise AdapterError(f"placeholder token {token!r} is already a word of {tokenizer_name}")
            tokenizer.add_tokens([token])
            ids[token] = tokenizer.convert_tokens_to_ids(token)
            if ids[token] != expected:
                raise AdapterError(
                    f"{tokenizer_name} gave {token!r} the id {ids[token]}, expected {expected}"
                )
            expected += 1
        return tokenizer, ids

    def _set_rows(self, encoder: str, rows: Mapping[int, torch.Tensor]) -> None:
        """Make the matrix the base's with `rows` (id -> row) in it; the ids past the base's are without a gap."""
        embedding = self._embedding(encoder)
        base = embedding.weight.data[: self._rows[encoder]]
        kept = self._kept[encoder]
        for place in rows.keys() - kept.keys():
            if place < len(base):
                kept[place] = base[place].clone()
        matrix = torch.cat([base, base.new_zeros(sum(place >= len(base) for place in rows), base.shape[1])])
        for place, row in {**kept, **rows}.items():
            matrix[place] = row.to(base.device, base.dtype)
        embedding.weight = nn.Parameter(matrix, requires_grad=False)
        embedding.num_embeddings = embedding.weight.shape[0]

    def _embedding(self, encoder: str) -> nn.Embedding:
        embedding = getattr(self._pipeline, encoder).get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding
