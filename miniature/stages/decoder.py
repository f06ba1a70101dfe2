"""Further training of the VAE's decoder on fixed latents.

Once the base trains on the latents the encoder must not change, but the decoder may. So this stage can
run beside the base stage or after it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from miniature.architecture import take_weights
from miniature.latents import write_latents
from miniature.stages.vae import load_vae, measure_psnr, picture_loss, to_tensor
from tilemix.colors.chart import basic_colors
from tilemix.colors.cielab import EPSILON, KAPPA, RGB_TO_XYZ, WHITE, srgb_to_lab
from tilemix.colors.hex import parse_hex
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

LIGHTNESS_WEIGHT = (
    0.5  # of the distance between two colors: a granule lit from the side is darker on the other
)
UNSURE = 6.0  # in CIELAB units: colors this close are easily confused; swatches are 12 apart


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
    first = 0
    if checkpoint := load_checkpoint(state / "decoder.pt"):
        _take_decoder(vae, checkpoint)
        optimizer.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["step"]
        logger.info("decoder: resuming from step %d", first)

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
        with mixed_precision(device):
            given = vae.decode((torch.stack(seen) + noise).to(device)).sample.float()
        pictures = to_tensor(np.stack(wanted)).to(device)
        return (
            picture_loss(given, pictures, stage)
            + stage.texture_weight * texture_loss(given, pictures)
            + stage.swatch_weight * swatch_loss(given, pictures)
        )

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
        is_over=is_over,
    )
    return vae


def texture_loss(given: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Return the error of the edges' strength, averaged over 8x8 pixels.

    It is summed over full and half resolution of pictures (n, 3, h, w).
    """
    differences = []
    for scale in (1, 2):
        ours, theirs = (_edge_strength(F.avg_pool2d(one, scale)) for one in (given, pictures))
        differences.append(
            F.avg_pool2d(ours, 8 // scale, 4 // scale) - F.avg_pool2d(theirs, 8 // scale, 4 // scale)
        )
    return torch.stack([difference.abs().mean() for difference in differences]).sum()


def swatch_loss(given: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy between each pixel's basic color and the one that it has in the photograph.

    Colors are told apart by distance in CIELAB, with lightness at half weight.
    A mean of red and black has the least error to both and is brown, which is neither; this loss punishes it.
    """
    with torch.no_grad():
        wanted = _swatch_distances(pictures).argmin(dim=1)
    return F.cross_entropy(-_swatch_distances(given) / (2 * UNSURE**2), wanted)


def _swatch_distances(pictures: torch.Tensor) -> torch.Tensor:
    """Return the squared distances (n, colors, h, w) of pictures (n, 3, h, w), -1..1, to the basic colors."""
    weights = torch.tensor([LIGHTNESS_WEIGHT, 1.0, 1.0], device=pictures.device)
    swatches = torch.tensor(
        srgb_to_lab([parse_hex(color.swatch) for color in basic_colors()]), device=pictures.device
    ).float()
    lab = to_lab(pictures.movedim(1, -1).clamp(-1, 1) / 2 + 0.5)
    differences = (lab[..., None, :] - swatches) * weights
    return differences.square().sum(dim=-1).movedim(-1, 1)


def to_lab(srgb: torch.Tensor) -> torch.Tensor:
    """Return the CIELAB of sRGB (..., 3), 0..1, like `srgb_to_lab`, with a finite gradient everywhere."""
    matrix, white = (torch.tensor(one, device=srgb.device).float() for one in (RGB_TO_XYZ, WHITE))
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0.04) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ matrix.T / white
    f = torch.where(xyz > EPSILON, xyz.clamp(min=EPSILON) ** (1 / 3), (KAPPA * xyz + 16) / 116)
    x, y, z = f.unbind(dim=-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _edge_strength(pictures: torch.Tensor) -> torch.Tensor:
    down = pictures[:, :, 1:, :-1] - pictures[:, :, :-1, :-1]
    right = pictures[:, :, :-1, 1:] - pictures[:, :, :-1, :-1]
    return (down.square() + right.square() + 1e-5).sqrt()  # the root's gradient is infinite at 0


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
