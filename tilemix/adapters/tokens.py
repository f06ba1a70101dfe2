"""Learned tokens put into a model's vocabularies: its tokenizers and its embedding matrices."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn

from tilemix.adapters.embedding_file import EmbeddingFile
from tilemix.errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LIKE_TOKEN = re.compile(r"<[^<>\s][^<>]{0,62}>")


class TextEncoder(Protocol):
    """Any text encoder of transformers."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding, an `nn.Embedding`."""

    def set_input_embeddings(self, value: nn.Module, /) -> None:
        """Replace the token embedding."""


class Vocabulary(NamedTuple):
    """A tokenizer and the text encoder that embeds its tokens, with their names in the model's folder."""

    tokenizer_name: str
    tokenizer: PreTrainedTokenizerBase
    encoder_name: str
    encoder: TextEncoder

    @property
    def embedding(self) -> nn.Embedding:
        """The encoder's token embedding."""
        embedding = self.encoder.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"{self.encoder_name} embeds its tokens with {type(embedding).__name__}")
        return embedding


class TextModel(Protocol):
    """A model that reads text."""

    @property
    def vocabularies(self) -> Sequence[Vocabulary]:
        """Its vocabularies, as they are now."""

    def set_tokenizers(self, tokenizers: Sequence[PreTrainedTokenizerBase], /) -> None:
        """Replace the tokenizers, in the order of `vocabularies`."""


