"""TILEMIX_COMPILE: the UNet and the VAE's decoder, compiled by torch for one picture size.

torch fuses the operations between the big products and writes C++ (on a CPU) or Triton (on a GPU, where it also
tries several kernels for each product and records the whole as a CUDA graph). That takes minutes, once, so it pays
in a process that draws many pictures. `TORCHINDUCTOR_CACHE_DIR` names a folder where torch keeps the code for the
next start. Only the manifest's own size is compiled; other sizes are drawn by the plain modules, without delay.

The weights stay where they are: a LoRA at another scale is merged into them and needs no new code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tilemix.errors import TilemixError

WARM_UP_STEPS = 4  # enough for both batch sizes of `fast`, and for the runs before a CUDA graph is recorded


def compile_networks(networks: Sequence[torch.nn.Module], device: torch.device) -> None:
    """Let `networks`, which are on `device`, be compiled when they are next called.

    Their hooks stay outside the compiled code: they cast, and they fill the buffers that it reads.
    """
    for network in networks:
        # dynamic=False: code for every size is slower, and a CUDA graph has one size.
        compiled = torch.compile(
            network.forward,
            fullgraph=True,
            dynamic=False,
            mode="max-autotune" if device.type == "cuda" else None,
        )
        network.forward = compiled


@contextmanager
def compiling() -> Iterator[None]:
    """Turn torch's errors into one line that says why it cannot compile.

    Raises:
        TilemixError: torch cannot compile here.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TilemixError("settings-cannot-compile", reason=reason[:200]) from error


@contextmanager
def plain_where_not_compiled(*, is_compiled: bool) -> Iterator[None]:
    """Compile nothing in this context: what has no code yet, such as another size, runs as plain modules."""
    if not is_compiled:
        yield
        return
    with torch.compiler.set_stance("eager_on_recompile"):
        yield
