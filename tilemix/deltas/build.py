"""One module's tensors -> its change, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilemix.deltas.dora import DORA_PARTS, add_magnitude
from tilemix.deltas.families import ALPHA, FAMILIES
from tilemix.deltas.family import Delta, FactorOf, Family, Tensors
from tilemix.errors import LIST_SEPARATOR, AdapterError

if TYPE_CHECKING:
    import torch

MAX_ALPHA = 1e6
INTEGERS = ("int8", "uint8", "int16", "int32", "int64")  # some files count alpha in them


def is_wide_float(tensor: torch.Tensor) -> bool:
    """Return whether the numbers are floats of 16 bits or more: those that adapters are stored in."""
    return tensor.is_floating_point() and tensor.element_size() >= 2


def build_delta(file: str, module: str, parts: Tensors, factor_of: FactorOf, width: int) -> Delta:
    """Put one module's tensors together.

    Args:
        file: the file's name, for messages; `module` likewise.
        module: the module's path.
        parts: the tensors by part, all of them finite but for alpha.
        factor_of: alpha / rank for a rank, where the parts hold no alpha.
        width: how many inputs, or input channels, the module has.

    Raises:
        AdapterError: a part is missing, empty, left over, of another dtype, or does not fit the others.
    """
    for part, tensor in parts.items():
        if not tensor.numel():
            raise AdapterError("lora-empty-part", file=file, part=part, module=module)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not is_wide_float(tensor) and not (part == ALPHA and dtype in INTEGERS):
            raise AdapterError("lora-dtype", file=file, part=part, module=module, dtype=dtype)
    family = _find_family(file, module, parts)
    delta = family.build(parts, _read_alpha(file, module, parts, factor_of))
    if delta is None:
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items() if part != ALPHA)
        raise AdapterError("lora-misfit", file=file, family=family.name, module=module, shapes=shapes)
    return add_magnitude(file, module, parts, delta, width)


def _read_alpha(file: str, module: str, parts: Tensors, factor_of: FactorOf) -> FactorOf:
    if ALPHA not in parts:
        return factor_of
    if parts[ALPHA].numel() != 1:
        raise AdapterError("lora-alpha-shape", file=file, module=module, shape=str(tuple(parts[ALPHA].shape)))
    alpha = float(parts[ALPHA].item())

    def divide(rank: int) -> float:
        # Only where it counts: LyCORIS writes inf or 1e10 for a LoKr whose factors are both whole.
        if not abs(alpha) <= MAX_ALPHA:
            raise AdapterError("lora-alpha", file=file, module=module, alpha=alpha, most=MAX_ALPHA)
        return alpha / rank

    return divide


def _find_family(file: str, module: str, parts: Tensors) -> Family:
    core = parts.keys() - DORA_PARTS - {ALPHA}
    for family in FAMILIES:
        if core in family.complete:
            return family
    found = LIST_SEPARATOR.join(sorted(core or parts))
    for family in FAMILIES:
        if any(core < whole for whole in family.complete):
            raise AdapterError("lora-half", file=file, family=family.name, module=module, parts=found)
    raise AdapterError("lora-two-families", file=file, module=module, parts=found)
