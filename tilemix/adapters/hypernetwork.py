"""A hypernetwork for SD 1.x: small networks that change what the UNet's attention makes its keys and values from.

A file has a pair of them for each width: one for the keys, one for the values. A context x becomes x + strength * H(x)
before `to_k` or `to_v`. Attention within the picture has one, too; a width that the file lacks is left as it is.

Read is what `tilemix weights convert` makes of the web UI's `.pt` files: `768.0.linear.0.weight`, and the settings in
the metadata. Which layers there are, the tensors tell; the settings tell what comes between them.

Source: the structure of the web UI's hypernetworks, described from its files and its documentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tilemix.adapters.tensor_file import TensorFile
from tilemix.errors import LIST_SEPARATOR, AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.modelfile.header import Header

NAME = re.compile(r"(?P<width>\d{1,5})\.(?P<part>[01])\.linear\.(?P<place>\d{1,3})\.(?P<kind>weight|bias)")
OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}  # of files from 2022
# The settings' names -> torch's classes, with their defaults.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "linear": nn.Identity, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu6": nn.ReLU6, "selu": nn.SELU, "celu": nn.CELU, "gelu": nn.GELU,
    "silu": nn.SiLU, "mish": nn.Mish, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh, "softplus": nn.Softplus, "softsign": nn.Softsign, "tanhshrink": nn.Tanhshrink,
    "logsigmoid": nn.LogSigmoid, "hardshrink": nn.Hardshrink, "softshrink": nn.Softshrink,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """A loaded hypernetwork."""

    name: str  # the file's
    layers: Mapping[int, tuple[nn.Module, nn.Module]]  # width of the context -> for the keys, for the values

    def change(
        self, key: torch.Tensor, value: torch.Tensor, strength: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the keys and what the values are made from, (n, places, width) each."""
        pair = self.layers.get(key.shape[-1])
        if pair is None:
            return key, value
        return key + strength * pair[0](key), value + strength * pair[1](value)


def read_hypernetwork(path: Path, device: torch.device, dtype: torch.dtype) -> Hypernetwork:
    """Read the hypernetwork at `path`.

    Args:
        path: a safetensors file as `tilemix weights convert` writes it.
        device: where its networks are to be.
        dtype: of the UNet.

    Raises:
        ModelFileError: not a safetensors file.
        AdapterError: not a hypernetwork, one with an unknown activation, one whose layers do not fit together, or
            one whose numbers are not finite in `dtype`.
    """
    file = TensorFile(path)
    placed = _place(path.name, file.header)
    for name in file.header.tensors:
        if not bool(file.get_tensor(name).to(dtype).isfinite().all()):
            kind = str(dtype).removeprefix("torch.")
            raise AdapterError("hypernetwork-not-finite", file=path.name, tensor=name, dtype=kind)
    activation, activates_output = _read_settings(path.name, file.header)
    layers: dict[int, tuple[nn.Module, nn.Module]] = {}
    for width, parts in placed.items():
        if len(parts) != 2:
            raise AdapterError("hypernetwork-half", file=path.name, width=width)
        made = [
            _build(path.name, file, width, parts[part], activation, activates_output=activates_output)
            for part in (0, 1)
        ]
        layers[width] = (made[0].to(device, dtype).eval(), made[1].to(device, dtype).eval())
    return Hypernetwork(path.name, layers)


Tensors = dict[int, dict[str, str]]  # place in the sequence -> "weight", "bias" -> tensor


def _place(file: str, header: Header) -> dict[int, dict[int, Tensors]]:
    placed: dict[int, dict[int, Tensors]] = {}
    for tensor in header.tensors:
        name = tensor
        for old, new in OLD_NAMES.items():
            name = name.replace(f".{old}.", f".{new}.")
        match = NAME.fullmatch(name)
        if match is None:
            raise AdapterError("hypernetwork-foreign", file=file, tensor=tensor[:80])
        part = placed.setdefault(int(match["width"]), {}).setdefault(int(match["part"]), {})
        part.setdefault(int(match["place"]), {})[match["kind"]] = tensor
    if not placed:
        raise AdapterError("hypernetwork-foreign", file=file, tensor="-")
    return placed


def _read_settings(file: str, header: Header) -> tuple[type[nn.Module], bool]:
    """Return the class of the activation, and whether it follows the last layer, too."""
    try:
        name = json.loads(header.metadata.get("activation_func", "null"))
        activates_output = json.loads(header.metadata.get("activate_output", "true"))
    except (ValueError, RecursionError) as error:
        raise AdapterError("hypernetwork-settings", file=file, reason=str(error)[:80]) from error
    activation = ACTIVATIONS.get(str("linear" if name is None else name).lower())
    if activation is None:
        known = LIST_SEPARATOR.join(sorted(ACTIVATIONS))
        raise AdapterError("hypernetwork-activation", file=file, found=str(name)[:80], known=known)
    return activation, bool(activates_output)


def _build(
    file: str,
    held: TensorFile,
    width: int,
    places: Tensors,
    activation: type[nn.Module],
    *,
    activates_output: bool,
) -> nn.Sequential:
    """Return the network for one width: each layer, its activation, and its norm where there is one."""
    layers: list[nn.Module] = []
    out = width
    for place in sorted(places):
        names = places[place]
        tensors = {kind: held.get_tensor(name).float() for kind, name in names.items()}
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if (
            weight is None
            or bias is None
            or weight.ndim not in (1, 2)
            or (weight.shape[-1], bias.shape) != (out, weight.shape[:1])
        ):
            raise AdapterError("hypernetwork-layer", file=file, width=width, layer=place)
        out = len(weight)
        layer = nn.Linear(weight.shape[1], out) if weight.ndim == 2 else nn.LayerNorm(out)
        layer.load_state_dict(tensors)
        layers += [layer, activation()] if weight.ndim == 2 else [layer]
    last = max((place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)), default=None)
    if out != width or last is None:
        raise AdapterError("hypernetwork-layer", file=file, width=width, layer=max(places))
    if not activates_output:
        del layers[last + 1]
    return nn.Sequential(*layers).requires_grad_(requires_grad=False)


def chain(
    context: torch.Tensor, hypernetworks: Sequence[tuple[Hypernetwork, float]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what keys and values are made from after several hypernetworks, one after the other."""
    key = value = context
    for hypernetwork, strength in hypernetworks:
        key, value = hypernetwork.change(key, value, strength)
    return key, value
