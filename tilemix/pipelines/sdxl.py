"""The SDXL family: a folder in diffusers' layout -> a model that encodes, denoises and decodes.

A prompt goes through two text encoders. compel splits prompts of more than 77 tokens into chunks and reads its own
emphasis. Its pooled embedding is computed from the text with that syntax still in it
(https://github.com/damian0815/compel/issues/96), so the pooled vectors here come from the plain words.

A text without emphasis that fits into 77 tokens needs none of it. Then both prompts go through each encoder in
one batch, 2 passes instead of compel's 6, and the numbers are the same except for the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, cast

import torch

from tilemix.adapters.tokens import Vocabulary
from tilemix.errors import ModelFileError
from tilemix.modelfile.spellings import ENCODERS
from tilemix.pipelines.attention import speed_attention
from tilemix.pipelines.conditioning import parse_emphasis
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

    from tilemix.pipelines.family import Denoising
    from tilemix.pipelines.parts import Scheduler
    from tilemix.weights import LocalModel

TOKENS = 77  # that a text encoder takes at a time


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

    def to(self, device: torch.device) -> SdxlPipeline:
        """Move every part."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show or hide the progress bar of the steps."""

    def __call__(self, **inputs: object) -> Drawn:
        """Draw; diffusers documents the inputs."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the UNet gets, positive and negative, with the same number of tokens. Widths are SDXL's."""

    prompt_embeds: torch.Tensor  # (1, 77 * n, 2048)
    pooled_prompt_embeds: torch.Tensor  # (1, 1280)
    negative_prompt_embeds: torch.Tensor  # (1, 77 * n, 2048)
    negative_pooled_prompt_embeds: torch.Tensor  # (1, 1280)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by the names of the pipeline's arguments."""
        return {
            "prompt_embeds": self.prompt_embeds,
            "pooled_prompt_embeds": self.pooled_prompt_embeds,
            "negative_prompt_embeds": self.negative_prompt_embeds,
            "negative_pooled_prompt_embeds": self.negative_pooled_prompt_embeds,
        }


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
            dtypes = dict.fromkeys(ENCODERS, encoders) | {"default": dtype}
            unet = load_unet(model.base / "unet", model.find_tensors("unet"), device, dtype)
            pipeline = load_base(model.base, dtypes, vae=model.vae, unet=unet, variant=variant)
        return cls(pipeline, device, dtype)

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The networks that LoRAs are merged into: the UNet and both text encoders."""
        return components_of(self.pipeline)

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

    def encode(self, positive: str, negative: str) -> dict[str, torch.Tensor]:
        """Return `encode_prompt` of the two by the names of the pipeline's arguments."""
        return encode_prompt(self.pipeline, positive, negative).tensors

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the latents of a picture: (1, 4, h/8, w/8)."""
        factor, channels = self.pipeline.vae_scale_factor, self.pipeline.unet.config["in_channels"]
        return 1, channels, height // factor, width // factor

    def denoise(self, conditioning: Mapping[str, torch.Tensor], denoising: Denoising) -> torch.Tensor:
        """Return the latents of a picture (1, 4, h/8, w/8), fp32."""
        from diffusers.callbacks import SDXLCFGCutoffCallback

        cutoff = SDXLCFGCutoffCallback(denoising.guided_part) if denoising.guided_part < 1 else None

        def after_step(
            of: SdxlPipeline, step: int, timestep: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            denoising.after_step(step + 1)
            return tensors if cutoff is None else cutoff(of, step, timestep, tensors)

        options = {
            "num_inference_steps": denoising.num_inference_steps,
            "guidance_scale": denoising.guidance_scale,
            "generator": denoising.generator,
            "output_type": "latent",
            "callback_on_step_end": after_step,
            "callback_on_step_end_tensor_inputs": [] if cutoff is None else cutoff.tensor_inputs,
        }
        with torch.inference_mode(), self.text_keys.kept():
            if denoising.strength < 1:
                return self._denoise_draft(conditioning, denoising, options)
            height, width = (side * self.pipeline.vae_scale_factor for side in denoising.start.shape[-2:])
            self.pipeline.scheduler = denoising.scheduler
            return self.pipeline(
                **conditioning, latents=denoising.start, width=width, height=height, **options
            ).images

    def _denoise_draft(
        self, conditioning: Mapping[str, torch.Tensor], denoising: Denoising, options: Mapping[str, object]
    ) -> torch.Tensor:
        from diffusers import StableDiffusionXLImg2ImgPipeline

        parts = self.pipeline.components | {"scheduler": denoising.scheduler}
        made = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
        pipeline = cast("SdxlPipeline", made)  # diffusers hides its types
        pipeline.set_progress_bar_config(disable=True)
        # It draws the noise in the dtype of the text, and fp32 is what pictures from noise start from.
        text = {name: tensor.float() for name, tensor in conditioning.items()}
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


def encode_prompt(pipeline: SdxlPipeline, positive: str, negative: str) -> Conditioning:
    """Encode a prompt and a negative prompt with both text encoders of `pipeline`.

    An empty negative prompt is encoded like any other text, as cog-sdxl does; it is not all zeros.

    Raises:
        PromptError: the emphasis in a text cannot be read, or asks for something that an SDXL prompt cannot do.
    """
    prompts = [parse_emphasis(positive, field="prompt"), parse_emphasis(negative, field="negative_prompt")]
    plain = [prompt.words for prompt in prompts]
    with torch.inference_mode():
        if not any(prompt.is_emphasized for prompt in prompts):
            batch = _tokenize(pipeline, plain)
            if batch is not None:
                return _encode_tokens(pipeline, batch)
        return encode_with_compel(pipeline, [positive, negative], plain)


def _tokenize(pipeline: SdxlPipeline, texts: Sequence[str]) -> list[torch.Tensor] | None:
    """Return the texts' tokens for each encoder, (n, 77); None where a text has more."""
    batch = []
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        rows = tokenizer(list(texts), padding="max_length", max_length=TOKENS, verbose=False).input_ids
        if any(len(row) > TOKENS for row in rows):
            return None
        batch.append(torch.tensor(rows))
    return batch


def _encode_tokens(pipeline: SdxlPipeline, batch: Sequence[torch.Tensor]) -> Conditioning:
    """Encode a prompt and a negative prompt, (2, 77) tokens for each encoder, in one pass each."""
    first, second = (
        encoder(tokens.to(encoder.device), output_hidden_states=True)
        for encoder, tokens in zip((pipeline.text_encoder, pipeline.text_encoder_2), batch, strict=True)
    )
    # SDXL takes the states before the last layer, and the second encoder's pooled vector.
    embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled = second.text_embeds
    return Conditioning(embeds[:1], pooled[:1], embeds[1:], pooled[1:])


def encode_with_compel(pipeline: SdxlPipeline, texts: Sequence[str], plain: Sequence[str]) -> Conditioning:
    """Encode a prompt and a negative prompt through compel.

    Args:
        pipeline: an SDXL pipeline.
        texts: the two prompts, with their emphasis.
        plain: the same two without it, for the pooled vectors.
    """
    from compel import CompelForSDXL

    # Made anew each time: compel keeps the empty prompt's embedding, which is stale after any change of
    # the text encoders' weights or of the vocabulary.
    compel = CompelForSDXL(pipeline)
    positive, negative = texts
    encoded = compel(positive, negative_prompt=negative)
    pooled = [compel.compel_2.conditioning_provider.get_pooled_embeddings([text]) for text in plain]
    return Conditioning(encoded.embeds, pooled[0], encoded.negative_embeds, pooled[1])
