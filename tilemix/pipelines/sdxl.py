"""The SDXL family: a folder in diffusers' layout -> a model that encodes, denoises and decodes.

A prompt goes through two text encoders, chunk by chunk. compel's pooled vector is computed from the text with its
syntax still in it (https://github.com/damian0815/compel/issues/96); here it comes from the plain words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, Self, cast

import torch

from tilemix.adapters.merging import BaseWeights
from tilemix.adapters.tokens import Vocabulary
from tilemix.errors import ModelFileError, RequestError
from tilemix.modelfile.base_families import SDXL
from tilemix.pipelines.attention import speed_attention
from tilemix.pipelines.chunks import cut_into_chunks
from tilemix.pipelines.clip_text import OWN_CLIP_SKIP, ClipText
from tilemix.pipelines.conditioning import EncodedText
from tilemix.pipelines.decoding import decode_latents, encode_pixels, set_tiles
from tilemix.pipelines.parts import lay_channels_last, move, shorten
from tilemix.pipelines.unet import load_unet, take_and_give_fp32
from tilemix.pipelines.wrapping import wrapping
from tilemix.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    from tilemix.pipelines.conditioning import Guidance, Parts
    from tilemix.pipelines.family import Denoising
    from tilemix.pipelines.parts import Scheduler
    from tilemix.weights import LocalModel


class Drawn(Protocol):
    """What the pipeline returns."""

    images: torch.Tensor  # (n, 4, h/8, w/8), as `output_type="latent"` gives it


class SdxlPipeline(Protocol):
    """diffusers' `StableDiffusionXLPipeline`, which registers its parts at run time and so hides their types."""

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
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

    def to(self, device: torch.device) -> SdxlPipeline:
        """Move every part."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show or hide the progress bar of the steps."""

    def __call__(self, **inputs: object) -> Drawn:
        """Draw; diffusers documents the inputs."""


