"""Linear layers whose products are of 8-bit floats: both factors in float8_e4m3fn, scaled by their largest number.

The weight is rounded once, an activation each time. Sums are in fp32. This gives another picture: what it gains is
told apart from everything else, with what it costs.

Sources: FP8 Formats for Deep Learning, arXiv 2209.05433; torch._scaled_mm, which torchao's float8 stands on.
"""

from __future__ import annotations

import torch
from torch import nn

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
MULTIPLE = 16  # of both sides of a weight, which the matrix units ask for
LAYERS = (".ff.net.0.proj", ".ff.net.2", ".to_out.0", ".attn2.to_q")  # of a transformer block


def quantize(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor in 8 bits, and the fp32 scale, one number, that gives its size back."""
    scale = tensor.abs().amax().float().clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return (tensor / scale).clamp(-LARGEST, LARGEST).to(DTYPE), scale


def multiply(
    rows: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return rows @ weight.T in `dtype`, from what `quantize` gave of both."""
    if rows.device.type == "cpu":  # where torch's own takes a thousand times as long
        return (rows.float() @ weight.float().t() * (scale * weight_scale)).to(dtype)
    return torch._scaled_mm(  # noqa: SLF001 torch has no public name for it
        rows, weight.t(), scale_a=scale, scale_b=weight_scale, out_dtype=dtype, use_fast_accum=True
    )


class Fp8Linear(nn.Module):
    """A linear layer in 8 bits, made of one whose weight it rounds as it is now."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the layer's output (..., out) of (..., in)."""
        rows, scale = quantize(hidden_states.reshape(-1, hidden_states.shape[-1]))
        product = multiply(rows, scale, self.weight, self.scale, hidden_states.dtype)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*hidden_states.shape[:-1], -1)


def find_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """Return every layer that can be replaced, by its path."""
    return {
        path: module
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        and path.endswith(LAYERS)
        and module.in_features % MULTIPLE == 0 == module.out_features % MULTIPLE
    }
