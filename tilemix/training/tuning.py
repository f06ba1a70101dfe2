"""Pivotal tuning of an SDXL model: first the new tokens' rows, then a LoRA on the UNet.

Everything that is random in a step follows from the configuration's seed and the step's number, so a
training that was killed and started again ends as one that was not, on the same machine.

Sources: An Image is Worth One Word, https://arxiv.org/abs/2208.01618; LoRA, https://arxiv.org/abs/2106.09685;
Pivotal Tuning for Latent-based Editing, https://arxiv.org/abs/2106.05744 (the two phases);
https://github.com/cloneofsimo/lora (both of them together, for diffusion models)
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from tilemix.errors import ModelFileError, TrainingError
from tilemix.pipeline import load_base, quiet_libraries
from tilemix.templates import load_template
from tilemix.training.captions import encode_captions, plain_attention, tokenize
from tilemix.training.checkpoints import load_checkpoint, save_checkpoint
from tilemix.training.denoising import Batch, prediction_loss
from tilemix.training.learned_tokens import ENCODERS, add_tokens
from tilemix.training.loop import emulates_bf16, run_steps
from tilemix.training.pictures import find_pictures
from tilemix.training.tuning_config import load_config
from tilemix.training.tuning_data import draw_batch, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diffusers import DDPMScheduler

    from tilemix.templates import PromptTemplate
    from tilemix.training.learned_tokens import LearnedRows
    from tilemix.training.pictures import CaptionedPicture
    from tilemix.training.tuning_config import TuningConfig
    from tilemix.training.tuning_data import Example

logger = logging.getLogger(__name__)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "proj_in", "proj_out")
PHASES = ("embeddings", "lora")
TOKENS_SEEN = 75  # of a prompt; the start and the end take the other two places


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration asks for, before any model is loaded."""

    config: TuningConfig
    base: Path
    output: Path
    template: PromptTemplate
    pictures: list[CaptionedPicture]
    prompts: list[str]  # one a picture

    @property
    def state(self) -> Path:
        """The folder of latents and checkpoints."""
        return self.output / f"{self.config.name}_training"

    @property
    def checkpoint(self) -> Path:
        """The one checkpoint file."""
        return self.state / "checkpoint.pt"

    @property
    def digest(self) -> str:
        """What the outcome depends on, in one hash: a checkpoint of another one is refused."""
        kept = msgspec.structs.replace(self.config, samples=None, checkpoint_every=1, output="", pictures="")
        said = [msgspec.json.encode(kept).decode(), self.template.text]
        said += [f"{one.sha256} {prompt}" for one, prompt in zip(self.pictures, self.prompts, strict=True)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()


def make_plan(config_path: Path) -> Plan:
    """Read the configuration, the template and the pictures' names and captions.

    Raises:
        TrainingError: one of them cannot be used.
        TemplateError: the template cannot.
    """
    config = load_config(config_path)
    folder = config_path.parent
    template = load_template(folder / config.template)
    if not template.placeholder_tokens:
        raise TrainingError(f"{config.template}: no placeholder tokens; there is nothing to invert")
    if unknown := sorted(config.initial_words.keys() - set(template.placeholder_tokens)):
        expected = ", ".join(template.placeholder_tokens)
        raise TrainingError(f"initial_words: {unknown[0]!r}, expected tokens of the template: {expected}")
    pictures = find_pictures(folder / config.pictures)
    for picture in pictures:
        if marker := template.find_marker(picture.caption):
            raise TrainingError(
                f"{picture.path.with_suffix('.txt')}: holds {marker!r}, which the template puts there"
            )
    return Plan(
        config=config,
        base=folder / config.base,
        output=folder / config.output,
        template=template,
        pictures=pictures,
        prompts=[template.fill(picture.caption) for picture in pictures],
    )


class Tuning:
    """The model of one tuning, with the tokens and the LoRA that are learned.

    Args:
        plan: what to do.
        device: where.

    Raises:
        ModelFileError: the base is no SDXL folder.
        TrainingError: a token or a word does not fit the vocabulary.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        from diffusers import DDPMScheduler

        config = plan.config
        self.plan, self.device = plan, device
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        if self.dtype == torch.bfloat16 and emulates_bf16(device):
            logger.warning(
                'this CPU does not multiply bf16: with "precision": "fp32" a step takes a fraction of the time'
            )
        if not plan.base.is_dir():
            raise ModelFileError(f"{plan.base}: no such folder; expected an SDXL model in diffusers' layout")
        with quiet_libraries():
            # The VAE in fp32: SDXL's own overflows in half precision.
            dtypes = {"default": self.dtype, "vae": torch.float32}
            variant = "fp16" if any(plan.base.glob("unet/*.fp16.safetensors")) else None
            self.pipeline = load_base(plan.base, dtypes, variant=variant)
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for name in ("unet", "vae", *ENCODERS):
            getattr(self.pipeline, name).requires_grad_(False).eval()
        # The base's own noise levels and its own kind of prediction, in the order of training.
        self.scheduler: DDPMScheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        if self.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise TrainingError(
                f"{plan.base}: predicts {self.scheduler.config.prediction_type!r}, expected epsilon or v_prediction"
            )
        self.rows: dict[str, LearnedRows] = add_tokens(
            self.pipeline, plan.template.placeholder_tokens, config.initial_words, config.seed
        )
        self._add_lora()
        if config.gradient_checkpointing:
            self.pipeline.unet.enable_gradient_checkpointing()
        self._encoded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _add_lora(self) -> None:
        from peft import LoraConfig

        phase = self.plan.config.lora
        targets = [*ATTENTION, *(CONVOLUTIONS if phase.convolutions else ())]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.plan.config.seed)
            self.pipeline.unet.add_adapter(
                LoraConfig(
                    r=phase.rank,
                    lora_alpha=phase.alpha * phase.scale,
                    init_lora_weights="gaussian",
                    target_modules=targets,
                )
            )
        for parameter in self.lora_parameters().values():
            parameter.data = parameter.data.float()

    def lora_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the LoRA's parameters by their names in the UNet."""
        return {
            name: parameter for name, parameter in self.pipeline.unet.named_parameters() if ".lora_" in name
        }

    def learned(self, phase: str) -> dict[str, torch.nn.Parameter]:
        """Return what a phase learns."""
        if phase == "lora":
            return self.lora_parameters()
        return {name: learned.rows for name, learned in self.rows.items()}

    def begin(self, phase: str) -> None:
        """Let the parameters of one phase learn and no others."""
        for one in PHASES:
            for parameter in self.learned(one).values():
                parameter.requires_grad_(one == phase)
        self._encoded.clear()

    def find_loss(self, examples: list[Example], phase: str, step: int) -> torch.Tensor:
        """Return the loss of one step of a phase, to be used inside of `computing`."""
        batch = self.draw(examples, phase, step)
        with self.autocast():
            embeds, pooled = (
                self.encode(batch.captions) if phase == "embeddings" else self.look_up(batch.captions)
            )
            return prediction_loss(self.pipeline.unet, self.scheduler, batch, embeds, pooled)

    def draw(self, examples: list[Example], phase: str, step: int) -> Batch:
        """Return the batch of one step of a phase."""
        levels = self.scheduler.config.num_train_timesteps
        return draw_batch(examples, self.plan.config, phase=PHASES.index(phase), step=step, levels=levels)

    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings (n, 77, width) and the pooled vectors of prompts."""
        pipeline = self.pipeline
        ids = [tokenize(one, prompts).to(self.device) for one in (pipeline.tokenizer, pipeline.tokenizer_2)]
        return encode_captions((pipeline.text_encoder, pipeline.text_encoder_2), (ids[0], ids[1]))

    def look_up(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what `encode` does, each prompt once: while the LoRA learns, the encoders stand still."""
        for prompt in prompts:
            if prompt not in self._encoded:
                with torch.no_grad():
                    embeds, pooled = self.encode([prompt])
                self._encoded[prompt] = (embeds[0].cpu(), pooled[0].cpu())
        found = [self._encoded[prompt] for prompt in prompts]
        embeds, pooled = (torch.stack(tensors).to(self.device) for tensors in zip(*found, strict=True))
        return embeds, pooled

    def computing(self) -> AbstractContextManager[None]:
        """Return the context of steps, their backward pass included: gradient checkpointing computes again there."""
        return plain_attention(self.device)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in bf16 where the configuration says so."""
        with ExitStack() as stack:
            if self.dtype == torch.bfloat16:
                context: AbstractContextManager[Any] = torch.autocast(self.device.type, self.dtype)
                stack.enter_context(context)
            yield

    def make_optimizer(self, phase: str) -> torch.optim.AdamW:
        """Return a fresh optimizer of what a phase learns."""
        parameters = list(self.learned(phase).values())
        rate = getattr(self.plan.config, phase).learning_rate
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return everything that is learned."""
        return {phase: {name: one.detach() for name, one in self.learned(phase).items()} for phase in PHASES}

    def restore(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Take everything that is learned from `state`."""
        with torch.no_grad():
            for phase in PHASES:
                for name, parameter in self.learned(phase).items():
                    parameter.copy_(state[phase][name])


def tune(plan: Plan, device: torch.device) -> Tuning:
    """Train as the plan says and return the outcome; go on from its checkpoint when there is one.

    Raises:
        TrainingError: the checkpoint is another training's, the disk is full, a loss is not finite, a picture is none.
        ModelFileError: the base is no SDXL folder.
    """
    checkpoint = load_checkpoint(plan.checkpoint)
    if checkpoint is not None and checkpoint["digest"] != plan.digest:
        raise TrainingError(
            f"{plan.checkpoint}: of another configuration, other pictures or captions; remove it to begin anew"
        )
    tuning = Tuning(plan, device)
    _check_disk(plan, tuning)
    _warn_of_long_prompts(plan, tuning)
    examples = write_examples(
        tuning.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state / "latents"
    )
    if checkpoint is not None:
        tuning.restore(checkpoint["learned"])
        logger.info("going on from %s step %d", checkpoint["phase"], checkpoint["step"])
    for phase in PHASES:
        if checkpoint is not None and PHASES.index(phase) < PHASES.index(checkpoint["phase"]):
            continue
        resumed = checkpoint if checkpoint is not None and phase == checkpoint["phase"] else None
        _run_phase(tuning, examples, phase, resumed)
    return tuning


def _run_phase(tuning: Tuning, examples: list[Example], phase: str, resumed: dict[str, Any] | None) -> None:
    from tilemix.training.samples import draw_samples

    plan = tuning.plan
    settings = getattr(plan.config, phase)
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
                "phase": phase,
                "step": done,
                "learned": tuning.state(),
                "optimizer": optimizer.state_dict(),
            },
        )

    def sample(done: int) -> None:
        samples = plan.config.samples
        if samples and (done % samples.every == 0 or done == settings.steps):
            draw_samples(tuning, plan.output / f"{plan.config.name}_samples", f"{phase}-{done:06d}")

    with tuning.computing():
        run_steps(
            phase,
            optimizer,
            lambda step: tuning.find_loss(examples, phase, step),
            first=first,
            steps=settings.steps,
            learning_rates=[settings.learning_rate],
            warmup=settings.warmup,
            save_every=plan.config.checkpoint_every,
            save=save,
            after_step=sample,
        )


def find_disk_need(plan: Plan, tuning: Tuning) -> int:
    """Return the bytes that a training writes: latents, two checkpoints at a time, the adapters."""
    learned = sum(one.numel() for phase in PHASES for one in tuning.learned(phase).values())
    latents = len(plan.pictures) * 2 * (plan.config.resolution // 8) ** 2 * 4 * 4
    return latents + 2 * 3 * 4 * learned + 4 * learned


def _check_disk(plan: Plan, tuning: Tuning) -> None:
    plan.output.mkdir(parents=True, exist_ok=True)
    need, free = find_disk_need(plan, tuning), shutil.disk_usage(plan.output).free
    if free < need:
        raise TrainingError(f"{plan.output}: {free / 1e6:.0f} MB free, expected {need / 1e6:.0f} MB or more")


def _warn_of_long_prompts(plan: Plan, tuning: Tuning) -> None:
    """A step sees the first 75 tokens of a prompt; the predictor sees them all, in chunks."""
    tokenizer = tuning.pipeline.tokenizer
    long = [
        picture.path.name
        for picture, prompt in zip(plan.pictures, plan.prompts, strict=True)
        if len(tokenizer(prompt, add_special_tokens=False).input_ids) > TOKENS_SEEN
    ]
    if long:
        logger.warning(
            "%d captions are longer than %d tokens and lose their ends; the first: %s",
            len(long),
            TOKENS_SEEN,
            long[0],
        )
