"""Noise that varies a picture: a second noise, mixed into the first.

Two normal noises added up with the weights 1 - s and s would be too weak. They are turned into one another instead,
along the arc between them, column by column of every channel, which is the web UIs' arithmetic: the same two seeds and
strengths mean the same there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tilemix.pipelines.parts import Scheduler

COLUMN = -2  # dimension of (n, channels, h, w) that a column runs along


def draw_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return noise, fp32; drawn on the CPU, so that a seed gives the same on every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def mix_noise(first: torch.Tensor, second: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the noise at `strength` on the arc from one noise (0) to another (1), both (n, channels, h, w)."""
    if torch.equal(first, second):
        return first
    one, other = (noise / noise.norm(dim=COLUMN, keepdim=True) for noise in (first, second))
    angle: torch.Tensor = (one * other).sum(COLUMN, keepdim=True).clamp(-1, 1).acos()
    first_part, second_part = (torch.sin(part * angle) / angle.sin() for part in (1 - strength, strength))
    return first_part * first + second_part * second


def vary_added_noise(scheduler: Scheduler, second: torch.Tensor, strength: float) -> None:
    """Let a scheduler mix a second noise into what it is given to add to a draft; it is made for one picture."""
    if (scale_noise := getattr(scheduler, "scale_noise", None)) is not None:  # for flow matching

        def scale_varied(sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            scaled: torch.Tensor = scale_noise(sample, timestep, mix_noise(noise, second.to(noise), strength))
            return scaled

        scheduler.scale_noise = scale_varied  # type: ignore[attr-defined]
        return
    add_noise = scheduler.add_noise

    def add_varied(
        original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        return add_noise(original_samples, mix_noise(noise, second.to(noise), strength), timesteps)

    scheduler.add_noise = add_varied  # type: ignore[method-assign]  # the pipelines call it there
