"""Further training of the VAE's decoder on fixed latents.

Once the base trains on the latents the encoder must not change, but the decoder may. So this stage can
run beside the base stage or after it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from miniature.architecture import take_weights
from miniature.latents import write_latents
from miniature.stages.critic import PatchCritic, critic_loss, spectrum_loss
from miniature.stages.vae import (
    choose_photograph,
    find_tiles,
    load_vae,
    measure_psnr,
    picture_loss,
    to_tensor,
)
from tilemix.errors import MissingFilesError
from tilemix.pipelines.parts import move
from tilemix.tuning.checkpoints import load_checkpoint, save_checkpoint
from tilemix.tuning.loop import mixed_precision, run_steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from miniature.recipe import Recipe

logger = logging.getLogger(__name__)


def train_decoder(
    recipe: Recipe,
    state: Path,
    *,
    workers: int,
    device: torch.device,
    is_over: Callable[[], bool] | None = None,
) -> AutoencoderKL:
    """Return the VAE with its decoder trained further; resume from `state/decoder.pt` if it is there.

    Raises:
        MissingFilesError: the VAE's stage has not ended.
        TrainingStoppedError: `is_over` said so, see `tilemix.tuning.loop.run_steps`.
    """
    stage = recipe.decoder
    vae = move(load_vae(recipe, state), device)
    latents, paths = write_latents(vae, recipe, state, workers=workers)
    shards = [np.load(path, mmap_mode="r") for path in paths]
    parameters = [*vae.decoder.parameters(), *take_weights(vae.post_quant_conv)]
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    critic = move(PatchCritic(recipe.seed + 4), device)
    critic_optimizer = torch.optim.AdamW(
        critic.parameters(), lr=stage.critic_learning_rate, betas=(0.5, 0.99), weight_decay=0.0, fused=True
    )
    tiles = find_tiles(recipe, len(latents))
    first = 0
    if checkpoint := load_checkpoint(state / "decoder.pt"):
        _take_decoder(vae, checkpoint)
        optimizer.load_state_dict(checkpoint["optimizer"])
        critic.load_state_dict(checkpoint["critic"])
        critic_optimizer.load_state_dict(checkpoint["critic_optimizer"])
        first = checkpoint["step"]
        logger.info("decoder: resuming from step %d", first)

    def find_loss(step: int) -> torch.Tensor:
        random = np.random.default_rng([recipe.seed, 4, step])
        seen, wanted = [], []
        for _ in range(stage.batch):
            number = choose_photograph(random, len(latents), tiles, stage.tiles)
            top, left = (int(value) for value in random.integers(0, latents.shape[-1] - stage.crop + 1, 2))
            seen.append(latents[number, :, top : top + stage.crop, left : left + stage.crop])
            photograph = shards[number // recipe.photographs.shard][number % recipe.photographs.shard]
            rows, columns = (slice(8 * start, 8 * (start + stage.crop)) for start in (top, left))
            wanted.append(photograph[rows, columns])
        noise = torch.from_numpy(random.standard_normal(torch.stack(seen).shape, np.float32)) * stage.noise
        with mixed_precision(device):
            given = vae.decode((torch.stack(seen) + noise).to(device)).sample.float()
        pictures = to_tensor(np.stack(wanted)).to(device)
        critic.requires_grad_(True)
        critic_optimizer.zero_grad(set_to_none=True)
        critic_loss(critic, given, pictures).backward()
        critic_optimizer.step()
        critic.requires_grad_(False)
        likeness: torch.Tensor = critic(given).mean()
        return (
            picture_loss(given, pictures, stage)
            + stage.spectrum_weight * spectrum_loss(given, pictures)
            - stage.critic_weight * likeness
        )

    def save(done: int) -> None:
        tensors = {
            "vae": vae.state_dict(),
            "optimizer": optimizer.state_dict(),
            "critic": critic.state_dict(),
            "critic_optimizer": critic_optimizer.state_dict(),
            "step": done,
        }
        save_checkpoint(state / "decoder.pt", tensors)
        logger.info("decoder step %d: %.2f dB on unseen photographs", done, measure_psnr(vae, recipe, 8))

    run_steps(
        "decoder",
        optimizer,
        find_loss,
        first=first,
        steps=stage.steps,
        learning_rates=[stage.learning_rate],
        warmup=stage.warmup,
        save_every=stage.checkpoint_every,
        save=save,
        is_over=is_over,
    )
    return vae


def load_decoder(vae: AutoencoderKL, state: Path) -> int:
    """Load the last checkpoint's decoder into `vae`; return its step, or 0 if there is none.

    Raises:
        MissingFilesError: the checkpoint belongs to another VAE's latents.
    """
    checkpoint = load_checkpoint(state / "decoder.pt")
    if checkpoint is None:
        return 0
    _take_decoder(vae, checkpoint)
    return int(checkpoint["step"])


def _take_decoder(vae: AutoencoderKL, checkpoint: dict[str, dict[str, torch.Tensor]]) -> None:
    own, stored = vae.state_dict(), checkpoint["vae"]
    if any(
        not torch.equal(own[name].cpu(), stored[name])
        for name in own
        if name.startswith(("encoder.", "quant_conv."))
    ):
        raise MissingFilesError("recipe-other-latents", file="decoder.pt")
    vae.load_state_dict(stored)
