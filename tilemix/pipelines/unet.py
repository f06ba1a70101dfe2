"""A UNet of diffusers: loaded tensor by tensor, and computing in half precision between fp32 latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tilemix.errors import ModelFileError
from tilemix.modelfile.header import read_header
from tilemix.pipelines.parts import shorten

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def load_unet(folder: Path, tensors: Path, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load a UNet from the `folder` of its configuration and the file of its `tensors`.

    `from_pretrained` maps the file into memory, where it stays until the last copy in another dtype is made, and
    is read page by page as it is touched. Here each tensor is read and converted before the next.

    Raises:
        ModelFileError: the two do not match, or one of them cannot be read.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors import SafetensorError, safe_open

    header = read_header(tensors)
    found: dict[str, object] = {name: info.shape for name, info in header.tensors.items()}
    try:
        with torch.device("meta"):
            unet: UNet2DConditionModel = UNet2DConditionModel.from_config(
                UNet2DConditionModel.load_config(folder)
            )
        expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                has, needs = (shapes.get(name, "missing") for shapes in (found, expected))
                raise ModelFileError(
                    "weights-wrong-tensor",
                    file=str(tensors),
                    tensor=name[:80],
                    found=str(has),
                    expected=str(needs),
                )
        with safe_open(tensors, framework="pt", backend="pread") as file:
            state = {name: file.get_tensor(name).to(device, dtype) for name in header.tensors}
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = shorten(error)
        raise ModelFileError("weights-not-loadable", file=str(tensors), part="UNet", reason=reason) from error
    unet.load_state_dict(state, assign=True)
    unet.eval()
    return unet


def take_and_give_fp32(unet: UNet2DConditionModel) -> None:
    """Make a UNet of lower precision take its latents and return its result in fp32.

    So the pipeline computes latents, guidance and the scheduler's sums in fp32. In bf16, every step would round
    the latents to 8 bits.
    """
    dtype: torch.dtype = unet.dtype

    def take(
        _: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, object]]:
        sample, *rest = args
        return (sample.to(dtype), *rest), kwargs

    def give(
        _: torch.nn.Module, __: tuple[torch.Tensor, ...], output: tuple[torch.Tensor]
    ) -> tuple[torch.Tensor]:
        return (output[0].float(),)

    unet.register_forward_pre_hook(take, with_kwargs=True)
    unet.register_forward_hook(give)
