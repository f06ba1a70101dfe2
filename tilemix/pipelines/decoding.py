"""Latents -> pixels, and back."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tilemix.errors import RenderError
from tilemix.pipelines.parts import move
from tilemix.pipelines.wrapping import wrapping

if TYPE_CHECKING:
    import numpy as np
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

TILE_PIXELS = 1024  # the VAE decodes up to this side length in one piece
FACTOR = 8  # pixels along a side of one latent
HALO = 8  # latents around a picture in tiles that wraps: as many as change the picture's edge visibly


def set_tiles(vae: AutoencoderKL) -> None:
    """Let `vae` decode picture by picture, and pictures above TILE_PIXELS in tiles.

    By default the tile size is the VAE's sample_size, 512 for the fp16-fix VAE. A picture of 1024 pixels would be
    decoded in tiles, which differ from the whole, because GroupNorm sees less of it.
    """
    vae.enable_slicing()
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // FACTOR


def encode_pixels(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return the latents (1, channels, h/8, w/8), fp32, of a picture (h, w, 3), sRGB, that wraps.

    They are the mode of the VAE's distribution: no number is drawn. A picture above TILE_PIXELS is encoded in tiles,
    with a halo of what is on its other side.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(vae.device)
    scaled = (image.float() / 127.5 - 1).to(vae.dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        if max(scaled.shape[-2:]) > TILE_PIXELS:
            latents = _cut(vae.encode(_surround(scaled, HALO * FACTOR)).latent_dist.mode(), HALO)
        else:
            with wrapping(vae.encoder):
                latents = vae.encode(scaled).latent_dist.mode()
        encoded: torch.Tensor = (latents.float() - _find_shift(vae)) * vae.config["scaling_factor"]
    return encoded


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor, *, wraps: bool = False) -> NDArray[np.uint8]:
    """Decode latents (1, channels, h/8, w/8) to pixels (h, w, 3), uint8 sRGB.

    With `wraps`, what leaves the picture on one side comes in again on the other. A picture above TILE_PIXELS is
    decoded in tiles; then it gets a halo of what is on its other side.

    A VAE that overflows in half precision gives NaN, which would become a black picture. Such latents are decoded
    again in fp32.

    Raises:
        RenderError: the latents, or the pixels in fp32 too, are not finite.
    """
    if not _is_finite(latents):
        raise RenderError("picture-latents-not-finite")
    with torch.inference_mode():
        image = _decode(vae, latents, wraps=wraps)
        if not _is_finite(image):
            logger.warning("pixels decoded in %s are not finite; decoding again in float32", vae.dtype)
            # A copy, because a cancellation in the middle would leave the VAE in two dtypes.
            plain = move(copy.deepcopy(vae), dtype=torch.float32)
            vars(plain.decoder).pop("forward", None)  # compiled code belongs to the VAE that it was made for
            image = _decode(plain, latents, wraps=wraps)
        if not _is_finite(image):
            raise RenderError("picture-pixels-not-finite")
        return to_pixels(image)


def to_pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    """Return a decoded picture (1, 3, h, w), -1 to 1, as pixels (h, w, 3), uint8 sRGB.

    It rounds half to even, as diffusers' own conversion does, and takes a fifth of its time. From a GPU only the bytes
    are copied.
    """
    # In diffusers' order of operations: another order rounds differently.
    scaled = image[0].permute(1, 2, 0).float().mul(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_()
    pixels: NDArray[np.uint8] = scaled.to(torch.uint8).contiguous().cpu().numpy()
    return pixels


def _is_finite(tensor: torch.Tensor) -> bool:
    # aminmax propagates NaN, and takes a seventh of the time of isfinite() on every number.
    return all(bool(end.isfinite()) for end in torch.aminmax(tensor))


def _decode(vae: AutoencoderKL, latents: torch.Tensor, *, wraps: bool) -> torch.Tensor:
    scaled = latents.to(vae.dtype) / vae.config["scaling_factor"] + _find_shift(vae)
    image: torch.Tensor
    if not wraps:
        image = vae.decode(scaled).sample
    elif max(scaled.shape[-2:]) > TILE_PIXELS // FACTOR:
        image = _cut(vae.decode(_surround(scaled, HALO)).sample, HALO * FACTOR)
    else:
        with wrapping(vae.decoder):
            image = vae.decode(scaled).sample
    return image


def _find_shift(vae: AutoencoderKL) -> float:
    """Return what is subtracted from the VAE's latents before they are scaled; 0 in the families before Flux."""
    shift: float | None = vae.config.get("shift_factor")
    return shift or 0.0


def _surround(tensor: torch.Tensor, halo: int) -> torch.Tensor:
    return F.pad(tensor, (halo, halo, halo, halo), mode="circular")


def _cut(tensor: torch.Tensor, halo: int) -> torch.Tensor:
    return tensor[..., halo:-halo, halo:-halo]
