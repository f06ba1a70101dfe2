"""What the families with a UNet have in common: placing the networks, denoising, drafts, pixels.

They differ in their text encoders, in how their files are laid out, and in the classes of diffusers that draw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from tilemix.pipelines.attention import hypernetworks_applied, speed_attention
from tilemix.pipelines.decoding import decode_latents, encode_pixels, set_tiles
from tilemix.pipelines.parts import lay_channels_last, move
from tilemix.pipelines.unet import take_and_give_fp32
from tilemix.pipelines.wrapping import wrapping

if TYPE_CHECKING:
    import numpy as np
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from numpy.typing import NDArray

    from tilemix.pipelines.conditioning import Guidance
    from tilemix.pipelines.family import Denoising
    from tilemix.pipelines.parts import Drawn, Scheduler


class UnetPipeline(Protocol):
    """A pipeline of diffusers with a UNet, which registers its parts at run time and so hides their types."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Scheduler
    vae_scale_factor: int  # pixels along a side of one latent

    @property
    def components(self) -> dict[str, object]:
        """Every part, by the name of the argument that a pipeline takes it by."""

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the step that is being drawn sees the negative prompt."""

    def to(self, device: torch.device) -> UnetPipeline:
        """Move every part."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show or hide the progress bar of the steps."""

    def __call__(self, **inputs: object) -> Drawn:
        """Draw; diffusers documents the inputs."""


class Cutoff(Protocol):
    """diffusers' callback that ends the guidance after a part of the steps."""

    @property
    def tensor_inputs(self) -> list[str]:
        """The tensors that it changes."""

    def __call__(
        self, pipeline: UnetPipeline, step: int, timestep: object, tensors: dict[str, torch.Tensor], /
    ) -> dict[str, torch.Tensor]:
        """Return the tensors for the next step."""


PipelineT = TypeVar("PipelineT", bound=UnetPipeline)


