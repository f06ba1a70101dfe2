"""The libraries' parts, whichever the base family: their types, and how they are loaded and placed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)


class Scheduler(Protocol):
    """Any scheduler of diffusers."""

    @property
    def config(self) -> Mapping[str, object]:
        """Its settings."""

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return latents under the noise of a timestep."""


class Drawn(Protocol):
    """What a pipeline of diffusers returns."""

    images: torch.Tensor  # latents, as `output_type="latent"` gives them


def move(network: Network, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Network:
    """Move a network in place and return it. diffusers wraps its `to` in a way that loses the types."""
    return network.to(device, dtype)


def lay_channels_last(network: torch.nn.Module) -> None:
    """Lay a network's weights out in place so that a convolution reads all channels of a pixel at once."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it


def shorten(error: Exception) -> str:
    """Return the beginning of a library's error message, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
