"""LoHa: factor * (w1_a @ w1_b) * (w2_a @ w2_b), the middle product element by element.

Source: FedPara, arXiv 2108.06098; LyCORIS' key names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilemix.deltas.family import (
    Adder,
    Delta,
    FactorOf,
    Family,
    Shape,
    Shapes,
    Tensors,
    as_matrix,
    bound_product,
    columns_of,
    rows_of,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Hadamard(Delta):
    """The element-wise product of two low-rank matrices."""

    # (out, rank) or (out, rank, 1, 1), and (rank, columns) or (rank, in, k, k)
    first: tuple[torch.Tensor, torch.Tensor]
    second: tuple[torch.Tensor, torch.Tensor]
    factor: float

    @property
    def shape(self) -> Shape:
        return (self.first[0].shape[0], *self.first[1].shape[1:])

    def bound(self) -> float:
        return abs(self.factor) * bound_product(*self.first) * bound_product(*self.second)

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        (a, b), (c, d) = (
            [as_matrix(factor, device) for factor in pair] for pair in (self.first, self.second)
        )
        strength = scale * self.factor

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001  one signature for all families
            merged.addcmul_(a[rows] @ b, c[rows] @ d, value=strength)

        return add


def _find_width(shapes: Shapes) -> int | None:
    return columns_of(shapes, "hada_w1_b", "hada_w2_b")


def _find_rank(shapes: Shapes) -> int | None:
    return rows_of(shapes, "hada_w1_b", "hada_w2_b")


def _build(parts: Tensors, factor_of: FactorOf) -> Delta | None:
    a, b, c, d = (parts[f"hada_{half}"] for half in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if any(tensor.ndim not in (2, 4) for tensor in (a, b, c, d)):
        return None
    if any(math.prod(tensor.shape[2:]) != 1 for tensor in (a, c)):
        return None
    ranks = {a.shape[1], b.shape[0], c.shape[1], d.shape[0]}
    if len(ranks) > 1 or a.shape[0] != c.shape[0] or b.shape[1:] != d.shape[1:]:
        return None
    return Hadamard((a, b), (c, d), factor_of(ranks.pop()))


LOHA = Family(
    name="LoHa",
    suffixes={
        part: part for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    },
    complete=(frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
    refused=dict.fromkeys(("hada_t1", "hada_t2"), "Tucker core (hada_t)"),
    width=_find_width,
    rank=_find_rank,
    build=_build,
)
