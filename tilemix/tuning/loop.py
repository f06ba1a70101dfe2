"""The loop that every training stage runs: steps, learning rates, checkpoints, progress."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from tilemix.errors import TrainingError, TrainingStoppedError
from tilemix.system.machine import multiplies_bf16
from tilemix.tuning.checkpoints import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

REPORT_EVERY = 100  # steps between two progress lines, at most
MOST_SILENCE = 30.0  # seconds between two, if a step does not take longer


def emulates_bf16(device: torch.device) -> bool:
    """Return whether `device` emulates bf16, which takes many times as long as fp32."""
    return device.type == "cpu" and not multiplies_bf16()


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that computes in bf16, or in fp32 on a CPU without bf16 arithmetic."""
    return nullcontext() if emulates_bf16(device) else torch.autocast(device.type, torch.bfloat16)


def run_steps(
    stage: str,
    optimizer: torch.optim.Optimizer,
    find_loss: Callable[[int], torch.Tensor],
    *,
    first: int,
    steps: int,
    later_steps: int = 0,
    learning_rates: Sequence[float],
    warmup: int,
    save_every: int,
    save: Callable[[int], None],
    after_step: Callable[[int], None] | None = None,
    is_over: Callable[[], bool] | None = None,
) -> None:
    """Train from step `first` up to `steps`.

    Args:
        stage: its name in progress lines and errors.
        optimizer: the gradients of all its parameters together are clipped to a norm of 1.
        find_loss: returns the loss of a step; its randomness depends on the step's number alone.
        first: steps that are already done.
        steps: steps in all.
        later_steps: those of the stages to come, for the time that is left.
        learning_rates: the peak learning rate of each of the optimizer's groups.
        warmup: steps up to the peak; from there a cosine goes down to 0.
        save_every: steps between two checkpoints; the last step is always saved.
        save: writes a checkpoint; called with the number of steps done.
        after_step: called after each step with the number of steps done.
        is_over: asked after each step; True ends the training there, with a checkpoint.

    Raises:
        TrainingError: a loss is not finite; the last checkpoint stays.
        TrainingStoppedError: it was over before the last step.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    started, losses = time.monotonic(), []
    report_every = max(1, min(REPORT_EVERY, steps // 10))
    reported = started
    for step in range(first, steps):
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(step, steps, warmup)
        loss = find_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            found = str(losses[-1])
            raise TrainingError("training-loss-not-finite", stage=stage, step=step + 1, found=found)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        if after_step is not None:
            after_step(done)
        now = time.monotonic()
        if done % report_every == 0 or done == steps or now - reported > MOST_SILENCE:
            reported = now
            pace = (now - started) / (done - first)
            logger.info(
                "%s step %d of %d: loss %.4f, %.3f s a step, %d min left in all",
                stage,
                done,
                steps,
                float(np.mean(losses[-report_every:])),
                pace,
                round(pace * (steps - done + later_steps) / 60),
            )
        stops = done < steps and is_over is not None and is_over()
        if done % save_every == 0 or done == steps or stops:
            save(done)
        if stops:
            raise TrainingStoppedError("training-stopped", stage=stage, step=done, steps=steps)
