"""TILEMIX_SPEED: what a prediction may give up for speed.

============  =============================  ===================================================
mode          computed                       against `exact`, on the miniature
============  =============================  ===================================================
`exact`       in fp32 on a CPU               diffusers' own pixels, except for the last bit
`equivalent`  UNet and VAE in bf16, where    at least 40 dB, and colors that measure the same
              the CPU multiplies bf16
`fast`        as `equivalent`, and without   another picture of the same prompt
              guidance in the last steps
============  =============================  ===================================================

Over 20 mixes of the miniature (256x256, 25 steps), the PSNR of `equivalent` against `exact` is at least 47.5 dB
(mean 53.5), and the error of its shares differs by 0.03 points at most. For `fast` it is at least 35 dB (mean
39.5), and the error is the same on average. `equivalent` takes 0.79 of the time of `exact`, and 0.54 at 512x512;
`fast` takes 0.75.

On a GPU the first two are the same: fp16. Text encoders, latents and scheduler stay in fp32 on every CPU.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from tilemix.system.machine import multiplies_bf16

if TYPE_CHECKING:
    import torch

GUIDED_PART = 0.6  # of the steps of `fast`, plus one; the others see only the prompt, at half the work


class Speed(StrEnum):
    """A mode, by the name that TILEMIX_SPEED and the record use."""

    EXACT = "exact"
    EQUIVALENT = "equivalent"
    FAST = "fast"


def choose_dtype(device: torch.device, speed: Speed) -> torch.dtype:
    """Return the dtype of the UNet and the VAE on `device`."""
    import torch

    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if speed is not Speed.EXACT and multiplies_bf16() else torch.float32
