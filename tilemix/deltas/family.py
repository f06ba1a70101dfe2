"""What the families of weight changes have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Tensors = Mapping[str, "torch.Tensor"]  # part -> tensor
Shapes = Mapping[str, Shape]  # part -> shape
FactorOf = Callable[[int], float]  # rank -> alpha / rank
# Adds a change to some rows of a weight in place: (merged, base, rows). `merged` holds these rows so far and `base`
# the original ones, both contiguous fp32 of (rows, columns). None: `merged` still is the base.
Adder = Callable[["torch.Tensor", "torch.Tensor | None", slice], None]


class Delta(ABC):
    """The change of one module's weight."""

    sees_base = False  # whether its adder reads the base; such an adder is cheapest when it goes first

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The weight's shape, as far as the file tells it: (out, in), (out, in, k, k) or (out, columns)."""

    @property
    def row_step(self) -> int:
        """How many rows must be computed together; divides the number of rows."""
        return 1

    def bound(self) -> float:
        """Return what no number of the change exceeds, told in no time; NaN: that cannot be told."""
        return math.nan

    def fits(self, most: float) -> bool:
        """Return whether all of the change is finite and at most `most`; it is computed where its bound is more."""
        import torch

        return self.bound() <= most or find_largest(compute_change(self, torch.device("cpu"))) <= most

    def take_rows(self, rows: tuple[slice, ...]) -> Delta | None:
        """Return the change of some rows alone, in this order; None: it depends on all of them."""
        return None if self.sees_base else Rows(self, rows)

    @abstractmethod
    def make_adder(self, device: torch.device, scale: float) -> Adder:
        """Return the function that adds the change at `scale`, not 0, to rows on `device`."""


@dataclass(frozen=True, slots=True)
class Rows(Delta):
    """Some rows of a change that does not see the base; it is computed whole, once for each merging."""

    whole: Delta
    rows: tuple[slice, ...]

    @property
    def shape(self) -> Shape:
        return (sum(part.stop - part.start for part in self.rows), *self.whole.shape[1:])

    def bound(self) -> float:
        return self.whole.bound()

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        import torch

        change = compute_change(self.whole, device, scale)
        taken = torch.cat([change[part] for part in self.rows])

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001  one signature for all families
            merged.add_(taken[rows])

        return add


def _tell_nothing(_: Shapes) -> int | None:
    return None


def _build_nothing(_: Tensors, __: FactorOf) -> Delta | None:
    return None


@dataclass(frozen=True, slots=True)
class Family:
    """One way to write a change down: how files name its parts, what their shapes tell, and the change itself.

    A family without `complete` sets of parts is recognized by name but not loaded.
    """

    name: str
    # What follows a module's name in a file -> part. A part belongs to one family.
    suffixes: Mapping[str, str]
    complete: tuple[frozenset[str], ...] = ()  # the sets of parts that make one change, alpha aside
    # Part that is not supported -> its name in the refusal.
    refused: Mapping[str, str] = field(default_factory=dict)
    width: Callable[[Shapes], int | None] = _tell_nothing  # inputs of a linear module; None: not told
    rank: Callable[[Shapes], int | None] = _tell_nothing
    # Puts the parts together; None where their shapes do not fit.
    build: Callable[[Tensors, FactorOf], Delta | None] = _build_nothing
    wraps: bool = False  # whether it needs the change of another family, which it alters

    @property
    def is_loaded(self) -> bool:
        """Whether files of this family can be loaded."""
        return self.wraps or bool(self.complete)


def columns_of(shapes: Shapes, *parts: str) -> int | None:
    """Return the second dimension of the first of `parts` that is there and has one."""
    return next((shapes[part][1] for part in parts if len(shapes.get(part, ())) > 1), None)


def rows_of(shapes: Shapes, *parts: str) -> int | None:
    """Return the first dimension of the first of `parts` that is there and has one."""
    return next((shapes[part][0] for part in parts if shapes.get(part)), None)


def compute_change(delta: Delta, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """Return a change that does not see the base, whole, as an fp32 matrix."""
    import torch

    count, *columns = delta.shape
    change = torch.zeros((count, math.prod(columns)), device=device)
    delta.make_adder(device, scale)(change, None, slice(0, count))
    return change


def bound_product(*factors: torch.Tensor) -> float:
    """Return what no number of the product of two matrices, or of a whole one, exceeds; NaN: it holds inf or NaN.

    As a float of 64 bits, which holds the product where one of 32 does not.
    """
    rank = factors[1].shape[0] if len(factors) > 1 else 1
    return rank * math.prod(find_largest(factor) for factor in factors)


def find_largest(tensor: torch.Tensor) -> float:
    """Return the largest absolute value of a tensor; NaN if it holds one."""
    import torch

    if not tensor.numel():
        return 0.0
    least, most = (bound.item() for bound in torch.aminmax(tensor))  # NaN in both if there is one
    return float(max(-least, most))


def as_matrix(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor as an fp32 matrix on `device`; a kernel's dimensions are flattened into the columns."""
    matrix = tensor.to(device).float()
    return matrix if matrix.ndim == 2 else matrix.flatten(1)
