"""What can be changed about how our networks run, each as a context that undoes it: the levers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.fp8 import Fp8Linear, find_layers
from bench.gpu.graph import GraphedForward, record_calls, record_cuda_graph
from bench.ours import replaced

if TYPE_CHECKING:
    from bench.ours import Ours

REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")  # compiled once for each width, run many times
MANY = 64


@contextmanager
def contiguous(ours: Ours) -> Iterator[None]:
    """Take channels_last away from the UNet and the VAE."""
    networks = (ours.pipeline.unet, ours.pipeline.vae)
    # Converted there and back, a kernel of 1x1 has other strides, and another algorithm's last bits.
    own = [(parameter, parameter.data) for network in networks for parameter in network.parameters()]
    try:
        for parameter, data in own:
            parameter.data = data.contiguous()
        yield
    finally:
        for parameter, data in own:
            parameter.data = data


@contextmanager
def plain_attention(ours: Ours) -> Iterator[None]:
    """Give the UNet diffusers' own attention: three projections, and the text's keys in every step."""
    unet = ours.pipeline.unet
    own = dict(unet.attn_processors)
    with replaced(type(ours.base.text_keys), "compute", lambda *_: None):
        unet.set_attn_processor(AttnProcessor2_0())
        try:
            yield
        finally:
            unet.set_attn_processor(own)


@contextmanager
def back_end(ours: Ours, *, name: str) -> Iterator[None]:
    """Allow the UNet one implementation of attention: FLASH_ATTENTION, CUDNN_ATTENTION, EFFICIENT_ATTENTION, MATH.

    The VAE keeps its choice: few of them take its one head of 512 channels.
    """
    unet = ours.pipeline.unet
    own, kernel = unet.forward, getattr(SDPBackend, name)

    def forward(*args: object, **kwargs: object) -> object:
        with sdpa_kernel(kernel):
            return own(*args, **kwargs)

    with forward_replaced(unet, forward):
        yield


@contextmanager
def graphed(ours: Ours) -> Iterator[None]:
    """Run the UNet as a CUDA graph."""
    on_gpu = ours.ready.device.type == "cuda"
    unet = ours.pipeline.unet
    with forward_replaced(unet, GraphedForward(unet.forward, record_cuda_graph if on_gpu else record_calls)):
        yield


@contextmanager
def searched_convolutions(_: Ours) -> Iterator[None]:
    """Let cuDNN try its algorithms for each size of a convolution, and keep the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def compiled_regions(ours: Ours) -> Iterator[None]:
    """Compile the blocks that the UNet repeats: seconds, where the whole takes minutes."""
    with ExitStack() as stack:
        # A block's code is compiled for each width and size that SDXL has of it, which are more than torch's 8.
        stack.enter_context(torch._dynamo.config.patch({_find_limit(): MANY}))  # noqa: SLF001  torch has no public name for it
        for module in ours.pipeline.unet.modules():
            if type(module).__name__ in REPEATED:
                stack.enter_context(forward_replaced(module, compile_forward(module)))
        yield


def _find_limit() -> str:
    """Return the name of torch's limit to how often code is compiled anew; it was another one up to torch 2.6."""
    return "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # noqa: SLF001  torch has no public name for it


@contextmanager
def compiled_decoder(ours: Ours) -> Iterator[None]:
    """Compile the VAE's decoder, whole."""
    decoder = ours.pipeline.vae.decoder
    with forward_replaced(decoder, compile_forward(decoder)):
        yield


@contextmanager
def in_fp8(ours: Ours) -> Iterator[None]:
    """Run the products of the UNet's transformer blocks in 8 bits."""
    unet = ours.pipeline.unet
    own = find_layers(unet)
    try:
        for path, linear in own.items():
            unet.set_submodule(path, Fp8Linear(linear))
        yield
    finally:
        for path, linear in own.items():
            unet.set_submodule(path, linear)


@contextmanager
def stacked(ours: Ours) -> Iterator[None]:
    """Take what compiles in seconds together: regions and decoder compiled, the UNet as a CUDA graph."""
    with compiled_regions(ours), compiled_decoder(ours), graphed(ours):
        yield


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put another forward() before a module's own, inside its hooks."""
    assert "forward" not in vars(module), "replaced already"
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def compile_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's forward(), to be compiled at its first call."""
    compiled: Callable[..., Any] = torch.compile(module.forward, fullgraph=True, dynamic=False)
    return compiled
