"""The changes that adapters make to one module's weight: one file for each family, and the list of them.

A change is computed in fp32 from tensors kept as the file stores them, memory-mapped and small, and for a few rows of
the weight at a time. W is the base's weight as a matrix (out, columns): columns is `in` for a linear module and
`in * k * k` for a convolution. `scale` is the adapter's strength, `factor` its alpha / rank.

The names of the parts and what their shapes tell serve `tilemix.modelfile`, which inspects files without torch, so
nothing here imports torch until a change is computed.
"""

from tilemix.deltas.build import MAX_ALPHA, build_delta, is_wide_float
from tilemix.deltas.dora import DORA, DORA_PARTS, Dora
from tilemix.deltas.families import ALPHA, FAMILIES, SUFFIXES, find_rank, find_width
from tilemix.deltas.family import Adder, Delta, Family, Shape
from tilemix.deltas.low_rank import LowRank

__all__ = [
    "ALPHA",
    "DORA",
    "DORA_PARTS",
    "FAMILIES",
    "MAX_ALPHA",
    "SUFFIXES",
    "Adder",
    "Delta",
    "Dora",
    "Family",
    "LowRank",
    "Shape",
    "build_delta",
    "find_rank",
    "find_width",
    "is_wide_float",
]
