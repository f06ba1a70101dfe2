"""What a base family is to the rest of the house: one file beside this one, with a class that fulfills `Family`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from tilemix.adapters.tokens import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from tilemix.adapters.hypernetwork import Hypernetwork
    from tilemix.adapters.merging import BaseWeights
    from tilemix.pipelines.conditioning import EncodedText, Guidance, Parts
    from tilemix.pipelines.parts import Scheduler
    from tilemix.weights import LocalModel


@dataclass(frozen=True, slots=True)
class Denoising:
    """How a picture's latents are made: from noise, or from a draft under noise."""

    start: torch.Tensor  # noise or, below a strength of 1, a draft; in `Family.latent_shape`, fp32
    strength: float  # of the noise over a draft, above 0; 1: `start` is noise
    generator: torch.Generator  # the one that drew or will draw the noise; some schedulers draw more
    scheduler: Scheduler  # made for this picture
    num_inference_steps: int  # from pure noise; a draft takes `strength` of them
    guidance_scale: float
    guided_part: float  # of the steps, 0 to 1; the others see only the prompt
    after_step: Callable[[int], None]  # called with the number of steps done
    # In force for this picture, each with its strength; only for families with `takes_hypernetworks`.
    hypernetworks: Sequence[tuple[Hypernetwork, float]] = ()


class Family(Protocol):
    """A loaded base model, ready to draw; its class is the family."""

    @staticmethod
    def import_libraries() -> None:
        """Import the libraries that `load` and the first picture need, which takes seconds."""

    @classmethod
    def load(cls, model: LocalModel, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a model's base and make it ready to draw. Its networks have `dtype`, its latents are fp32.

        Raises:
            ModelFileError: a file cannot be loaded as what it should be.
            ManifestError: the base's folder does not fit.
        """

    @property
    def components(self) -> Mapping[str, torch.nn.Module]:
        """The networks that LoRAs are merged into, by the names in `BaseFamily.components`."""

    @staticmethod
    def locate_weights(model: LocalModel) -> Mapping[str, BaseWeights]:
        """Return where the pristine weights of each component are.

        Raises:
            ManifestError: the manifest lists no file, or too many, for one.
        """

    @property
    def vocabularies(self) -> Sequence[Vocabulary]:
        """Every tokenizer with the text encoder that embeds its tokens."""

    def set_tokenizers(self, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        """Replace the tokenizers, in the order of `vocabularies`."""

    @property
    def drawing_networks(self) -> Sequence[torch.nn.Module]:
        """The networks that take most of a picture's time; they may be compiled."""

    @property
    def scheduler_config(self) -> Mapping[str, object]:
        """The base's own scheduler configuration."""

    def encode(self, parts: Parts, clip_skip: int | None) -> EncodedText:
        """Return a prompt as `denoise` takes it.

        Args:
            parts: its words and their weights.
            clip_skip: which states of the text encoders are taken, counted from the end; None: those that the family
                was trained on.

        Raises:
            RequestError: the text encoders have no layer so far from their end.
        """

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the latents of a picture of so many pixels."""

    def encode_picture(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Return the latents of a draft (h, w, 3), sRGB, that wraps: in `latent_shape`, fp32."""

    def denoise(self, guidances: Sequence[Guidance], denoising: Denoising) -> torch.Tensor:
        """Return the latents of a picture, in `latent_shape`.

        From a draft, the picture wraps as the draft does, if the family can. Nothing of it stays behind, however it
        ends.
        """

    def decode(self, latents: torch.Tensor, *, wraps: bool = False) -> NDArray[np.uint8]:
        """Decode latents to pixels (h, w, 3), uint8 sRGB; `wraps`: they were drawn from a draft.

        Raises:
            RenderError: the latents or the pixels are not finite.
        """
