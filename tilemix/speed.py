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

import ctypes
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GUIDED_PART = 0.6  # of the steps of `fast`, and one more; the rest see the prompt alone, at half the work
# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD, bytes. No block on its own, none given back.
GLIBC_KEEPS = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}


class Speed(StrEnum):
    """A mode, by the name that TILEMIX_SPEED and the record use."""

    EXACT = "exact"
    EQUIVALENT = "equivalent"
    FAST = "fast"


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for its next use; return whether it will.

    glibc gives every large block back to the system and asks for it again at once, and the system clears it
    each time. Without that the VAE takes 0.6 to 0.7 of its time on a CPU. The process stays as large as its
    largest picture made it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in GLIBC_KEEPS.items())


def choose_dtype(device: torch.device, speed: Speed) -> torch.dtype:
    """Return the dtype of the UNet and the VAE on `device`."""
    import torch

    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if speed is not Speed.EXACT and multiplies_bf16() else torch.float32


def multiplies_bf16(facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU multiplies bf16 itself; where it is emulated it is slower than fp32.

    Asked of Linux, on x86; elsewhere the answer is no. torch has a public question for it since 2.9 only.
    """
    try:
        return "avx512_bf16" in facts.read_text().split()
    except OSError:
        return False
