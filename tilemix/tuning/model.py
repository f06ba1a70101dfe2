"""The model in training: an SDXL pipeline with trainable tokens and a trainable LoRA."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from tilemix.errors import ModelFileError, TrainingError
from tilemix.pipelines.sdxl import components_of, load_base
from tilemix.system.quiet import quiet_libraries
from tilemix.tuning.config import Phase
from tilemix.tuning.data import draw_batch
from tilemix.tuning.denoising import Batch, prediction_loss
from tilemix.tuning.encoding import encode_captions, plain_attention, tokenize
from tilemix.tuning.learned_tokens import add_tokens
from tilemix.tuning.loop import emulates_bf16

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from tilemix.tuning.data import Example
    from tilemix.tuning.learned_tokens import LearnedRows
    from tilemix.tuning.plan import Plan

logger = logging.getLogger(__name__)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SDXL_CLASS = "StableDiffusionXLPipeline"
TOKENS_SEEN = 75  # of a prompt; the start and the end token take the other two of 77
CONVOLUTIONS = ("conv1", "conv2", "proj_in", "proj_out")


class Tuning:
    """An SDXL pipeline with trainable tokens and a trainable LoRA.

    Args:
        plan: what to train.
        device: where to train it.

    Raises:
        ModelFileError: the base is not an SDXL folder.
        TrainingError: a token or an initial word does not fit the vocabulary.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        config = plan.config
        self.plan, self.device = plan, device
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        if self.dtype == torch.bfloat16 and emulates_bf16(device):
            logger.warning(
                'this CPU has no bf16 arithmetic; with "precision": "fp32" a step takes a fraction of the time'
            )
        if not plan.base.is_dir():
            raise ModelFileError("training-no-base", folder=str(plan.base))
        if (found := _find_class(plan.base)) not in (None, SDXL_CLASS):
            raise ModelFileError("training-other-family", file=str(plan.base), found=str(found)[:80])
        with quiet_libraries():
            # SDXL's own VAE overflows in half precision.
            dtypes = {"default": self.dtype, "vae": torch.float32}
            variant = "fp16" if any(plan.base.glob("unet/*.fp16.safetensors")) else None
            self.pipeline = load_base(plan.base, dtypes, variant=variant)
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for network in (self.pipeline.vae, *components_of(self.pipeline).values()):
            network.requires_grad_(False).eval()
        # Keeps the base's noise levels and its kind of prediction.
        self.scheduler: DDPMScheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        kind = self.scheduler.config["prediction_type"]
        if kind not in ("epsilon", "v_prediction"):
            raise TrainingError("training-prediction-unknown", folder=str(plan.base), found=str(kind))
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
                    lora_alpha=phase.alpha * phase.scale,  # type: ignore[arg-type]  # a fraction is as good
                    init_lora_weights="gaussian",
                    target_modules=targets,
                )
            )
        for parameter in self.lora_parameters().values():
            parameter.data = parameter.data.float()

    def lora_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the LoRA's parameters by name in the UNet."""
        return {
            name: parameter for name, parameter in self.pipeline.unet.named_parameters() if ".lora_" in name
        }

    def learned(self, phase: Phase) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that a phase trains."""
        if phase is Phase.LORA:
            return self.lora_parameters()
        return {name: learned.rows for name, learned in self.rows.items()}

    def begin(self, phase: Phase) -> None:
        """Make the parameters of one phase trainable and freeze all others."""
        for one in Phase:
            for parameter in self.learned(one).values():
                parameter.requires_grad_(one is phase)
        self._encoded.clear()

    def find_loss(self, examples: list[Example], phase: Phase, step: int) -> torch.Tensor:
        """Return the loss of one step of a phase; call it inside `computing`."""
        batch = self.draw(examples, phase, step)
        with self.autocast():
            embeds, pooled = (
                self.encode(batch.captions) if phase is Phase.EMBEDDINGS else self.look_up(batch.captions)
            )
            return prediction_loss(self.pipeline.unet, self.scheduler, batch, embeds, pooled)

    def draw(self, examples: list[Example], phase: Phase, step: int) -> Batch:
        """Return the batch of one step of a phase."""
        levels: int = self.scheduler.config["num_train_timesteps"]
        return draw_batch(examples, self.plan.config, phase=phase, step=step, levels=levels)

    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings (n, 77, width) and the pooled vectors (n, width) of prompts."""
        pipeline = self.pipeline
        ids = [tokenize(one, prompts).to(self.device) for one in (pipeline.tokenizer, pipeline.tokenizer_2)]
        return encode_captions((pipeline.text_encoder, pipeline.text_encoder_2), (ids[0], ids[1]))

    def look_up(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `encode` returns, each prompt encoded once: the encoders are frozen while the LoRA is trained."""
        for prompt in prompts:
            if prompt not in self._encoded:
                with torch.no_grad():
                    embeds, pooled = self.encode([prompt])
                self._encoded[prompt] = (embeds[0].cpu(), pooled[0].cpu())
        found = [self._encoded[prompt] for prompt in prompts]
        embeds, pooled = (torch.stack(tensors).to(self.device) for tensors in zip(*found, strict=True))
        return embeds, pooled

    def computing(self) -> AbstractContextManager[None]:
        """Return the context for a step and its backward pass, in which gradient checkpointing computes again."""
        return plain_attention(self.device)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in bf16 if the configuration says so."""
        with ExitStack() as stack:
            if self.dtype == torch.bfloat16:
                context: AbstractContextManager[Any] = torch.autocast(self.device.type, self.dtype)
                stack.enter_context(context)
            yield

    def make_optimizer(self, phase: Phase) -> torch.optim.AdamW:
        """Return a new optimizer for the parameters of a phase."""
        parameters = list(self.learned(phase).values())
        rate = self.plan.config.settings(phase).learning_rate
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return all trained tensors."""
        return {
            phase.value: {name: one.detach() for name, one in self.learned(phase).items()} for phase in Phase
        }

    def restore(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Load all trained tensors from `state`."""
        with torch.no_grad():
            for phase in Phase:
                for name, parameter in self.learned(phase).items():
                    parameter.copy_(state[phase][name])


def find_cut_prompts(plan: Plan, tuning: Tuning) -> list[str]:
    """Return the pictures whose prompts are over 75 tokens: training cuts them off, the predictor reads them whole."""
    tokenizer = tuning.pipeline.tokenizer
    return [
        picture.path.name
        for picture, prompt in zip(plan.pictures, plan.prompts, strict=True)
        if len(tokenizer(prompt, add_special_tokens=False).input_ids) > TOKENS_SEEN
    ]


def find_disk_need(plan: Plan, tuning: Tuning) -> int:
    """Return how many bytes a training writes: latents, two checkpoints at a time, the adapters."""
    learned = sum(one.numel() for phase in Phase for one in tuning.learned(phase).values())
    latents = len(plan.pictures) * 2 * (plan.config.resolution // 8) ** 2 * 4 * 4
    return latents + 2 * 3 * 4 * learned + 4 * learned


def _find_class(base: Path) -> object:
    """Return diffusers' class of the model in a folder; None: the folder does not say."""
    try:
        index = msgspec.json.decode((base / "model_index.json").read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError):
        return None  # the loader says what is wrong
    return index.get("_class_name")
