"""The UNet's training loss: a batch of noisy latents and the error of the prediction.

Source: Progressive Distillation for Fast Sampling of Diffusion Models, section 4 (v-prediction),
https://arxiv.org/abs/2202.00512; SDXL, section 2.2 (size conditioning), https://arxiv.org/abs/2307.01952
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step; n is the number of examples."""

    latents: torch.Tensor  # (n, 4, h, w), scaled
    captions: list[str]
    time_ids: torch.Tensor  # (n, 6): original height, width, crop top, left, target height, width
    timesteps: torch.Tensor  # (n,) 0..999
    noise: torch.Tensor  # like latents


def spread_timesteps(random: np.random.Generator, count: int, levels: int) -> torch.Tensor:
    """Return `count` timesteps in 0..levels-1, spread evenly from one random start, so each step spans all levels."""
    places = (random.random() + np.arange(count) / count) % 1.0
    return torch.from_numpy((places * levels).astype(np.int64))


def draw_noise(random: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    """Return normal noise in the shape of `like`, fp32."""
    return torch.from_numpy(random.standard_normal(like.shape, np.float32))


def prediction_loss(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    batch: Batch,
    embeds: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Return the mean squared error of the UNet's prediction, which is v or the noise, as the scheduler says.

    Args:
        unet: runs on its own device, in the caller's autocast.
        scheduler: its `prediction_type` says what is predicted.
        batch: on any device.
        embeds: the captions' embeddings, (n, tokens, width), on the UNet's device.
        pooled: the pooled embeddings, (n, width), on the UNet's device.
    """
    device = unet.device
    latents, noise, steps = (one.to(device) for one in (batch.latents, batch.noise, batch.timesteps))
    # Annotated as IntTensor; both take int64.
    noisy = scheduler.add_noise(latents, noise, steps)  # type: ignore[arg-type]
    if scheduler.config["prediction_type"] == "v_prediction":
        target = scheduler.get_velocity(latents, noise, steps)  # type: ignore[arg-type]
    else:
        target = noise
    conditions = {"text_embeds": pooled, "time_ids": batch.time_ids.to(device)}
    predicted = unet(noisy, steps, encoder_hidden_states=embeds, added_cond_kwargs=conditions).sample
    return F.mse_loss(predicted.float(), target)
