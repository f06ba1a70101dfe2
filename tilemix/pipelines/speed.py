"""TILEMIX_SPEED: what a prediction may give up for speed.

============  =============================  ===================================================
mode          computed                       against `exact`, on the miniature
============  =============================  ===================================================
`exact`       in fp32 on a CPU               diffusers' own pixels, except for the last bit
`equivalent`  UNet and VAE in bf16, where    at least 40 dB, and colors that measure the same
              a trial shows it to be faster
`fast`        as `equivalent`, and without   another picture of the same prompt
              guidance in the last steps
============  =============================  ===================================================

Over 20 mixes of the miniature (256x256, 25 steps), the PSNR of `equivalent` against `exact` is at least 47.5 dB
(mean 53.5), and the error of its shares differs by 0.03 points at most. For `fast` it is at least 35 dB (mean
39.5), and the error is the same on average. `equivalent` takes 0.79 of the time of `exact`, and 0.54 at 512x512;
`fast` takes 0.75. On another CPU whose flags named bf16, it took twice the time of fp32, so a trial decides,
once for a machine; TILEMIX_PRECISION overrides it.

On a GPU the first two are the same: fp16, or bf16 in families that overflow in fp16. Text encoders, latents and
scheduler stay in fp32 on every CPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tilemix.modelfile import memory
from tilemix.system.machine import describe_cpu

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

WORTH = 0.9  # of fp32's time that bf16 may take, or it is not worth its last digits
HOPELESS = 5.0  # times fp32's that the first run in bf16 takes where it is emulated; it is not run again
RUNS = 2  # timed, after one that warms up; the fastest counts
GUIDED_PART = 0.6  # of the steps of `fast`, plus one; the others see only the prompt, at half the work


class Speed(StrEnum):
    """A mode, by the name that TILEMIX_SPEED and the record use."""

    EXACT = "exact"
    EQUIVALENT = "equivalent"
    FAST = "fast"


class Precision(StrEnum):
    """A number format of the UNet and the VAE on a CPU, by the name that TILEMIX_PRECISION uses."""

    BF16 = "bf16"
    FP32 = "fp32"


class Trial(NamedTuple):
    """How long one convolution and one matrix product take in each format, in seconds."""

    fp32: float
    bf16: float

    @property
    def precision(self) -> Precision:
        """The format to draw in."""
        return Precision.BF16 if self.bf16 <= WORTH * self.fp32 else Precision.FP32


def choose_dtype(
    device: torch.device,
    speed: Speed,
    precision: Precision | None = None,
    *,
    run_trial: Callable[[], Trial] | None = None,
    gpu_dtype: str = "float16",
) -> torch.dtype:
    """Return the dtype of the UNet and the VAE on `device`.

    Args:
        device: where they will run.
        speed: `exact` is fp32 on a CPU in any case.
        precision: what the other modes compute in on a CPU; None: what `run_trial` finds to be faster.
        run_trial: takes some tens of milliseconds; None: `run_trial` of this module. It is run once for a machine,
            whose other processes take its result from `tilemix.modelfile.memory`: on a busy machine the next trial
            may end differently, and the same seed would give another picture.
        gpu_dtype: torch's name of the dtype on a GPU.
    """
    import torch

    if device.type == "cuda":
        dtype: torch.dtype = getattr(torch, gpu_dtype)
        return dtype
    if speed is Speed.EXACT:
        return torch.float32
    if precision is None:
        trial, origin = _find_own_trial() if run_trial is None else find_trial(run_trial)
        precision = trial.precision
        logger.info(
            "drawing in %s: on this CPU a trial takes %.1f ms in bf16 and %.1f ms in fp32 (%s)",
            precision,
            1000 * trial.bf16,
            1000 * trial.fp32,
            origin,
        )
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def find_trial(run_trial: Callable[[], Trial]) -> tuple[Trial, str]:
    """Return this machine's trial and where it comes from: remembered for this CPU and this torch, else run now.

    Args:
        run_trial: runs it.
    """
    import torch

    topic, torch_file = f"number formats on {describe_cpu()}", Path(torch.__file__)
    known = _recall_trial(topic, torch_file)
    if known is not None:
        return known, f"remembered in {memory.memory_path()}"
    trial, stamp = run_trial(), memory.stamp_of(torch_file)
    memory.remember(topic, torch_file, stamp, msgspec.json.encode(trial), replace=False)
    # Of two processes that began together, the first one's counts.
    return _recall_trial(topic, torch_file) or trial, "tried now"


def _recall_trial(topic: str, torch_file: Path) -> Trial | None:
    data = memory.recall(topic, torch_file)
    try:
        return None if data is None else msgspec.json.decode(data, type=Trial)
    except msgspec.DecodeError:
        return None  # another version's


def run_trial(clock: Callable[[], float] = time.perf_counter) -> Trial:
    """Time one convolution and one matrix product in both formats, in torch's threads, on the CPU.

    Args:
        clock: returns seconds.
    """
    import torch

    def make(dtype: torch.dtype) -> Callable[[], float]:
        kernel = torch.ones((64, 64, 3, 3), dtype=dtype)
        picture = torch.ones((1, 64, 64, 64), dtype=dtype).to(memory_format=torch.channels_last)
        left, right = torch.ones((512, 512), dtype=dtype), torch.ones((512, 512), dtype=dtype)

        def run() -> float:
            began = clock()
            torch.nn.functional.conv2d(picture, kernel, padding=1)
            torch.mm(left, right)
            return clock() - began

        return run

    with torch.inference_mode():
        in_fp32, in_bf16 = make(torch.float32), make(torch.bfloat16)
        in_fp32()
        fp32 = min(in_fp32() for _ in range(RUNS))
        first = in_bf16()
        bf16 = first if first > HOPELESS * fp32 else min(in_bf16() for _ in range(RUNS))
    return Trial(fp32, bf16)


@cache
def _find_own_trial() -> tuple[Trial, str]:
    """Once in a process: where nothing can be remembered, its models agree at least with one another."""
    return find_trial(run_trial)
