"""What a training will cost, measured on three real steps of each phase; nothing is written."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from tilemix.tuning.config import Phase
from tilemix.tuning.data import Example, encode_picture
from tilemix.tuning.model import Tuning, find_disk_need
from tilemix.tuning.pictures import read_picture
from tilemix.tuning.plan import Plan

STEPS = 3  # the first one warms up and does not count


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time in seconds, memory and disk in bytes."""

    pictures: int
    learned: dict[Phase, int]  # trained parameters of each phase
    seconds_per_step: dict[Phase, float]
    seconds: float  # for everything except the sample pictures
    device: str
    memory: int  # the peak: of the GPU, or of this process on a CPU
    disk: int


def estimate(plan: Plan, device: torch.device) -> Estimate:
    """Run a few steps of each phase and return what the whole training will take.

    Raises:
        ModelFileError, TrainingError: as in the training itself.
    """
    tuning = Tuning(plan, device)
    began = time.perf_counter()
    pixels, own_size = read_picture(plan.pictures[0].path, shorter_side=plan.config.resolution)
    example = Example(encode_picture(tuning.pipeline.vae, pixels), plan.prompts[0], own_size)
    seconds = (time.perf_counter() - began) * len(plan.pictures)
    per_step = {}
    for phase in Phase:
        steps = plan.config.settings(phase).steps
        if not steps:
            continue
        tuning.begin(phase)
        optimizer = tuning.make_optimizer(phase)
        with tuning.computing():
            for step in range(STEPS):
                if step == 1:
                    began = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                tuning.find_loss([example], phase, step).backward()
                optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        per_step[phase] = (time.perf_counter() - began) / (STEPS - 1)
        seconds += per_step[phase] * steps
    return Estimate(
        pictures=len(plan.pictures),
        learned={phase: sum(one.numel() for one in tuning.learned(phase).values()) for phase in Phase},
        seconds_per_step=per_step,
        seconds=seconds,
        device=str(device),
        memory=_find_peak_memory(device),
        disk=find_disk_need(plan, tuning),
    )


def _find_peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