class Sdxl:
    """A loaded SDXL model, a `tilemix.pipelines.family.Family`.

    Args:
        pipeline: on its device, in its dtype. Its networks are changed in place: it may draw afterward, but not be
            moved.
        dtype: of the UNet and of the VAE.
    """

    def __init__(self, pipeline: SdxlPipeline, device: torch.device, dtype: torch.dtype) -> None:
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

    @staticmethod
    def import_libraries() -> None:
        """Import the libraries that `load` and the first picture need, which takes seconds."""
        with quiet_libraries():
            import compel  # noqa: F401  imported for its time
            from diffusers import (  # noqa: F401  imported for their time
                AutoencoderKL,
                DPMSolverMultistepScheduler,
                StableDiffusionXLImg2ImgPipeline,
                StableDiffusionXLPipeline,
            )

    @classmethod
    def load(cls, model: LocalModel, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a model's base and make it ready to draw.

        `dtype` is the UNet's and the VAE's. The text encoders have it on a GPU, and fp32 on a CPU, where they
        are a hundredth of the work. The UNet takes and returns fp32 in any case.

        Raises:
            ModelFileError: a file cannot be loaded as what it should be.
            ManifestError: the base's folder does not fit.
        """
        with quiet_libraries():
            variant = "fp16" if any(".fp16." in file.path for file in model.manifest.base.files) else None
            encoders = torch.float32 if device.type == "cpu" else dtype
            dtypes = dict.fromkeys(SDXL.encoders, encoders) | {"default": dtype}
            unet = load_unet(model.base / "unet", model.find_tensors("unet"), device, dtype)
            pipeline = load_base(model.base, dtypes, vae=model.vae, unet=unet, variant=variant)
        return cls(pipeline, device, dtype)

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The networks that LoRAs are merged into: the UNet and both text encoders."""
        return components_of(self.pipeline)

    @staticmethod
    def locate_weights(model: LocalModel) -> dict[str, BaseWeights]:
        """Return where the pristine weights of each component are: in the one file of its folder."""
        return {name: BaseWeights((model.find_tensors(name),)) for name in SDXL.components}

    @property
    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """Both tokenizers, each with the text encoder that embeds its tokens."""
        return vocabularies_of(self.pipeline)

    def set_tokenizers(self, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        """Replace both tokenizers, in the order of `vocabularies`."""
        set_tokenizers(self.pipeline, tokenizers)

    @property
    def drawing_networks(self) -> tuple[torch.nn.Module, ...]:
        """The UNet and the VAE's decoder."""
        return self.pipeline.unet, self.pipeline.vae.decoder

    @property
    def scheduler_config(self) -> Mapping[str, object]:
        """The configuration of the pipeline's scheduler: the base's own until something is drawn."""
        return self.pipeline.scheduler.config

    def encode(self, parts: Parts, clip_skip: int | None) -> EncodedText:
        """Return `encode_text` of a prompt."""
        return encode_text(self.pipeline, parts, OWN_CLIP_SKIP if clip_skip is None else clip_skip)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the latents of a picture: (1, 4, h/8, w/8)."""
        factor, channels = self.pipeline.vae_scale_factor, self.pipeline.unet.config["in_channels"]
        return 1, channels, height // factor, width // factor

    def denoise(self, guidances: Sequence[Guidance], denoising: Denoising) -> torch.Tensor:
        """Return the latents of a picture (1, 4, h/8, w/8), fp32."""
        from diffusers.callbacks import SDXLCFGCutoffCallback

        cutoff = SDXLCFGCutoffCallback(denoising.guided_part) if denoising.guided_part < 1 else None
        edits = _Edits(guidances)

        def after_step(
            of: SdxlPipeline, step: int, timestep: object, tensors: dict[str, torch.Tensor]
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
        with torch.inference_mode(), self.text_keys.kept():
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
        from diffusers import StableDiffusionXLImg2ImgPipeline

        parts = self.pipeline.components | {"scheduler": denoising.scheduler}
        made = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
        pipeline = cast("SdxlPipeline", made)  # diffusers hides its types
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


def load_base(
    base: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    *,
    vae: Path | None = None,
    unet: UNet2DConditionModel | None = None,
    variant: str | None = None,
) -> SdxlPipeline:
    """Load an SDXL folder in diffusers' layout, with its own VAE and UNet, or with those given.

    `dtype` may name one for each component, and "default" for the rest; `variant` is the "fp16" in the
    files' names.

    Raises:
        ModelFileError: it cannot be loaded as an SDXL pipeline.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        own = dtype if isinstance(dtype, torch.dtype) else dtype.get("vae", dtype.get("default"))
        parts = {} if vae is None else {"vae": AutoencoderKL.from_pretrained(vae, **options | {"dtype": own})}
        if unet is not None:
            parts["unet"] = unet
        pipeline: SdxlPipeline = StableDiffusionXLPipeline.from_pretrained(
            base, variant=variant, add_watermarker=False, **parts, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        part, reason = "Stable Diffusion XL pipeline", shorten(error)
        raise ModelFileError("weights-not-loadable", file=str(base), part=part, reason=reason) from error
    return pipeline


def components_of(pipeline: SdxlPipeline) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline that LoRAs change, by name."""
    return {
        "unet": pipeline.unet,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
    }


def vocabularies_of(pipeline: SdxlPipeline) -> tuple[Vocabulary, Vocabulary]:
    """Return the tokenizers of a pipeline with the text encoders that embed their tokens."""
    return (
        Vocabulary("tokenizer", pipeline.tokenizer, "text_encoder", pipeline.text_encoder),
        Vocabulary("tokenizer_2", pipeline.tokenizer_2, "text_encoder_2", pipeline.text_encoder_2),
    )


def set_tokenizers(pipeline: SdxlPipeline, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Replace the tokenizers of a pipeline, in the order of `vocabularies_of`."""
    pipeline.tokenizer, pipeline.tokenizer_2 = tokenizers


def encode_text(pipeline: SdxlPipeline, parts: Parts, clip_skip: int = OWN_CLIP_SKIP) -> EncodedText:
    """Encode a prompt with both text encoders of `pipeline`; the pooled vector is the first chunk's.

    Raises:
        RequestError: the encoders have no layer so far from their end.
    """
    pairs = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
    fewest = min(encoder.config.num_hidden_layers for _, encoder in pairs)
    if clip_skip > fewest:
        raise RequestError("input-out-of-range", field="clip_skip", typed=clip_skip, low=1, high=fewest)
    first, second = (ClipText(tokenizer, encoder, clip_skip) for tokenizer, encoder in pairs)

    def count_tokens(texts: Sequence[str]) -> list[int]:
        """The second tokenizer pads with "!", so where that is typed it has other counts."""
        return list(map(max, first.count_tokens(texts), second.count_tokens(texts)))

    with torch.inference_mode():
        states, pooled = [], []
        for chunk in cut_into_chunks(parts, count_tokens):
            (one, _), (other, vector) = first.encode(chunk), second.encode(chunk)
            states.append(torch.cat([one, other], dim=-1))
            pooled.append(vector)
        assert pooled[0] is not None  # the second encoder has a projection
        return EncodedText(torch.cat(states, dim=1), pooled[0])


def tensors_of(guidance: Guidance) -> dict[str, torch.Tensor]:
    """Return the tensors by the names of the pipeline's arguments."""
    prompt, negative = guidance.prompt, guidance.negative
    assert negative is not None
    assert prompt.pooled is not None
    assert negative.pooled is not None
    return {
        "prompt_embeds": prompt.states,  # (1, 77 * n, 2048)
        "pooled_prompt_embeds": prompt.pooled,  # (1, 1280)
        "negative_prompt_embeds": negative.states,
        "negative_pooled_prompt_embeds": negative.pooled,
    }


class _Edits:
    """The callback of the pipeline that changes the prompt after a step."""

    tensor_inputs = ("prompt_embeds", "add_text_embeds")

    def __init__(self, guidances: Sequence[Guidance]) -> None:
        self._after = {earlier.last_step: later for earlier, later in pairwise(guidances)}

    def __call__(
        self, pipeline: SdxlPipeline, done: int, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors for the steps after `done` steps."""
        guidance = self._after.get(done)
        if guidance is None:
            return tensors
        texts = tensors_of(guidance)
        signs = ("negative_", "") if pipeline.do_classifier_free_guidance else ("",)
        states = torch.cat([texts[f"{sign}prompt_embeds"] for sign in signs])
        pooled = torch.cat([texts[f"{sign}pooled_prompt_embeds"] for sign in signs])
        dtype = tensors["prompt_embeds"].dtype
        return tensors | {"prompt_embeds": states.to(dtype), "add_text_embeds": pooled.to(dtype)}
