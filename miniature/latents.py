"""The photographs' latents, cached so that each photograph is encoded once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from miniature.dataset import shard_count, write_photographs
from miniature.stages.vae import encode, to_tensor
from tilemix.tuning.checkpoints import save_array
from tilemix.tuning.data import digest_encoder

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from miniature.recipe import Recipe

logger = logging.getLogger(__name__)


def write_latents(
    vae: AutoencoderKL, recipe: Recipe, state: Path, *, workers: int
) -> tuple[torch.Tensor, list[Path]]:
    """Return the scaled latents of all photographs, (count, 4, side/8, side/8) fp32, and the photographs' shards.

    They are cached in `state/latents-HASH`, named by the encoder, so another VAE gets new ones.
    """
    folder = state / f"latents-{digest_encoder(vae)}"
    folder.mkdir(parents=True, exist_ok=True)
    photographs = write_photographs(recipe, state / "photographs", recipe.photographs.count, workers)
    shards: list[np.ndarray] = []
    for number in range(shard_count(recipe.photographs)):
        path = folder / photographs[number].name
        if not path.exists():
            pixels = np.load(photographs[number], mmap_mode="r")
            parts = [
                encode(vae, to_tensor(pixels[start : start + 4]).to(vae.device)).cpu()
                for start in range(0, len(pixels), 4)
            ]
            save_array(path, torch.cat(parts).numpy())
            logger.info("latents of shard %d", number)
        shards.append(np.load(path))
    latents = torch.from_numpy(np.concatenate(shards)[: recipe.photographs.count])
    return latents * vae.config["scaling_factor"], photographs
