"""The training data: the pictures' latents, cached on disk, and the prompts made of their captions."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tilemix.tuning.checkpoints import save_array
from tilemix.tuning.denoising import Batch, draw_noise, spread_timesteps
from tilemix.tuning.pictures import read_picture

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from numpy.typing import NDArray

    from tilemix.tuning.config import Phase, TuningConfig
    from tilemix.tuning.pictures import CaptionedPicture

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """One picture, ready to train on."""

    latents: NDArray[np.float32]  # (4, h/8, w/8), scaled; memory-mapped
    prompt: str  # the template filled with the caption
    own_size: tuple[int, int]  # the picture's width and height, pixels


def encode_picture(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the scaled latents (4, h/8, w/8) of an sRGB picture (h, w, 3): the mean of their distribution."""
    picture = torch.tensor(pixels).permute(2, 0, 1)[None].to(vae.device, vae.dtype) / 127.5 - 1.0
    with torch.no_grad():
        latents = vae.encode(picture).latent_dist.mean[0]
    shift = vae.config.get("shift_factor") or 0.0
    scaled: NDArray[np.float32] = ((latents - shift) * vae.config["scaling_factor"]).float().cpu().numpy()
    return scaled


def digest_encoder(vae: AutoencoderKL) -> str:
    """Return a name for the latents of a VAE: 12 hex digits of its encoder's hash."""
    digest = hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for tensor in part.state_dict().values() if part is not None else ():
            digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_examples(
    vae: AutoencoderKL,
    pictures: list[CaptionedPicture],
    prompts: list[str],
    config: TuningConfig,
    folder: Path,
) -> list[Example]:
    """Return an example for each picture. The latents are cached in `folder`, named by picture, size and encoder.

    Raises:
        TrainingError: a picture cannot be read, or the latents cannot be written.
    """
    encoder = digest_encoder(vae)
    examples = []
    for number, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        stem = f"{picture.sha256[:16]}-{config.resolution}-{encoder}"
        path, size_path = folder / f"{stem}.npy", folder / f"{stem}.size.npy"
        if not path.exists() or not size_path.exists():
            pixels, own_size = read_picture(picture.path, shorter_side=config.resolution)
            save_array(size_path, np.array(own_size))
            save_array(path, encode_picture(vae, pixels))
            if (number + 1) % 50 == 0:
                logger.info("latents %d of %d", number + 1, len(pictures))
        width, height = (int(side) for side in np.load(size_path))
        examples.append(Example(np.load(path, mmap_mode="r"), prompt, (width, height)))
    return examples


def draw_batch(
    examples: list[Example], config: TuningConfig, *, phase: Phase, step: int, levels: int
) -> Batch:
    """Return the batch of a step; the same configuration, phase and step give the same batch.

    Every picture is used once before any is used again. Each gives a square of `config.crop_side` pixels.
    `levels` is the scheduler's number of timesteps.
    """
    random = np.random.default_rng([config.seed, phase.place, step])
    count, side = config.batch_size, config.crop_side // 8
    crops, captions, time_ids = [], [], []
    for place in range(step * count, (step + 1) * count):
        epoch, number = divmod(place, len(examples))
        order = np.random.default_rng([config.seed, phase.place, 1, epoch]).permutation(len(examples))
        example = examples[int(order[number])]
        rows, columns = example.latents.shape[1:]
        top, left = int(random.integers(rows - side + 1)), int(random.integers(columns - side + 1))
        crops.append(torch.tensor(example.latents[:, top : top + side, left : left + side]))
        captions.append(example.prompt)
        if config.named_sizes is None:
            width, height = example.own_size
            time_ids.append([height, width, top * 8, left * 8, config.crop_side, config.crop_side])
        else:
            named = int(random.integers(config.named_sizes[0] // 8, config.named_sizes[1] // 8 + 1)) * 8
            time_ids.append([named, named, 0, 0, named, named])
    latents = torch.stack(crops)
    return Batch(
        latents=latents,
        captions=captions,
        time_ids=torch.tensor(time_ids, dtype=torch.float32),
        timesteps=spread_timesteps(random, count, levels),
        noise=draw_noise(random, latents),
    )
