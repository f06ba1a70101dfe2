"""The VAE's decoder, trained on while the latents stay as they are.

The encoder is settled once the base begins to learn its latents; the decoder need not be. So this
stage may run beside the base stage, or after it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from tilemix.errors import MissingFilesError
from tilemix.training.checkpoints import load_checkpoint, save_checkpoint
from tilemix.training.latents import write_latents
from tilemix.training.loop import run_steps
from tilemix.training.vae_stage import load_vae, measure_psnr, picture_loss, to_tensor

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL

    from tilemix.training.recipe import Recipe

logger = logging.getLogger(__name__)


def train_decoder(recipe: Recipe, state: Path, *, workers: int, device: torch.device) -> AutoencoderKL:
    """Return the VAE with its decoder trained further; goes on from `state/decoder.pt` when it is there.

    Raises:
        MissingFilesError: the VAE's stage has not ended.
    """
    stage = recipe.decoder
    vae = load_vae(recipe, state).to(device)
    latents, paths = write_latents(vae, recipe, state, workers=workers)
    shards = [np.load(path, mmap_mode="r") for path in paths]
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    first = 0
    if checkpoint := load_checkpoint(state / "decoder.pt"):
        _take_decoder(vae, checkpoint)
        optimizer.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["step"]
        logger.info("decoder: going on from step %d", first)

    def find_loss(step: int) -> torch.Tensor:
        random = np.random.default_rng([recipe.seed, 4, step])
        seen, wanted = [], []
        for _ in range(stage.batch):
            number = int(random.integers(len(latents)))
            top, left = (int(value) for value in random.integers(0, latents.shape[-1] - stage.crop + 1, 2))
            seen.append(latents[number, :, top : top + stage.crop, left : left + stage.crop])
            photograph = shards[number // recipe.photographs.shard][number % recipe.photographs.shard]
            rows, columns = (slice(8 * start, 8 * (start + stage.crop)) for start in (top, left))
            wanted.append(photograph[rows, columns])
        noise = torch.from_numpy(random.standard_normal(torch.stack(seen).shape, np.float32)) * stage.noise
        with torch.autocast(device.type, torch.bfloat16):
            given = vae.decode((torch.stack(seen) + noise).to(device)).sample.float()
        pictures = to_tensor(np.stack(wanted)).to(device)
        return picture_loss(given, pictures, stage) + stage.texture_weight * texture_loss(given, pictures)

    def save(done: int) -> None:
        tensors = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
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
    )
    return vae


def texture_loss(given: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Return how far the strength of edges, averaged over 8x8 pixels, is from what it should be.

    Counted at full and at half resolution, over pictures (n, 3, h, w).
    """
    differences = []
    for scale in (1, 2):
        ours, theirs = (_edge_strength(F.avg_pool2d(one, scale)) for one in (given, pictures))
        differences.append(
            F.avg_pool2d(ours, 8 // scale, 4 // scale) - F.avg_pool2d(theirs, 8 // scale, 4 // scale)
        )
    return torch.stack([difference.abs().mean() for difference in differences]).sum()


def _edge_strength(pictures: torch.Tensor) -> torch.Tensor:
    down = pictures[:, :, 1:, :-1] - pictures[:, :, :-1, :-1]
    right = pictures[:, :, :-1, 1:] - pictures[:, :, :-1, :-1]
    return (down.square() + right.square() + 1e-5).sqrt()  # the root has no slope at 0


def load_decoder(vae: AutoencoderKL, state: Path) -> int:
    """Give `vae` the decoder of the last checkpoint; return its step, 0 if there is none.

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
        raise MissingFilesError("decoder.pt: trained on the latents of another VAE; remove it")
    vae.load_state_dict(stored)
