"""DoRA: the weight becomes magnitude * (W + scale * inner) / |W + scale * inner|; `inner` is another family's change.

Source: arXiv 2402.09353
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilemix.deltas.family import Adder, Delta, Family, Shape, Tensors, find_largest
from tilemix.errors import LIST_SEPARATOR, AdapterError

if TYPE_CHECKING:
    import torch

LEAST_NORM = 2.0**-126  # the smallest normal fp32 number


@dataclass(frozen=True, slots=True)
class Dora(Delta):
    """A change with a learned norm for each output row; in LyCORIS' older files, for each input column.

    By this formula scale 0 would still give magnitude * W / |W|. The project's rule goes before it: an adapter at
    scale 0 is absent, and the merger leaves it out, so the base comes back bit for bit.

    Beside other adapters the formula sees only the base and its own inner change. What it changes is added to what
    the others change, so their order does not matter.
    """

    inner: Delta
    magnitude: torch.Tensor  # one number for each row or column
    by_column: bool
    sees_base = True

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    @property
    def row_step(self) -> int:
        return self.shape[0] if self.by_column else self.inner.row_step  # a column's norm needs all rows

    def fits(self, most: float) -> bool:
        """Return whether the inner change and the norms, which no number of the weight exceeds, are at most `most`."""
        return self.inner.fits(most) and find_largest(self.magnitude) <= most

    def take_rows(self, rows: tuple[slice, ...]) -> Dora | None:
        """Return the change of some rows; None where the norms are those of columns."""
        import torch

        inner = None if self.by_column else self.inner.take_rows(rows)
        if inner is None:
            return None
        numbers = self.magnitude.flatten()
        return Dora(inner, torch.cat([numbers[part] for part in rows]), by_column=False)

    def make_adder(self, device: torch.device, scale: float) -> Adder:
        import torch

        add_inner = self.inner.make_adder(device, scale)
        magnitude = self.magnitude.to(device).float().flatten()

        def add(merged: torch.Tensor, base: torch.Tensor | None, rows: slice) -> None:
            weight = merged if base is None else base.clone()
            add_inner(weight, None, rows)
            if self.by_column:  # as (out, in, k * k): a column is everything that one input feeds
                weight = weight.view(len(weight), len(magnitude), -1)
                norm = torch.linalg.vector_norm(weight, dim=(0, 2), keepdim=True)
                wanted = magnitude.view(1, -1, 1)
            else:
                norm = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
                wanted = magnitude[rows, None]
            # A row of zeros has no direction; it stays zero.
            weight.mul_(wanted / norm.clamp_min(LEAST_NORM))
            if base is not None:
                merged.add_(weight.view_as(base).sub_(base))

        return add


def add_magnitude(file: str, module: str, parts: Tensors, inner: Delta, width: int) -> Delta:
    """Return `inner` with the norms that `parts` hold for it, or as it is where they hold none.

    `width`: how many inputs the module has; a convolution's change may be flat, (out, inputs * k * k).

    Raises:
        AdapterError: two kinds of norms, or not one for each row.
    """
    found = sorted(DORA_PARTS & parts.keys())
    if not found:
        return inner
    if len(found) > 1:
        raise AdapterError("lora-dora-twice", file=file, module=module, parts=LIST_SEPARATOR.join(found))
    part = found[0]
    magnitude = parts[part]
    rows = inner.shape[0]
    # PEFT stores (out,), for convolutions (1, out, 1, 1); kohya (out, 1[, 1, 1]); old LyCORIS (1, in[, 1, 1]).
    if magnitude.numel() == rows and (part == "magnitude" or magnitude.shape[:1] == (rows,)):
        return Dora(inner, magnitude, by_column=False)
    if part == "dora_scale" and tuple(magnitude.shape[:2]) == (1, width) == (1, magnitude.numel()):
        return Dora(inner, magnitude, by_column=True)
    shape = "x".join(map(str, magnitude.shape))
    raise AdapterError("lora-dora-shape", file=file, part=part, module=module, shape=shape, rows=rows)


DORA = Family(
    name="DoRA",
    suffixes={
        "dora_scale": "dora_scale",
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
    },
    wraps=True,
)
DORA_PARTS = frozenset(DORA.suffixes.values())
