"""TILEMIX_SPEED: what a prediction may give up for speed, and what it may not.

============  =============================  ===================================================
mode          computed                       against `exact`, on the miniature
============  =============================  ===================================================
`exact`       in fp32 on a CPU               diffusers' own pixels, but for a last bit
`equivalent`  UNet and VAE in bf16, where    at least 40 dB, and colors that measure the same
              the CPU multiplies bf16
`fast`        as `equivalent`, and without   another picture of the same prompt
              guidance in the last steps
============  =============================  ===================================================

Over 20 mixes of the miniature, 256x256, 25 steps, `equivalent` is at least 47.5 dB from `exact` (mean 53.5) and
its shares are as wrong to 0.03 points; `fast` is 35 dB at least (mean 39.5), its shares as wrong on average. Of
the time of `exact`, the first takes 0.79 and the second 0.75; at 512x512 the first takes 0.54.

On a GPU the first two are the same: fp16. Text encoders, latents and scheduler stay in fp32 on every CPU.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from tilemix.system.machine import multiplies_bf16

if TYPE_CHECKING:
    import torch

GUIDED_PART = 0.6  # of the steps of `fast`, and one more; the rest see the prompt alone, at half the work


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
