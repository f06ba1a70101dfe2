"""Sample pictures drawn during a training."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from tilemix.pipelines.decoding import decode_latents
from tilemix.tuning.checkpoints import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.tuning.config import Samples
    from tilemix.tuning.model import Tuning

logger = logging.getLogger(__name__)


def draw_samples(tuning: Tuning, samples: Samples, folder: Path, stem: str) -> None:
    """Draw the prompts of `samples` into `folder`, with the LoRA in its current state at full strength.

    Prompt number n becomes `STEM-n.png`. All are drawn with the configuration's seed.

    Raises:
        TrainingError: a picture cannot be written.
        RenderError: the model's output is not finite.
    """
    from PIL import Image

    plan, pipeline = tuning.plan, tuning.pipeline
    template = plan.template
    with torch.no_grad(), tuning.autocast():
        empty, empty_pooled = tuning.encode([template.negative_prompt])
    for number, words in enumerate(samples.prompts):
        prompt = words if template.find_marker(words) else template.fill(words)
        with torch.no_grad(), tuning.autocast():
            embeds, pooled = tuning.encode([prompt])
            latents = pipeline(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                negative_prompt_embeds=empty,
                negative_pooled_prompt_embeds=empty_pooled,
                width=samples.width,
                height=samples.height,
                num_inference_steps=samples.num_inference_steps,
                guidance_scale=samples.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(plan.config.seed),
                output_type="latent",
            ).images
        picture = Image.fromarray(decode_latents(pipeline.vae, latents))
        with write_whole(folder / f"{stem}-{number}.png") as file:
            picture.save(file, format="PNG")
    logger.info("samples: %s/%s-*.png", folder, stem)
