"""How files name the rows of learned tokens: the one table that the loader, `inspect` and `weights add` read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tilemix.modelfile.latin import spell_in_latin


class Pair(NamedTuple):
    """The two tensors of an embedding for SDXL."""

    text_encoder: str
    text_encoder_2: str
    writer: str

    @property
    def names(self) -> tuple[str, str]:
        """Both tensors' names, in the order of `tilemix.modelfile.spellings.ENCODERS`."""
        return self.text_encoder, self.text_encoder_2


CLIP_PAIR = Pair("clip_l", "clip_g", "clip_l, clip_g")  # diffusers' advanced trainer, kohya
PAIRS = (
    CLIP_PAIR,
    Pair("text_encoders_0", "text_encoders_1", "cog-sdxl"),  # its embeddings.pti is a safetensors file
)
HALVES = frozenset(name for pair in PAIRS for name in pair.names)
KOHYA_ROWS = "emb_params"  # for the one text encoder of SD 1 and SD 2
A1111_ROWS = "string_to_param"  # the start of it
NOT_OF_TOKENS = re.compile(r"[^A-Za-z0-9_-]+")
MAX_WORD = 60  # characters of a token's 64, which a number may follow
BUNDLE = "bundle_emb."  # OneTrainer's LoRA files: bundle_emb.NAME.clip_l, bundle_emb.NAME.clip_g


def find_pair(tensors: Iterable[str]) -> Pair | None:
    """Return the pair whose two names are the file's only tensors; None where they are not."""
    names = set(tensors)
    return next((pair for pair in PAIRS if names == set(pair.names)), None)


def is_embedding_name(tensor: str) -> bool:
    """Return whether a tensor's name is one that only embedding files have."""
    return tensor in HALVES or tensor.startswith((KOHYA_ROWS, A1111_ROWS))


def is_bundled(tensor: str) -> bool:
    """Return whether a tensor of a LoRA file belongs to an embedding bundled with it."""
    return tensor.startswith(BUNDLE)


def split_bundled(tensor: str) -> tuple[str, str]:
    """Split a bundled tensor's name into the embedding's name and the tensor's within it: ("tile", "clip_l")."""
    rest = tensor.removeprefix(BUNDLE)
    if f".{A1111_ROWS}" in rest:
        return rest.partition(f".{A1111_ROWS}")[0], A1111_ROWS
    name, _, part = rest.rpartition(".")
    return name, part


def number_tokens(count: int) -> tuple[str, ...]:
    """Return the names that unnamed rows have by custom: <s0>, <s1>, ..."""
    return tuple(f"<s{place}>" for place in range(count))


def name_bundled_tokens(rows: Mapping[str, int]) -> tuple[str, ...]:
    """Return the tokens of bundled embeddings, in the order of the embeddings' names.

    One called `tile` gives the token `<tile>` for one row, and `<tile_0>`, `<tile_1>` and so on for more. What cannot
    stand in a token is replaced: `my tile` gives `<my_tile>`, `плитка` gives `<plitka>`.

    Args:
        rows: an embedding's name -> how many rows it has.
    """
    tokens: list[str] = []
    for name in sorted(rows):
        word = NOT_OF_TOKENS.sub("_", spell_in_latin(_bare(name)))[:MAX_WORD]
        count = rows[name]
        tokens += [f"<{word}>"] if count == 1 else [f"<{word}_{place}>" for place in range(count)]
    return tuple(tokens)


def name_trained_word(name: str) -> str:
    """Return what a prompt calls the bundled embedding `name`, as its trainer did: `<my tile>`."""
    return f"<{_bare(name)}>"


def _bare(name: str) -> str:
    return name.removeprefix("<").removesuffix(">")
