"""The changes that adapters make to one module's weight, and how they are added to it.

All of them are computed in fp32 from tensors kept as the file stores them, memory-mapped and small, and for a
few rows of the weight at a time. W is the base's weight as a matrix (out, columns): columns is `in` of a linear
module, `in * k * k` of a convolution. `scale` is the adapter's strength, `factor` its alpha / rank.

Sources: LoRA (arXiv 2106.09685), LoHa, FedPara (arXiv 2108.06098), LoKr (arXiv 2309.14859),
DoRA (arXiv 2402.09353).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tilemix.errors import AdapterError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)  # some files count alpha in them
MAX_ALPHA = 1e6
FAMILIES = {
    "pair": ({"down", "up"},),
    "LoHa": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},),
    "LoKr": tuple(
        first | second
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
    ),
}
# Adds a change to some rows of a weight in place: (merged, base, rows). `merged` is what these rows are so far and
# `base` what they were, both contiguous fp32 of (rows, columns); None: `merged` is the base still.
Adder = Callable[[torch.Tensor, torch.Tensor | None, slice], None]


class Delta(ABC):
    """One module's change."""

    sees_base = False  # whether its adder looks at the base: it is the cheapest as the first one

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, as far as the file tells it: (out, in), (out, in, k, k) or (out, columns)."""

    @property
    def row_step(self) -> int:
        """How many rows can only be computed together; a divisor of all of them."""
        return 1

    @abstractmethod
    def make_adder(self, device: torch.device, scale: float) -> Adder:
        """Return what adds the change at `scale`, not 0, to rows on `device`."""


@dataclass(frozen=True, slots=True)
class LowRank(Delta):
    """LoRA and LoCon: factor * up @ down."""

    down: torch.Tensor  # (rank, in) or (rank, in, k, k)
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1)
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        down, up, strength = _float(self.down, device), _float(self.up, device), scale * self.factor

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001
            merged.addmm_(up[rows], down, alpha=strength)  # without a matrix in between

        return add

    def merge_whole(self, weight: torch.Tensor, base: torch.Tensor, scale: float) -> None:
        """Make `weight` the base's plus this change: what the adder gives, in a third of the calls.

        A narrow model's 560 modules cost nothing but calls.
        """
        device, strength = weight.device, scale * self.factor
        matrix, up, down = _float(base, device), _float(self.up, device), _float(self.down, device)
        if weight.dtype == torch.float32 and weight.ndim == 2 and weight.is_contiguous():
            torch.addmm(matrix, up, down, alpha=strength, out=weight)
        else:
            weight.copy_(torch.addmm(matrix, up, down, alpha=strength).view(weight.shape))


@dataclass(frozen=True, slots=True)
class Hadamard(Delta):
    """LoHa: factor * (w1_a @ w1_b) * (w2_a @ w2_b), the middle product element by element."""

    first: tuple[torch.Tensor, ...]  # (out, rank), (rank, columns)
    second: tuple[torch.Tensor, ...]
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.first[0].shape[0], self.first[1].shape[1])

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        (a, b), (c, d) = ([_float(factor, device) for factor in pair] for pair in (self.first, self.second))
        strength = scale * self.factor

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001
            merged.addcmul_(a[rows] @ b, c[rows] @ d, value=strength)

        return add


@dataclass(frozen=True, slots=True)
class Kronecker(Delta):
    """LoKr: factor * kron(w1, w2), either of them whole or as a product of two."""

    first: tuple[torch.Tensor, ...]  # (a, b), or (a, rank) and (rank, b)
    second: tuple[torch.Tensor, ...]  # (c, d) or (c, d, k, k), or (c, rank) and (rank, d * k * k)
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        rows = self.first[0].shape[0] * self.second[0].shape[0]
        return (rows, self.first[-1].shape[1] * self.second[-1].shape[1], *self.second[-1].shape[2:])

    @property
    def row_step(self) -> int:
        return self.second[0].shape[0]

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        first, second = _product(self.first, device), _product(self.second, device) * (scale * self.factor)
        step = self.row_step

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:  # noqa: ARG001
            # A kernel's places stay the last in a row, so that the product of the matrices is the matrix of it.
            merged.add_(torch.kron(first[rows.start // step : rows.stop // step], second))

        return add


@dataclass(frozen=True, slots=True)
class Dora(Delta):
    """DoRA: the weight becomes magnitude * (W + scale * inner) / |W + scale * inner|.

    The norm is of each output row, or of each input column in LyCORIS' older files. With this formula
    scale 0 would still give magnitude * W / |W|. The project's rule goes before it: an adapter at scale 0
    is taken away, and the merger leaves it out, so that the base comes back bit for bit.

    Beside other adapters the formula sees the base and its own inner change alone; what it changes is
    added to what they change, so their order does not matter.
    """

    inner: Delta
    magnitude: torch.Tensor  # one number for each row or column
    by_column: bool
    sees_base = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def row_step(self) -> int:
        return self.shape[0] if self.by_column else self.inner.row_step  # a column's norm needs all rows

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        add_inner = self.inner.make_adder(device, scale)
        magnitude = self.magnitude.to(device, torch.float32).flatten()

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:
            weight = merged if base is None else base.clone()
            add_inner(weight, None, rows)
            if self.by_column:  # as (out, in, k * k): a column is all that one input goes into
                weight = weight.view(len(weight), len(magnitude), -1)
                norm = torch.linalg.vector_norm(weight, dim=(0, 2), keepdim=True)
                wanted = magnitude.view(1, -1, 1)
            else:
                norm = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
                wanted = magnitude[rows, None]
            # A row of zeros has no direction; it stays zero.
            weight.mul_(wanted / norm.clamp_min(torch.finfo(torch.float32).tiny))
            if base is not None:
                merged.add_(weight.view_as(base).sub_(base))

        return add


def build_delta(
    file: str, module: str, parts: Mapping[str, torch.Tensor], factor_of: Callable[[int], float]
) -> Delta:
    """Put one module's tensors together.

    Args:
        file: the file's name, for messages; `module` likewise.
        module: the module's path.
        parts: the tensors by their part, see `tilemix.adapters.spelling`; their numbers are finite.
        factor_of: alpha / rank for a rank, where the parts hold no alpha.

    Raises:
        AdapterError: a part is missing, left over, of another dtype, or does not fit the others.
    """
    for part, tensor in parts.items():
        if tensor.dtype not in FLOATS and not (part == "alpha" and tensor.dtype in INTEGERS):
            raise AdapterError(
                f"{file}: {part!r} of {module} is {tensor.dtype}, expected a float of 16 bits or more"
            )
    family = _find_family(file, module, set(parts))
    factor = factor_of
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            shape = tuple(parts["alpha"].shape)
            raise AdapterError(f"{file}: alpha of {module} has the shape {shape}, expected one number")
        alpha = float(parts["alpha"].item())
        if abs(alpha) > MAX_ALPHA:
            raise AdapterError(f"{file}: alpha of {module} is {alpha:g}, expected at most {MAX_ALPHA:g}")
        factor = _divide(alpha)
    delta = _build_family(family, parts, factor)
    if delta is None:
        shapes = ", ".join(
            f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items() if part != "alpha"
        )
        raise AdapterError(f"{file}: the {family} for {module} does not fit together: {shapes}")
    return _add_magnitude(file, module, parts, delta)


def _find_family(file: str, module: str, parts: set[str]) -> str:
    core = parts - {"alpha", "dora_scale", "magnitude"}
    for family, complete in FAMILIES.items():
        if core in complete:
            return family
    for family, complete in FAMILIES.items():
        if any(core < parts_of_one for parts_of_one in complete):
            found = ", ".join(repr(part) for part in sorted(core or parts))
            raise AdapterError(f"{file}: half a {family} for {module}: only {found} is there")
    found = ", ".join(repr(part) for part in sorted(core))
    raise AdapterError(f"{file}: {module} is changed in more than one way: {found}")


def _build_family(
    family: str, parts: Mapping[str, torch.Tensor], factor: Callable[[int], float]
) -> Delta | None:
    """Build the change, or return None where the shapes do not fit together."""
    if family == "pair":
        down, up = parts["down"], parts["up"]
        if up.ndim != down.ndim or up.ndim not in (2, 4):
            return None
        if up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1:
            return None
        return LowRank(down, up, factor(down.shape[0]))
    if family == "LoHa":
        first, second = _read_factors(parts, "hada_w1"), _read_factors(parts, "hada_w2")
        if any(tensor.ndim != 2 for tensor in (*first, *second)) or not _agree(first, second):
            return None
        return Hadamard(first, second, factor(first[1].shape[0]))
    first, second = _read_factors(parts, "lokr_w1"), _read_factors(parts, "lokr_w2")
    pairs = [pair for pair in (first, second) if len(pair) == 2]
    if first[0].ndim != 2 or first[-1].ndim != 2 or second[-1].ndim not in (2, 4) or second[0].ndim < 2:
        return None
    ranks = {a.shape[1] for a, _ in pairs} | {b.shape[0] for _, b in pairs}
    if len(ranks) > 1 or any(a.ndim != 2 or b.ndim != 2 for a, b in pairs):
        return None
    # Both whole: nothing has a rank, and alpha means nothing.
    return Kronecker(first, second, factor(ranks.pop()) if ranks else 1.0)


def _agree(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> bool:
    ranks = {first[0].shape[1], first[1].shape[0], second[0].shape[1], second[1].shape[0]}
    outs = {first[0].shape[0], second[0].shape[0]}
    columns = {first[1].shape[1], second[1].shape[1]}
    return len(ranks) == len(outs) == len(columns) == 1


def _read_factors(parts: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, ...]:
    return (parts[name],) if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])


def _add_magnitude(file: str, module: str, parts: Mapping[str, torch.Tensor], delta: Delta) -> Delta:
    found = [part for part in ("dora_scale", "magnitude") if part in parts]
    if not found:
        return delta
    if len(found) > 1:
        raise AdapterError(f"{file}: {module} has two kinds of DoRA norms: 'dora_scale', 'magnitude'")
    part = found[0]
    magnitude = parts[part]
    rows, columns = delta.shape[:2]
    # PEFT stores (out,), for convolutions (1, out, 1, 1); kohya (out, 1[, 1, 1]); old LyCORIS (1, in[, 1, 1]).
    if magnitude.numel() == rows and (part == "magnitude" or magnitude.shape[:1] == (rows,)):
        return Dora(delta, magnitude, by_column=False)
    if part == "dora_scale" and tuple(magnitude.shape[:2]) == (1, columns) == (1, magnitude.numel()):
        return Dora(delta, magnitude, by_column=True)
    shape = "x".join(map(str, magnitude.shape))
    raise AdapterError(
        f"{file}: {part!r} of {module} is {shape}, expected one number for each of {rows} rows"
    )


def _divide(alpha: float) -> Callable[[int], float]:
    return lambda rank: alpha / rank


def _float(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    matrix = tensor.to(device, torch.float32)
    return matrix if matrix.ndim == 2 else matrix.flatten(1)


def _product(factors: tuple[torch.Tensor, ...], device: torch.device) -> torch.Tensor:
    """Return the whole of a factor as a matrix of its own, fp32."""
    if len(factors) == 1:
        return _float(factors[0], device)
    return _float(factors[0], device) @ _float(factors[1], device)
