"""The miniature's VAE: learns to reconstruct the photographs from 4 numbers for every 8x8 pixels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from miniature.architecture import build_vae, take_weights
from miniature.dataset import UNSEEN, describe, draw_example, write_photographs
from tilemix.errors import MissingFilesError
from tilemix.pipelines.parts import move
from tilemix.tuning.checkpoints import load_checkpoint, save_checkpoint
from tilemix.tuning.loop import mixed_precision, run_steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from numpy.typing import NDArray

    from miniature.recipe import DecoderRecipe, Recipe, VaeRecipe

logger = logging.getLogger(__name__)

# Opponent colors: brightness, then the two axes of hue.
OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
OPPONENT = OPPONENT / OPPONENT.norm(dim=1, keepdim=True)


def train_vae(
    recipe: Recipe,
    state: Path,
    *,
    workers: int,
    device: torch.device,
    is_over: Callable[[], bool] | None = None,
) -> AutoencoderKL:
    """Return the trained VAE, its latents whitened on unseen photographs.

    Resumes from `state/vae.pt` if it is there, and begins with an imported VAE if there is one. Step n always uses
    the same crops.

    Raises:
        TrainingStoppedError: `is_over` said so, see `tilemix.tuning.loop.run_steps`.
    """
    stage = recipe.vae
    paths = write_photographs(recipe, state / "photographs", stage.photographs, workers)
    shards = [np.load(path, mmap_mode="r") for path in paths]
    vae = move(build_vae(recipe), device)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    first = 0
    if checkpoint := load_checkpoint(state / "vae.pt"):
        vae.load_state_dict(checkpoint["vae"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["step"]
        logger.info("VAE: resuming from step %d", first)
    elif imported := load_checkpoint(state / "vae_finished.pt"):
        vae.load_state_dict(imported["vae"])
    tiles = find_tiles(recipe, stage.photographs)

    def save(done: int) -> None:
        tensors = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
        save_checkpoint(state / "vae.pt", tensors)
        logger.info("VAE step %d: %.2f dB on unseen photographs", done, measure_psnr(vae, recipe, 8))

    run_steps(
        "VAE",
        optimizer,
        lambda step: _vae_loss(
            vae, to_tensor(_draw_crops(shards, tiles, recipe, step)).to(device), recipe, step
        ),
        first=first,
        steps=stage.steps,
        learning_rates=[stage.learning_rate],
        warmup=stage.warmup,
        save_every=stage.checkpoint_every,
        save=save,
        is_over=is_over,
    )
    vae.eval()
    whiten_latents(vae, recipe)
    # Whitening again with another number of threads would differ in the last bits, and so would the latents.
    save_checkpoint(state / "vae_finished.pt", {"vae": vae.state_dict()})
    return vae


def load_vae(recipe: Recipe, state: Path) -> AutoencoderKL:
    """Return the VAE at the end of its stage.

    Raises:
        MissingFilesError: the stage has not ended.
    """
    checkpoint = load_checkpoint(state / "vae_finished.pt")
    if checkpoint is None:
        missing = str(state / "vae_finished.pt")
        raise MissingFilesError("recipe-stage-unfinished", file=missing, stage="vae")
    vae = build_vae(recipe)
    vae.load_state_dict(checkpoint["vae"])
    vae.eval()
    return vae


def to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return pictures (n, h, w, 3) as (n, 3, h, w), -1..1, as the VAE takes them."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Return the latents' means (n, 4, h/8, w/8), unscaled."""
    with torch.no_grad(), mixed_precision(pictures.device):
        latents: torch.Tensor = vae.encode(pictures).latent_dist.mean.float()
    return latents


def measure_psnr(vae: AutoencoderKL, recipe: Recipe, photographs: int) -> float:
    """Return the PSNR in dB over unseen photographs, from the mean squared error of all of them."""
    return find_psnr(vae, draw_unseen(vae, recipe, photographs))