class TokenInstaller:
    """The learned tokens of one model, in all its tokenizers and embedding matrices, replaced as a whole.

    The learned rows come after the base's. The base's own rows are never written, except for a token that the base
    has already: its row is kept and put back when the token goes.

    Args:
        model: its tokenizers are changed or replaced by every call.
    """

    def __init__(self, model: TextModel) -> None:
        self._model = model
        vocabularies = model.vocabularies
        # Adding tokens to the loaded tokenizers, and unpickling fresh ones only when the tokens change, saves a
        # start 0.3 s over adding them to copies.
        self._loaded = {one.encoder_name: one.tokenizer for one in vocabularies}
        self._bases = {one.encoder_name: pickle.dumps(one.tokenizer) for one in vocabularies}
        self._rows = {one.encoder_name: one.embedding.weight.shape[0] for one in vocabularies}
        self._kept: dict[str, dict[int, torch.Tensor]] = {name: {} for name in self._rows}
        self._installed: tuple[str, ...] = ()
        self._words: dict[str, str] = {}  # what a trainer called several rows together -> their tokens
        self._installs = 0

    @property
    def state(self) -> int:
        """A number that changes with every change of the vocabulary."""
        return self._installs

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embeddings."""
        return {one.encoder_name: one.embedding.weight.shape[1] for one in self._model.vocabularies}

    @property
    def installed(self) -> tuple[str, ...]:
        """The tokens in place, in the order of their rows."""
        return self._installed

    def install(self, embeddings: Sequence[tuple[EmbeddingFile, Sequence[str]]]) -> None:
        """Make the vocabulary the base's plus the tokens of `embeddings`, in that order; [] gives the base back.

        A token that is there already, from an earlier embedding or as an added token of the base, gets the new row.

        Raises:
            AdapterError: a token is a word of the base's vocabulary, or named twice for one file, or its row is beyond
                what the matrix holds.
        """
        sources: dict[str, tuple[EmbeddingFile, int]] = {}  # token -> its file, and its row there
        words: dict[str, str] = {}
        for file, tokens in embeddings:
            words |= {word: "".join(tokens[rows]) for word, rows in file.trained_words.items()}
            for place, token in enumerate(tokens):
                if tokens.index(token) != place:
                    raise AdapterError("embedding-token-twice", token=token)
                if token in sources:
                    earlier = sources[token][0].name
                    logger.warning("%s: token %s replaces the one of %s", file.name, token, earlier)
                sources[token] = (file, place)
        vocabularies = [
            one._replace(tokenizer=self._take_base_tokenizer(one.encoder_name))
            for one in self._model.vocabularies
        ]
        new = [self._find_new(one, sources) for one in vocabularies]
        learned = [_read_rows(one, sources) for one in vocabularies]
        self._installs += 1
        for vocabulary, tokens, rows in zip(vocabularies, new, learned, strict=True):
            encoder, tokenizer = vocabulary.encoder_name, vocabulary.tokenizer
            if tokens:
                tokenizer.add_tokens(tokens)
                self._loaded.pop(encoder, None)
            ids = {token: _find_id(tokenizer, token) for token in sources}
            self._set_rows(vocabulary, {ids[token]: rows[token] for token in sources})
        self._model.set_tokenizers([one.tokenizer for one in vocabularies])
        self._installed = tuple(sources)
        self._words = {word: tokens for word, tokens in words.items() if word not in sources}

    def spell_out(self, text: str) -> str:
        """Return a prompt with the tokens of all its rows in the place of each embedding that its trainer named."""
        for word, tokens in self._words.items():
            text = text.replace(word, tokens)
        return text

    def find_unknown(self, text: str) -> list[str]:
        """Return what looks like a token in a spelled-out prompt, `<word>`, but is none of the model's."""
        known = {*self._installed, *self._model.vocabularies[0].tokenizer.get_added_vocab()}
        return [word for word in dict.fromkeys(LIKE_TOKEN.findall(text)) if word not in known]

    def _take_base_tokenizer(self, encoder: str) -> PreTrainedTokenizerBase:
        """Return a tokenizer without learned tokens: the loaded one, or a copy once that has got some."""
        if (loaded := self._loaded.get(encoder)) is not None:
            return loaded
        copied: PreTrainedTokenizerBase = pickle.loads(self._bases[encoder])  # noqa: S301  pickled in __init__
        return copied

    def _find_new(self, vocabulary: Vocabulary, tokens: Iterable[str]) -> list[str]:
        """Return those of `tokens` that the base's tokenizer does not have as added tokens yet."""
        tokenizer, rows = vocabulary.tokenizer, self._rows[vocabulary.encoder_name]
        added = set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
        new = [token for token in tokens if token not in added]
        for token in new:
            if token == tokenizer.unk_token or tokenizer.convert_tokens_to_ids(token) not in (
                None,
                tokenizer.unk_token_id,
            ):
                raise AdapterError("embedding-token-taken", token=token, tokenizer=vocabulary.tokenizer_name)
        if new and len(tokenizer) != rows:
            raise AdapterError(
                "embedding-vocabulary",
                tokenizer=vocabulary.tokenizer_name,
                entries=len(tokenizer),
                encoder=vocabulary.encoder_name,
                rows=rows,
            )
        return new

    def _set_rows(self, vocabulary: Vocabulary, rows: Mapping[int, torch.Tensor]) -> None:
        """Make the matrix the base's plus `rows` (id -> row); the ids past the base's have no gaps."""
        embedding = vocabulary.embedding
        base = embedding.weight.data[: self._rows[vocabulary.encoder_name]]
        kept = self._kept[vocabulary.encoder_name]
        for place in rows.keys() - kept.keys():
            if place < len(base):
                kept[place] = base[place].clone()
        matrix = torch.cat([base, base.new_zeros(sum(place >= len(base) for place in rows), base.shape[1])])
        for place, row in {**kept, **rows}.items():
            matrix[place] = row.to(base.device, base.dtype)
        embedding.weight = nn.Parameter(matrix, requires_grad=False)
        embedding.num_embeddings = embedding.weight.shape[0]


def _read_rows(
    vocabulary: Vocabulary, sources: Mapping[str, tuple[EmbeddingFile, int]]
) -> dict[str, torch.Tensor]:
    """Return token -> its row in the matrix's dtype."""
    dtype = vocabulary.embedding.weight.dtype
    rows = {}
    for token, (file, place) in sources.items():
        rows[token] = file.rows[vocabulary.encoder_name][place].to(dtype)
        if not bool(rows[token].isfinite().all()):
            raise AdapterError(
                "embedding-overflow",
                file=file.name,
                token=token,
                encoder=vocabulary.encoder_name,
                dtype=str(dtype).removeprefix("torch."),
            )
    return rows


def _find_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)  # for a list of tokens it would be a list
    return found
