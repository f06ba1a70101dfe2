"""The configuration of a training: one JSON file, checked before anything is loaded.

Its paths are relative to its own folder. The required keys are::

    {
      "name": "rubber-tile",
      "base": "weights/files/stable-diffusion-xl-base-1.0",
      "pictures": "pictures",
      "template": "prompt_templates/rubber_tile.json",
      "output": "weights/files"
    }
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from tilemix.colors.chart import list_palettes
from tilemix.errors import TrainingError
from tilemix.inputs import IntegerInput, NumberInput, find_input
from tilemix.system.json_file import read_json

if TYPE_CHECKING:
    from pathlib import Path

MAX_SEED = find_input("seed", IntegerInput).maximum
MAX_SCALE = find_input("lora_scale", NumberInput).maximum
GUIDANCE = find_input("guidance_scale", NumberInput)
SIZE_MULTIPLE = find_input("width", IntegerInput).multiple  # the VAE makes one latent of 8 x 8 pixels
MAX_FILE_BYTES = 2**20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Steps = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Phase(StrEnum):
    """The phases of a training, in order. A phase's place is part of the seed of its steps."""

    EMBEDDINGS = "embeddings"
    LORA = "lora"

    @property
    def place(self) -> int:
        """0 for the first."""
        return list(Phase).index(self)


class EmbeddingPhase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Textual inversion: trains the new tokens' rows of both text encoders and nothing else."""

    steps: Steps = 500
    learning_rate: Rate = 1e-3
    warmup: Steps = 20


class LoraPhase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The LoRA of the UNet; the tokens are frozen."""

    steps: Steps = 1000
    learning_rate: Rate = 1e-4
    warmup: Steps = 50
    rank: Count = 16
    alpha: Annotated[float, msgspec.Meta(gt=0)] = 16.0
    # The scale during training. Set to 0.7, the LoRA works best at 0.7 instead of 1.
    scale: Annotated[float, msgspec.Meta(gt=0, le=MAX_SCALE)] = 1.0
    convolutions: bool = False  # beside the attention: needed for new shapes, not for new colors


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Pictures drawn during the training, into OUTPUT/NAME_samples/."""

    prompts: list[str]  # filled into the template, like a customer's
    every: Count = 500  # steps
    width: Count = 1024
    height: Count = 1024
    num_inference_steps: Count = 25
    guidance_scale: Annotated[float, msgspec.Meta(ge=GUIDANCE.minimum, le=GUIDANCE.maximum)] = 7.0


class TuningConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained, on which pictures, and how."""

    name: str  # of the files: NAME_sdxl_lora.safetensors, NAME_sdxl_embeddings.safetensors
    base: str  # an SDXL folder in the layout of StableDiffusionXLPipeline.save_pretrained
    pictures: str  # folder of pictures, each with its caption in a text file of the same name
    template: str  # prompt template file: a caption replaces its $prompt; its tokens are learned
    output: str  # folder
    palette: str | None = None  # whose words the captions have; None: the chart's
    initial_words: dict[str, str] = {}  # placeholder token -> word whose vectors it starts from
    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] = 0
    resolution: Count = 1024  # pixels: every picture's shorter side is scaled to it
    crop: Count | None = None  # pixels: side of the square cut from a picture in each step; None: resolution
    batch_size: Count = 1
    # Range of sides, in pixels, told to the UNet at random instead of each picture's own (size conditioning).
    named_sizes: tuple[Count, Count] | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    embeddings: EmbeddingPhase = EmbeddingPhase()
    lora: LoraPhase = LoraPhase()
    checkpoint_every: Count = 250  # steps
    samples: Samples | None = None

    def settings(self, phase: Phase) -> EmbeddingPhase | LoraPhase:
        """Return the settings of a phase."""
        return self.embeddings if phase is Phase.EMBEDDINGS else self.lora

    @property
    def crop_side(self) -> int:
        """The side of the square that a step trains on, in pixels."""
        return self.resolution if self.crop is None else self.crop


def load_config(path: Path) -> TuningConfig:
    """Read and check a configuration.

    Raises:
        TrainingError: it cannot be read, a key is unknown, missing or of the wrong type, or a value is out of
            its range, or it has more than MAX_FILE_BYTES.
    """
    config = read_json(path, TuningConfig, most=MAX_FILE_BYTES, refuse=TrainingError)
    _check(config, path.name)
    return config


def _check(config: TuningConfig, file: str) -> None:
    if not NAME.fullmatch(config.name):
        raise TrainingError("training-name-unusable", file=file, found=config.name[:80])
    sides = {"resolution": config.resolution, "crop": config.crop_side}
    if config.samples:
        sides |= {"samples.width": config.samples.width, "samples.height": config.samples.height}
    for name, side in sides.items():
        if side % SIZE_MULTIPLE:
            raise TrainingError(
                "training-side-not-multiple", file=file, name=name, found=side, multiple=SIZE_MULTIPLE
            )
    if config.palette is not None and config.palette not in (known := list_palettes()):
        raise TrainingError(
            "manifest-no-palette", file=file, palette=config.palette[:80], known=", ".join(known)
        )
    if config.crop_side > config.resolution:
        raise TrainingError(
            "training-crop-too-large", file=file, found=config.crop_side, most=config.resolution
        )
    low, high = config.named_sizes or (0, 0)
    if low > high:
        raise TrainingError("training-sizes-reversed", file=file, low=low, high=high)
    if not config.embeddings.steps and not config.lora.steps:
        raise TrainingError("training-no-steps", file=file)
