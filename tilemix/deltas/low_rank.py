"""LoRA and LoCon: factor * up @ down.

Source: arXiv 2106.09685
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
class LowRank(Delta):
    """A product of two thin matrices."""

    down: torch.Tensor  # (rank, in) or (rank, in, k, k)
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1)
    factor: float

    @property
    def shape(self) -> Shape:
        return (self.up.shape[0], *self.down.shape[1:])

    def bound(self) -> float:
        return abs(self.factor) * bound_product(self.up, self.down)

    def take_rows(self, rows: tuple[slice, ...]) -> LowRank:
        """Return the change of some rows: their rows of `up`."""
        import torch

        parts = [self.up[part] for part in rows]
        return LowRank(self.down, parts[0] if len(parts) == 1 else torch.cat(parts), self.factor)

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        down, up, strength = as_matrix(self.down, device), as_matrix(self.up, device), scale * self.factor

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001  one signature for all families
            merged.addmm_(up[rows], down, alpha=strength)  # needs no matrix in between

        return add

    def merge_whole(self, weight: torch.Tensor, base: torch.Tensor, scale: float) -> None:
        """Make `weight` the base's plus this change, as the adder does but in a third of the calls.

        Merging the 560 modules of a narrow model costs nothing but calls.
        """
        import torch

        device, strength = weight.device, scale * self.factor
        matrix, up, down = as_matrix(base, device), as_matrix(self.up, device), as_matrix(self.down, device)
        if weight.dtype == torch.float32 and weight.ndim == 2 and weight.is_contiguous():
            torch.addmm(matrix, up, down, alpha=strength, out=weight)
        else:
            weight.copy_(torch.addmm(matrix, up, down, alpha=strength).view(weight.shape))


def _find_width(shapes: Shapes) -> int | None:
    return columns_of(shapes, "down")


def _find_rank(shapes: Shapes) -> int | None:
    return rows_of(shapes, "down")


def _build(parts: Tensors, factor_of: FactorOf) -> Delta | None:
    down, up = parts["down"], parts["up"]
    if up.ndim != down.ndim or up.ndim not in (2, 4):
        return None
    if up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1:
        return None
    return LowRank(down, up, factor_of(down.shape[0]))


LOW_RANK = Family(
    name="LoRA",
    suffixes={
        "lora_down.weight": "down",
        "lora_up.weight": "up",
        "lora.down.weight": "down",
        "lora.up.weight": "up",
        "lora_A.weight": "down",
        "lora_B.weight": "up",
        "lora_linear_layer.down.weight": "down",
        "lora_linear_layer.up.weight": "up",
        "lora_mid.weight": "mid",
        "lora_up.bias": "bias",
        "lora_B.bias": "bias",
        "lora_bias": "bias",
    },
    complete=(frozenset({"down", "up"}),),
    refused={"mid": "Tucker core (lora_mid)", "bias": "LoRA with biases"},
    width=_find_width,
    rank=_find_rank,
    build=_build,
)