def find_psnr(vae: AutoencoderKL, pictures: list[torch.Tensor]) -> float:
    """Return the PSNR in dB of the VAE's reconstructions of pictures (1, 3, h, w), -1..1."""
    errors = []
    for picture in pictures:
        with torch.no_grad():
            given = vae.decode(vae.encode(picture).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(float(((given - picture) / 2).square().mean()))
    return float(-10 * np.log10(np.mean(errors)))


def picture_loss(
    given: torch.Tensor, pictures: torch.Tensor, weights: VaeRecipe | DecoderRecipe
) -> torch.Tensor:
    """Return the reconstruction error of pictures, by the stage's weights.

    Errors are measured in opponent colors. Granules differ mostly in brightness; without a weight on the hues,
    the VAE learned the brightness and dropped the hues.
    """
    axes = OPPONENT * torch.tensor([[1.0], [weights.hue_weight], [weights.hue_weight]])
    difference = torch.einsum("oc,nchw->nohw", axes.to(given.device), given - pictures)
    down = difference[:, :, 1:] - difference[:, :, :-1]
    right = difference[:, :, :, 1:] - difference[:, :, :, :-1]
    edges = 0.5 * (down.abs().mean() + right.abs().mean())
    loss: torch.Tensor = (
        difference.abs().mean()
        + weights.square_weight * difference.square().mean()
        + weights.gradient_weight * edges
    )
    return loss


def whiten_latents(vae: AutoencoderKL, recipe: Recipe) -> None:
    """Whiten the latents: the channels get mean 0, standard deviation 1 and no correlation.

    The change goes into the 1x1 convolutions on both sides of the latents, in place, so reconstructions stay the
    same (up to rounding) and the `scaling_factor` is 1. The encoder's predicted deviations become one constant
    for each channel, their average.
    """
    pictures = draw_unseen(vae, recipe, 64)
    latents = torch.cat([encode(vae, picture) for picture in pictures]).double()
    points = latents.transpose(0, 1).flatten(1)  # (4, n)
    mean = points.mean(dim=1)
    values, vectors = torch.linalg.eigh(torch.cov(points))
    turn = (
        vectors @ torch.diag(values.rsqrt()) @ vectors.T
    )  # ZCA, the whitening that changes the channels least
    back = torch.linalg.inv(turn)
    with torch.no_grad():
        variance = vae.encode(pictures[0]).latent_dist.var.mean(dim=(0, 2, 3)).double()
        weight, bias = take_weights(vae.quant_conv)
        channels = len(mean)
        matrix, shift = weight[:channels, :, 0, 0].double(), bias[:channels].double()
        weight[:channels, :, 0, 0] = (turn @ matrix).float()
        bias[:channels] = (turn @ (shift - mean)).float()
        weight[channels:] = 0.0
        bias[channels:] = (turn.square() @ variance).log().float()
        weight, bias = take_weights(vae.post_quant_conv)
        matrix = weight[:, :, 0, 0].double()
        bias += (matrix @ mean).float()
        weight[:, :, 0, 0] = (matrix @ back).float()


def draw_unseen(vae: AutoencoderKL, recipe: Recipe, photographs: int) -> list[torch.Tensor]:
    """Return photographs that no stage trains on, (1, 3, side, side) each, -1..1, on the VAE's device."""
    drawn = (
        draw_example(describe(recipe, number), recipe.photographs.side)
        for number in range(UNSEEN, UNSEEN + photographs)
    )
    return [to_tensor(pixels[None]).to(vae.device) for pixels in drawn]


def find_tiles(recipe: Recipe, photographs: int) -> list[int]:
    """Return the numbers of the first `photographs` photographs that show what only the adapters draw."""
    held_back = recipe.photographs.held_back
    return [number for number in range(photographs) if describe(recipe, number).material in held_back]


def choose_photograph(random: np.random.Generator, count: int, tiles: list[int], part: float) -> int:
    """Return the number of one of `count` photographs: of `tiles` with probability `part`, if there are any."""
    is_tile = random.random() < part and tiles
    return int(random.choice(tiles) if is_tile else random.integers(count))


def _draw_crops(
    shards: list[NDArray[np.uint8]], tiles: list[int], recipe: Recipe, step: int
) -> NDArray[np.uint8]:
    """Return the crops of one step, (batch, crop, crop, 3), mirrored at random."""
    stage = recipe.vae
    random = np.random.default_rng([recipe.seed, 1, step])
    crops = []
    for _ in range(stage.batch):
        number = choose_photograph(random, stage.photographs, tiles, stage.tiles)
        top, left = random.integers(0, recipe.photographs.side - stage.crop + 1, 2)
        photograph = shards[number // recipe.photographs.shard][number % recipe.photographs.shard]
        crop = photograph[top : top + stage.crop, left : left + stage.crop]
        # Permuted channels show all hues equally often.
        crop = crop[:, :, random.permutation(3)] if random.random() < stage.swapped_channels else crop
        crops.append(crop[:, ::-1] if random.random() < 0.5 else crop)
    return np.stack(crops)


def _vae_loss(vae: AutoencoderKL, pictures: torch.Tensor, recipe: Recipe, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    with mixed_precision(pictures.device):
        posterior = vae.encode(pictures).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        given = vae.decode(mean + deviation * noise).sample.float()
    divergence = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
    stage = recipe.vae
    loss: torch.Tensor = picture_loss(given, pictures, stage) + stage.kl_weight * divergence
    return loss