class UnetFamily(ABC, Generic[PipelineT]):
    """A loaded model with a UNet; with its text encoders it is a `tilemix.pipelines.family.Family`.

    Args:
        pipeline: on its device, in its dtype. Its networks are changed in place: it may draw afterward, but not be
            moved.
        dtype: of the UNet and of the VAE.
    """

    def __init__(self, pipeline: PipelineT, device: torch.device, dtype: torch.dtype) -> None:
        self.pipeline = pipeline
        if dtype == torch.float16 and pipeline.vae.config["force_upcast"]:
            move(pipeline.vae, dtype=torch.bfloat16)  # this VAE overflows in fp16; bf16 has the range of fp32
        for component in (pipeline.unet, pipeline.vae):
            # Convolutions read all channels of a pixel: in this layout the VAE takes 0.8 of the time, in bf16 half.
            lay_channels_last(move(component, device))
        pipeline.to(device)
        if dtype != torch.float32:
            take_and_give_fp32(pipeline.unet)
        pipeline.set_progress_bar_config(disable=True)
        set_tiles(pipeline.vae)
        self.text_keys = speed_attention(pipeline.unet)

    @abstractmethod
    def _make_cutoff(self, part: float) -> Cutoff:
        """Return the callback that ends the guidance after a part of the steps, 0 to 1."""

    @abstractmethod
    def _make_img2img(self, scheduler: Scheduler) -> UnetPipeline:
        """Return the pipeline that starts from latents under noise, with the same networks."""

    @property
    def drawing_networks(self) -> tuple[torch.nn.Module, ...]:
        """The UNet and the VAE's decoder."""
        return self.pipeline.unet, self.pipeline.vae.decoder

    @property
    def scheduler_config(self) -> Mapping[str, object]:
        """The configuration of the pipeline's scheduler: the base's own until something is drawn."""
        return self.pipeline.scheduler.config

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the latents of a picture: (1, 4, h/8, w/8)."""
        factor, channels = self.pipeline.vae_scale_factor, self.pipeline.unet.config["in_channels"]
        return 1, channels, height // factor, width // factor

    def denoise(self, guidances: Sequence[Guidance], denoising: Denoising) -> torch.Tensor:
        """Return the latents of a picture (1, 4, h/8, w/8), fp32."""
        cutoff = self._make_cutoff(denoising.guided_part) if denoising.guided_part < 1 else None
        edits = _Edits(guidances)

        def after_step(
            of: UnetPipeline, step: int, timestep: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            denoising.after_step(step + 1)
            cut = tensors if cutoff is None else cutoff(of, step, timestep, tensors)
            return edits(of, step + 1, cut)

        options = {
            "num_inference_steps": denoising.num_inference_steps,
            "guidance_scale": denoising.guidance_scale,
            "generator": denoising.generator,
            "output_type": "latent",
            "callback_on_step_end": after_step,
            "callback_on_step_end_tensor_inputs": sorted(
                {
                    *(edits.tensor_inputs if len(guidances) > 1 else ()),
                    *(() if cutoff is None else cutoff.tensor_inputs),
                }
            ),
        }
        with (
            torch.inference_mode(),
            self.text_keys.kept(),
            hypernetworks_applied(self.pipeline.unet, denoising.hypernetworks),
        ):
            if denoising.strength < 1:
                return self._denoise_draft(guidances[0], denoising, options)
            height, width = (side * self.pipeline.vae_scale_factor for side in denoising.start.shape[-2:])
            self.pipeline.scheduler = denoising.scheduler
            return self.pipeline(
                **tensors_of(guidances[0]), latents=denoising.start, width=width, height=height, **options
            ).images

    def _denoise_draft(
        self, guidance: Guidance, denoising: Denoising, options: Mapping[str, object]
    ) -> torch.Tensor:
        pipeline = self._make_img2img(denoising.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        # It draws the noise in the dtype of the text, and fp32 is what pictures from noise start from.
        text = {name: tensor.float() for name, tensor in tensors_of(guidance).items()}
        with wrapping(self.pipeline.unet):
            return pipeline(**text, image=denoising.start, strength=denoising.strength, **options).images

    def encode_picture(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Return the latents of a draft (h, w, 3); see `encode_pixels`."""
        return encode_pixels(self.pipeline.vae, pixels)

    def decode(self, latents: torch.Tensor, *, wraps: bool = False) -> NDArray[np.uint8]:
        """Decode latents (1, 4, h/8, w/8) to pixels (h, w, 3), uint8 sRGB; see `decode_latents`."""
        return decode_latents(self.pipeline.vae, latents, wraps=wraps)


def tensors_of(guidance: Guidance) -> dict[str, torch.Tensor]:
    """Return the tensors by the names of the pipeline's arguments."""
    assert guidance.negative is not None, "every family with a UNet reads a negative prompt"
    tensors = {"prompt_embeds": guidance.prompt.states, "negative_prompt_embeds": guidance.negative.states}
    if guidance.prompt.pooled is not None:
        assert guidance.negative.pooled is not None, "one encoder gives both"
        tensors["pooled_prompt_embeds"] = guidance.prompt.pooled
        tensors["negative_pooled_prompt_embeds"] = guidance.negative.pooled
    return tensors


class _Edits:
    """The callback of the pipeline that changes the prompt after a step."""

    def __init__(self, guidances: Sequence[Guidance]) -> None:
        self._after = {earlier.last_step: later for earlier, later in pairwise(guidances)}
        is_pooled = guidances[0].prompt.pooled is not None
        self.tensor_inputs = ("prompt_embeds", *(("add_text_embeds",) if is_pooled else ()))

    def __call__(
        self, pipeline: UnetPipeline, done: int, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors for the steps after `done` steps."""
        guidance = self._after.get(done)
        if guidance is None:
            return tensors
        given = tensors_of(guidance)
        dtype = tensors["prompt_embeds"].dtype

        def join(name: str) -> torch.Tensor:
            sides = [f"negative_{name}", name] if pipeline.do_classifier_free_guidance else [name]
            return torch.cat([given[side] for side in sides]).to(dtype)

        changed = {"prompt_embeds": join("prompt_embeds")}
        if guidance.prompt.pooled is not None:
            changed["add_text_embeds"] = join("pooled_prompt_embeds")
        return tensors | changed
