"""The plan of a training: configuration, template, pictures and prompts, read before any model is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from tilemix.colors.palette import load_palette
from tilemix.errors import PromptError, TrainingError
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import load_template
from tilemix.tuning.config import load_config
from tilemix.tuning.pictures import find_pictures, read_all

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.colors.palette import Palette
    from tilemix.prompts.template import PromptTemplate
    from tilemix.tuning.config import TuningConfig
    from tilemix.tuning.pictures import CaptionedPicture


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration asks for."""

    config: TuningConfig
    base: Path
    output: Path
    template_path: Path
    template: PromptTemplate
    pictures: list[CaptionedPicture]
    prompts: list[str]  # one for each picture

    @property
    def state(self) -> Path:
        """The folder of the latents and the checkpoint."""
        return self.output / f"{self.config.name}_training"

    @property
    def files(self) -> tuple[Path, Path]:
        """The LoRA and the embeddings that the training will write."""
        return (
            self.output / f"{self.config.name}_sdxl_lora.safetensors",
            self.output / f"{self.config.name}_sdxl_embeddings.safetensors",
        )

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return self.state / "checkpoint.pt"

    @property
    def digest(self) -> str:
        """A hash of everything that the result depends on. A checkpoint with another digest is refused."""
        kept = msgspec.structs.replace(self.config, samples=None, checkpoint_every=1, output="", pictures="")
        said = [msgspec.json.encode(kept).decode(), self.template.text]
        said += [f"{one.sha256} {prompt}" for one, prompt in zip(self.pictures, self.prompts, strict=True)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()


def make_plan(config_path: Path) -> Plan:
    """Read the configuration, the template and the pictures' names and captions.

    Raises:
        TrainingError: the configuration, a picture or a caption cannot be used.
        TemplateError: the template cannot be used.
    """
    config = load_config(config_path)
    folder = config_path.parent
    template = load_template(folder / config.template)
    if not template.placeholder_tokens:
        raise TrainingError("training-no-tokens", file=config.template)
    if unknown := sorted(config.initial_words.keys() - set(template.placeholder_tokens)):
        known = ", ".join(template.placeholder_tokens)
        raise TrainingError("training-token-unknown", found=unknown[0], known=known)
    palette = load_palette(config.palette) if config.palette is not None else None
    pictures = find_pictures(folder / config.pictures)
    prompts = read_all({one.path: partial(_send_caption, one, template, palette) for one in pictures})
    return Plan(
        config=config,
        base=folder / config.base,
        output=folder / config.output,
        template_path=folder / config.template,
        template=template,
        pictures=pictures,
        prompts=list(prompts.values()),
    )


def _send_caption(picture: CaptionedPicture, template: PromptTemplate, palette: Palette | None) -> str:
    """Return the prompt that the product would send for a caption.

    Raises:
        TrainingError: the product would refuse it, or it holds what the template puts there.
    """
    file = str(picture.path.with_suffix(".txt"))
    if marker := template.find_marker(picture.caption):
        raise TrainingError("training-caption-holds-marker", file=file, found=marker)
    try:
        return rewrite(picture.caption, template, palette).positive
    except PromptError as error:
        raise TrainingError("training-caption-unusable", file=file, reason=str(error)) from error
