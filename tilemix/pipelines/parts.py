"""The types of the libraries' parts, as far as tilemix uses them.

diffusers registers a pipeline's parts at run time and wraps some methods, which hides their types. These
declarations let mypy check every use of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

Network = TypeVar("Network", bound=torch.nn.Module)


class Scheduler(Protocol):
    """Any scheduler of diffusers."""

    @property
    def config(self) -> Mapping[str, object]:
        """Its settings."""


class Drawn(Protocol):
    """What a pipeline returns."""

    images: torch.Tensor  # (n, 4, h/8, w/8), as `output_type="latent"` gives it


class SdxlPipeline(Protocol):
    """diffusers' `StableDiffusionXLPipeline`."""

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Scheduler
    vae_scale_factor: int  # pixels along a side of one latent

    def to(self, device: torch.device) -> SdxlPipeline:
        """Move every part."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show or hide the progress bar of the steps."""

    def __call__(self, **inputs: object) -> Drawn:
        """Draw; diffusers documents the inputs."""


def move(network: Network, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Network:
    """Move a network in place and return it. diffusers wraps its `to` in a way that loses the types."""
    return network.to(device, dtype)


def lay_channels_last(network: torch.nn.Module) -> None:
    """Lay a network's weights out in place so that a convolution reads all channels of a pixel at once."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
