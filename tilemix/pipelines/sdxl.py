"""The SDXL family: a folder in diffusers' layout -> a model that encodes, denoises and decodes.

A prompt goes through two text encoders, chunk by chunk. compel's pooled vector is computed from the text with its
syntax still in it (https://github.com/damian0815/compel/issues/96); here it comes from the plain words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self, cast

import torch

from tilemix.adapters.merging import BaseWeights
from tilemix.adapters.tokens import Vocabulary
from tilemix.errors import ModelFileError, RequestError
from tilemix.modelfile.base_families import SDXL
from tilemix.pipelines.chunks import cut_into_chunks
from tilemix.pipelines.clip_text import OWN_CLIP_SKIP, ClipText
from tilemix.pipelines.conditioning import EncodedText
from tilemix.pipelines.parts import shorten
from tilemix.pipelines.unet import load_unet
from tilemix.pipelines.unet_family import UnetFamily, UnetPipeline
from tilemix.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedTokenizerBase
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    from tilemix.pipelines.conditioning import Parts
    from tilemix.pipelines.parts import Scheduler
    from tilemix.pipelines.unet_family import Cutoff
    from tilemix.weights import LocalModel


class SdxlPipeline(UnetPipeline, Protocol):
    """diffusers' `StableDiffusionXLPipeline`."""

    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase


class Sdxl(UnetFamily[SdxlPipeline]):
    """A loaded SDXL model, a `tilemix.pipelines.family.Family`."""

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

    def encode(self, parts: Parts, clip_skip: int | None) -> EncodedText:
        """Return `encode_text` of a prompt."""
        return encode_text(self.pipeline, parts, OWN_CLIP_SKIP if clip_skip is None else clip_skip)

    def _make_cutoff(self, part: float) -> Cutoff:
        from diffusers.callbacks import SDXLCFGCutoffCallback

        callback: Cutoff = SDXLCFGCutoffCallback(part)
        return callback

    def _make_img2img(self, scheduler: Scheduler) -> SdxlPipeline:
        from diffusers import StableDiffusionXLImg2ImgPipeline

        parts = self.pipeline.components | {"scheduler": scheduler}
        made = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
        return cast("SdxlPipeline", made)  # diffusers hides its types


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
