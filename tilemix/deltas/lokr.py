"""LoKr: factor * kron(w1, w2), each of the two whole or a product of two.

Source: arXiv 2309.14859; LyCORIS' key names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

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
    rows_of,
)

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Kronecker(Delta):
    """The Kronecker product of two matrices."""

    first: tuple[torch.Tensor, ...]  # (a, b), or (a, rank) and (rank, b)
    second: tuple[torch.Tensor, ...]  # (c, d) or (c, d, k, k), or (c, rank) and (rank, d * k * k)
    factor: float

    @property
    def shape(self) -> Shape:
        rows = self.first[0].shape[0] * self.second[0].shape[0]
        return (rows, self.first[-1].shape[1] * self.second[-1].shape[1], *self.second[-1].shape[2:])

    @property
    def row_step(self) -> int:
        return self.second[0].shape[0]

    def bound(self) -> float:
        return abs(self.factor) * bound_product(*self.first) * bound_product(*self.second)

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        first, second = _multiply(self.first, device), _multiply(self.second, device) * (scale * self.factor)
        step = self.row_step

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001  one signature for all families
            # The kernel's places come last in a row, so the product of the matrices is the product's matrix.
            merged.add_(first[rows.start // step : rows.stop // step].kron(second))

        return add


def _multiply(factors: tuple[torch.Tensor, ...], device: torch.device) -> torch.Tensor:
    """Return a factor as a whole fp32 matrix."""
    if len(factors) == 1:
        return as_matrix(factors[0], device)
    return as_matrix(factors[0], device) @ as_matrix(factors[1], device)


def _find_factor(parts: Mapping[str, Value], name: str) -> tuple[Value, ...]:
    """Return a factor's tensors: one, or two to be multiplied; missing ones are left out."""
    names = (name,) if name in parts else (f"{name}_a", f"{name}_b")
    return tuple(parts[part] for part in names if part in parts)


def _find_width(shapes: Shapes) -> int | None:
    first, second = (_find_factor(shapes, name)[-1:] for name in ("lokr_w1", "lokr_w2"))
    if not all(len(shape) > 1 for shape in (*first, *second)) or not (first and second):
        return None
    return first[0][1] * second[0][1]


def _find_rank(shapes: Shapes) -> int | None:
    return rows_of(shapes, "lokr_w2_b", "lokr_w1_b")


def _build(parts: Tensors, factor_of: FactorOf) -> Delta | None:
    first, second = _find_factor(parts, "lokr_w1"), _find_factor(parts, "lokr_w2")
    pairs = [pair for pair in (first, second) if len(pair) == 2]
    if first[0].ndim != 2 or first[-1].ndim != 2 or second[-1].ndim not in (2, 4) or second[0].ndim < 2:
        return None
    ranks = {a.shape[1] for a, _ in pairs} | {b.shape[0] for _, b in pairs}
    if len(ranks) > 1 or any(a.ndim != 2 or b.ndim != 2 for a, b in pairs):
        return None
    # Two whole factors have no rank, so alpha means nothing.
    return Kronecker(first, second, factor_of(ranks.pop()) if ranks else 1.0)


_FACTORS = tuple(({f"lokr_{factor}"}, {f"lokr_{factor}_a", f"lokr_{factor}_b"}) for factor in ("w1", "w2"))
LOKR = Family(
    name="LoKr",
    suffixes={
        part: part
        for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    },
    complete=tuple(frozenset(first | second) for first in _FACTORS[0] for second in _FACTORS[1]),
    refused={"lokr_t2": "Tucker core (lokr_t2)"},
    width=_find_width,
    rank=_find_rank,
    build=_build,
)
