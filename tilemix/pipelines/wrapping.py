"""Convolutions that wrap: what leaves a picture on one side comes in again on the other.

torch's `padding_mode="circular"` copies the whole input of every convolution. Here a convolution pads with zeros as
before, and a hook computes the outermost rows and columns of its result again, from strips of wrapped input. In fp32
the numbers are those of the circular mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn import Conv2d
from torch.utils.hooks import RemovableHandle

ROWS, COLUMNS = 2, 3  # dimensions of (n, channels, h, w)


@contextmanager
def wrapping(*networks: torch.nn.Module) -> Iterator[None]:
    """Let the convolutions of `networks` wrap in this context, however it ends.

    They are those of diffusers' UNets and VAEs: 3x3, padded by 1, or by their caller at the right and the bottom.
    Compiled code would not call the hooks, so a compiled network runs as plain modules meanwhile.
    """
    handles: list[RemovableHandle] = []
    compiled = {}
    try:
        for network in networks:
            if "forward" in vars(network):
                compiled[network] = vars(network).pop("forward")
            for module in network.modules():
                if not isinstance(module, Conv2d) or module.kernel_size == (1, 1):
                    continue
                assert module.kernel_size == (3, 3), module
                if module.padding == (1, 1):
                    handles.append(module.register_forward_hook(_wrap_edges))
                else:
                    assert (module.padding, module.stride) == ((0, 0), (2, 2)), module
                    handles.append(module.register_forward_pre_hook(_fill_padding))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for network, forward in compiled.items():
            network.forward = forward


def _wrap_edges(convolution: Conv2d, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
    (stride, _), (x,) = convolution.stride, args
    for along, other in ((ROWS, COLUMNS), (COLUMNS, ROWS)):
        length = x.shape[along]
        if stride == 1:
            # The last row and the first, from two rows on either side of the seam.
            strip = torch.cat([x.narrow(along, length - 2, 2), x.narrow(along, 0, 2)], along)
            places = [output.shape[along] - 1, 0]
        else:
            # The first row alone reads from the other side. Two are computed, because oneDNN 3.7 returns wrong
            # numbers for a result one column wide, in bf16 with a stride of 2.
            strip = torch.cat([x.narrow(along, length - 1, 1), x.narrow(along, 0, 4)], along)
            places = [0, 1]
        ends = [strip.narrow(other, strip.shape[other] - 1, 1), strip]
        if stride == 1:
            ends.append(strip.narrow(other, 0, 1))
        edges = F.conv2d(torch.cat(ends, other), convolution.weight, convolution.bias, stride)
        for number, place in enumerate(places):
            output.select(along, place).copy_(edges.select(along, number))


def _fill_padding(_: Conv2d, args: tuple[torch.Tensor]) -> None:
    """Put the first row and the first column in the place of the zeros that diffusers' VAE encoder has padded with."""
    (x,) = args
    x[..., -1, :] = x[..., 0, :]
    x[..., -1] = x[..., 0]
