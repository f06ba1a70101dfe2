"""Learned tokens put into a pipeline's vocabulary: both tokenizers, both embedding matrices."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from tilemix.adapters.embedding_file import EmbeddingFile
from tilemix.errors import AdapterError
from tilemix.modelfile.spellings import ENCODERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class TokenInstaller:
    """The learned tokens of one pipeline, in both tokenizers and both embedding matrices, replaced as a whole.

    The learned rows come after the base's. The base's own rows are never written, except for a token that the base
    has already: its row is kept and put back when the token goes.

    Args:
        pipeline: an SDXL pipeline; its `tokenizer` and `tokenizer_2` are changed or replaced by every call.
    """

    def __init__(self, pipeline: object) -> None:
        self._pipeline = pipeline
        # Adding tokens to the loaded tokenizers, and unpickling fresh ones only when the tokens change, saves a
        # start 0.3 s over adding them to copies.
        self._loaded = {name: getattr(pipeline, name) for name in ("tokenizer", "tokenizer_2")}
        self._bases = {name: pickle.dumps(tokenizer) for name, tokenizer in self._loaded.items()}
        self._rows = {name: self._embedding(name).weight.shape[0] for name in self.widths}
        self._kept: dict[str, dict[int, torch.Tensor]] = {name: {} for name in self._rows}
        self._installed: tuple[str, ...] = ()
        self._installs = 0

    @property
    def state(self) -> int:
        """A number that changes with every change of the vocabulary."""
        return self._installs

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embeddings."""
        return {name: self._embedding(name).weight.shape[1] for name in ENCODERS}

    @property
    def installed(self) -> tuple[str, ...]:
        """The tokens in place, in the order of their rows."""
        return self._installed

    def install(self, embeddings: Sequence[tuple[EmbeddingFile, Sequence[str]]]) -> None:
        """Make the vocabulary the base's plus the tokens of `embeddings`, in that order; [] gives the base back.

        A token that is there already, from an earlier embedding or as an added token of the base, gets the new row.

        Raises:
            AdapterError: a token is a word of the base's vocabulary, or named twice for one file.
        """
        sources: dict[str, tuple[EmbeddingFile, int]] = {}  # token -> its file, and its row there
        for file, tokens in embeddings:
            for place, token in enumerate(tokens):
                if tokens.index(token) != place:
                    raise AdapterError("embedding-token-twice", token=token)
                if token in sources:
                    earlier = sources[token][0].name
                    logger.warning("%s: token %s replaces the one of %s", file.name, token, earlier)
                sources[token] = (file, place)
        tokenizers = {
            name: self._loaded.get(name) or pickle.loads(base)  # noqa: S301  pickled in __init__
            for name, base in self._bases.items()
        }
        encoders = dict(zip(tokenizers, self._rows, strict=True))
        new = {name: self._find_new(name, encoders[name], tokenizers[name], sources) for name in tokenizers}
        self._installs += 1
        for name, tokenizer in tokenizers.items():
            if new[name]:
                tokenizer.add_tokens(new[name])
                self._loaded.pop(name, None)
            ids = {token: tokenizer.convert_tokens_to_ids(token) for token in sources}
            encoder = encoders[name]
            self._set_rows(
                encoder, {ids[token]: file.rows[encoder][row] for token, (file, row) in sources.items()}
            )
            setattr(self._pipeline, name, tokenizer)
        self._installed = tuple(sources)

    def _find_new(
        self, tokenizer_name: str, encoder: str, tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]
    ) -> list[str]:
        """Return those of `tokens` that the base's tokenizer does not have as added tokens yet."""
        added = set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
        new = [token for token in tokens if token not in added]
        for token in new:
            if token == tokenizer.unk_token or tokenizer.convert_tokens_to_ids(token) not in (
                None,
                tokenizer.unk_token_id,
            ):
                raise AdapterError("embedding-token-taken", token=token, tokenizer=tokenizer_name)
        if new and len(tokenizer) != self._rows[encoder]:
            raise AdapterError(
                "embedding-vocabulary",
                tokenizer=tokenizer_name,
                entries=len(tokenizer),
                encoder=encoder,
                rows=self._rows[encoder],
            )
        return new

    def _set_rows(self, encoder: str, rows: Mapping[int, torch.Tensor]) -> None:
        """Make the matrix the base's plus `rows` (id -> row); the ids past the base's have no gaps."""
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
