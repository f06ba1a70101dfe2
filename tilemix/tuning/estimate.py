"""What a training will cost, measured on three real steps of each phase; nothing is written."""

from __future__ import annotations

import logging
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tilemix.tuning.captions import check_captions
from tilemix.tuning.config import Phase
from tilemix.tuning.data import Example, encode_picture
from tilemix.tuning.model import Tuning, find_cut_prompts, find_disk_need
from tilemix.tuning.pictures import find_smaller, read_picture
from tilemix.tuning.plan import Plan

if TYPE_CHECKING:
    from tilemix.colors.palette import Palette

logger = logging.getLogger(__name__)

STEPS = 3  # of each phase; the first one warms up and does not count, unless it alone takes too long
PATIENCE = 8.0  # seconds of a first step from which it counts, and is the only one
MAX_CHECKED = 100  # captions that are checked against their pictures, spread over all


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time in seconds, memory and disk in bytes, and what is better known before a long training."""

    pictures: int
    learned: dict[Phase, int]  # trained parameters of each phase
    seconds_per_step: dict[Phase, float]
    seconds: float  # for everything except the sample pictures
    device: str
    memory: int  # the peak: of the GPU, or of this process on a CPU
    disk: int
    too_small: list[str]  # pictures whose shorter side is under the resolution
    cut: list[str]  # pictures whose captions are too long and lose their ends
    checked: int  # captions that were compared with their pictures
    wrong: list[str]  # those of them that name another mix


def estimate(plan: Plan, device: torch.device, palette: Palette | None = None) -> Estimate:
    """Run a few steps of each phase and return what the whole training will take; its progress is logged.

    Args:
        plan: the training.
        device: where it will run.
        palette: by which captions are compared with their pictures; None: they are not.

    Raises:
        ModelFileError, TrainingError: as in the training itself.
    """
    logger.info("%d pictures with captions; loading the base", len(plan.pictures))
    too_small = find_smaller(plan.pictures, plan.config.resolution)
    tuning = Tuning(plan, device)
    logger.info("encoding a picture")
    began = time.perf_counter()
    pixels, own_size = read_picture(plan.pictures[0].path, shorter_side=plan.config.resolution)
    example = Example(encode_picture(tuning.pipeline.vae, pixels), plan.prompts[0], own_size)
    seconds = (time.perf_counter() - began) * len(plan.pictures)
    per_step = {}
    for phase in Phase:
        if steps := plan.config.settings(phase).steps:
            logger.info("%s: trying %d steps", phase, STEPS)
            per_step[phase] = time_steps(tuning, phase, example)
            seconds += per_step[phase] * steps
    every = max(1, -(-len(plan.pictures) // MAX_CHECKED))
    looked_at = plan.pictures[::every] if palette is not None else []
    if palette is not None:
        logger.info("comparing %d captions with their pictures", len(looked_at))
    return Estimate(
        pictures=len(plan.pictures),
        learned={phase: sum(one.numel() for one in tuning.learned(phase).values()) for phase in Phase},
        seconds_per_step=per_step,
        seconds=seconds,
        device=str(device),
        memory=_find_peak_memory(device),
        disk=find_disk_need(plan, tuning),
        too_small=too_small,
        cut=find_cut_prompts(plan, tuning),
        checked=len(looked_at),
        wrong=[str(one) for one in check_captions(looked_at, palette)] if palette is not None else [],
    )


def time_steps(tuning: Tuning, phase: Phase, example: Example) -> float:
    """Return the seconds that a step of a phase takes."""
    tuning.begin(phase)
    optimizer = tuning.make_optimizer(phase)
    taken: list[float] = []
    with tuning.computing():
        while len(taken) < STEPS and not (taken and taken[0] > PATIENCE):
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            tuning.find_loss([example], phase, len(taken)).backward()
            optimizer.step()
            if tuning.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    counted = taken[1:] or taken
    return sum(counted) / len(counted)


def _find_peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
