"""Pivotal tuning of an SDXL model: first the new tokens' rows, then a LoRA on the UNet.

All randomness in a step depends on the configuration's seed and the step's number alone, so a training that was
killed and restarted gives the same result as an uninterrupted one on the same machine.

Sources: An Image is Worth One Word, https://arxiv.org/abs/2208.01618; LoRA, https://arxiv.org/abs/2106.09685;
Pivotal Tuning for Latent-based Editing, https://arxiv.org/abs/2106.05744 (the two phases);
https://github.com/cloneofsimo/lora (both combined, for diffusion models)
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from tilemix.errors import TrainingError
from tilemix.tuning.checkpoints import load_checkpoint, save_checkpoint
from tilemix.tuning.config import Phase
from tilemix.tuning.data import write_examples
from tilemix.tuning.loop import run_steps
from tilemix.tuning.model import TOKENS_SEEN, Tuning, find_cut_prompts, find_disk_need
from tilemix.tuning.samples import draw_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from tilemix.tuning.data import Example
    from tilemix.tuning.plan import Plan

logger = logging.getLogger(__name__)


def tune(plan: Plan, device: torch.device, *, is_over: Callable[[], bool] | None = None) -> Tuning:
    """Train as the plan says and return the trained model; resume from its checkpoint if there is one.

    Raises:
        TrainingError: the checkpoint belongs to another training, the disk is full, a loss is not finite, or a
            picture cannot be read.
        ModelFileError: the base is not an SDXL folder.
        TrainingStoppedError: `is_over` said so, see `tilemix.tuning.loop.run_steps`.
    """
    checkpoint = load_checkpoint(plan.checkpoint)
    if checkpoint is not None and checkpoint["digest"] != plan.digest:
        raise TrainingError("training-checkpoint-foreign", file=str(plan.checkpoint))
    tuning = Tuning(plan, device)
    _check_disk(plan, tuning)
    if cut := find_cut_prompts(plan, tuning):
        logger.warning(
            "%d captions are longer than %d tokens and lose their ends; the first: %s",
            len(cut),
            TOKENS_SEEN,
            cut[0],
        )
    examples = write_examples(
        tuning.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state / "latents"
    )
    if checkpoint is not None:
        tuning.restore(checkpoint["learned"])
        logger.info("resuming from %s step %d", checkpoint["phase"], checkpoint["step"])
    reached = Phase.EMBEDDINGS if checkpoint is None else Phase(checkpoint["phase"])
    for phase in list(Phase)[reached.place :]:
        _run_phase(tuning, examples, phase, checkpoint if phase is reached else None, is_over)
    return tuning


def _run_phase(
    tuning: Tuning,
    examples: list[Example],
    phase: Phase,
    resumed: dict[str, Any] | None,
    is_over: Callable[[], bool] | None,
) -> None:
    plan = tuning.plan
    settings = plan.config.settings(phase)
    tuning.begin(phase)
    optimizer = tuning.make_optimizer(phase)
    first = 0
    if resumed is not None:
        optimizer.load_state_dict(resumed["optimizer"])
        first = resumed["step"]

    def save(done: int) -> None:
        save_checkpoint(
            plan.checkpoint,
            {
                "digest": plan.digest,
                "phase": phase.value,
                "step": done,
                "learned": tuning.state(),
                "optimizer": optimizer.state_dict(),
            },
        )

    def sample(done: int) -> None:
        samples = plan.config.samples
        if samples and (done % samples.every == 0 or done == settings.steps):
            folder = plan.output / f"{plan.config.name}_samples"
            draw_samples(tuning, samples, folder, f"{phase}-{done:06d}")

    with tuning.computing():
        run_steps(
            phase,
            optimizer,
            lambda step: tuning.find_loss(examples, phase, step),
            first=first,
            steps=settings.steps,
            later_steps=sum(plan.config.settings(later).steps for later in list(Phase)[phase.place + 1 :]),
            learning_rates=[settings.learning_rate],
            warmup=settings.warmup,
            save_every=plan.config.checkpoint_every,
            save=save,
            after_step=sample,
            is_over=is_over,
        )


def _check_disk(plan: Plan, tuning: Tuning) -> None:
    plan.output.mkdir(parents=True, exist_ok=True)
    need, free = find_disk_need(plan, tuning), shutil.disk_usage(plan.output).free
    if free < need:
        raise TrainingError("training-disk-full", folder=str(plan.output), free=free / 1e6, need=need / 1e6)
