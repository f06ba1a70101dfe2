"""The list of families, and the one table of what can follow a module's name in a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tilemix.deltas.dora import DORA
from tilemix.deltas.family import Family, Shapes
from tilemix.deltas.loha import LOHA
from tilemix.deltas.lokr import LOKR
from tilemix.deltas.low_rank import LOW_RANK
from tilemix.deltas.unsupported import DIFFERENCE, GLORA, IA3, OFT

FAMILIES = (LOW_RANK, LOHA, LOKR, DORA, OFT, IA3, DIFFERENCE, GLORA)
ALPHA = "alpha"  # the strength, times the rank; several families have it
# What follows a module's name, after a dot -> (family, part).
SUFFIXES: Mapping[str, tuple[Family | None, str]] = MappingProxyType(
    {suffix: (family, part) for family in FAMILIES for suffix, part in family.suffixes.items()}
    | {ALPHA: (None, ALPHA)}
)


def find_width(shapes: Shapes) -> int | None:
    """Return how many inputs the linear module has that the parts change; None where their shapes do not tell."""
    return next((width for family in FAMILIES if (width := family.width(shapes)) is not None), None)


def find_rank(shapes: Shapes) -> int | None:
    """Return the rank of the change that the parts make; None where they have none."""
    return next((rank for family in FAMILIES if (rank := family.rank(shapes)) is not None), None)
