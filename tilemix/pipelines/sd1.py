"""The SD 1.x family: a folder in diffusers' layout, or one checkpoint file, with one text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, cast

import torch

from tilemix.adapters.merging import BaseWeights
from tilemix.adapters.tokens import Vocabulary
from tilemix.errors import ModelFileError, RequestError
from tilemix.modelfile.base_families import SD1
from tilemix.pipelines.chunks import cut_into_chunks
from tilemix.pipelines.clip_text import ClipText
from tilemix.pipelines.conditioning import EncodedText
from tilemix.pipelines.original_sd1 import (
    TOKENIZER,
    find_original,
    load_networks,
    load_vae,
    locate_original,
    read_configs,
)
from tilemix.pipelines.parts import shorten
from tilemix.pipelines.unet import load_unet
from tilemix.pipelines.unet_family import UnetFamily, UnetPipeline
from tilemix.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.models.clip.modeling_clip import CLIPTextModel

    from tilemix.pipelines.conditioning import Parts
    from tilemix.pipelines.parts import Scheduler
    from tilemix.pipelines.unet_family import Cutoff
    from tilemix.weights import LocalModel

OWN_CLIP_SKIP = 1  # as web UIs count: the last layer's states, which SD 1 was trained on
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


class Sd1Pipeline(UnetPipeline, Protocol):
    """diffusers' `StableDiffusionPipeline`."""

    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase


class Sd1(UnetFamily[Sd1Pipeline]):
    """A loaded SD 1.x model, a `tilemix.pipelines.family.Family`."""

    @staticmethod
    def import_libraries() -> None:
        """Import the libraries that `load` and the first picture need, which takes seconds."""
        with quiet_libraries():
            import compel  # noqa: F401  imported for its time
            from diffusers import (  # noqa: F401  imported for their time
                DPMSolverMultistepScheduler,
                StableDiffusionImg2ImgPipeline,
                StableDiffusionPipeline,
            )

    @classmethod
    def load(cls, model: LocalModel, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a model's base and make it ready to draw; the text encoder is in fp32 on a CPU.

        Raises:
            ModelFileError: a file cannot be loaded as what it should be.
            ManifestError: the base's files do not fit.
        """
        text_dtype = torch.float32 if device.type == "cpu" else dtype
        with quiet_libraries():
            return cls(_load_pipeline(model, device, dtype, text_dtype), device, dtype)

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The networks that LoRAs are merged into: the UNet and the text encoder."""
        return {"unet": self.pipeline.unet, "text_encoder": self.pipeline.text_encoder}

    @staticmethod
    def locate_weights(model: LocalModel) -> dict[str, BaseWeights]:
        """Return where the pristine weights of each component are: in the one file of its folder, or of the base."""
        original = find_original(model)
        if original is not None:
            return locate_original(original)
        return {name: BaseWeights((model.find_tensors(name),)) for name in SD1.components}

    @property
    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """The tokenizer with the text encoder."""
        pipeline = self.pipeline
        return (Vocabulary("tokenizer", pipeline.tokenizer, "text_encoder", pipeline.text_encoder),)

    def set_tokenizers(self, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        """Replace the tokenizer."""
        (self.pipeline.tokenizer,) = tokenizers

    def encode(self, parts: Parts, clip_skip: int | None) -> EncodedText:
        """Return the states of a prompt (1, 77 * n, 768), after the encoder's last norm whichever layer they are from.

        Raises:
            RequestError: the encoder has no layer so far from its end.
        """
        encoder = self.pipeline.text_encoder
        skip = OWN_CLIP_SKIP if clip_skip is None else clip_skip
        if skip > (layers := encoder.config.num_hidden_layers):
            raise RequestError("input-out-of-range", field="clip_skip", typed=skip, low=1, high=layers)
        norm: torch.nn.Module = getattr(encoder, "text_model", encoder).final_layer_norm
        clip = ClipText(self.pipeline.tokenizer, encoder, skip, norm=norm)
        with torch.inference_mode():
            states = [clip.encode(chunk)[0] for chunk in cut_into_chunks(parts, clip.count_tokens)]
            return EncodedText(torch.cat(states, dim=1))

    def _make_cutoff(self, part: float) -> Cutoff:
        from diffusers.callbacks import SDCFGCutoffCallback

        callback: Cutoff = SDCFGCutoffCallback(part)
        return callback

    def _make_img2img(self, scheduler: Scheduler) -> Sd1Pipeline:
        from diffusers import StableDiffusionImg2ImgPipeline

        parts = self.pipeline.components | {"scheduler": scheduler}
        made = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        return cast("Sd1Pipeline", made)  # diffusers hides its types


def _load_pipeline(
    model: LocalModel, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype
) -> Sd1Pipeline:
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    original = find_original(model)
    try:
        if original is not None:
            tokenizer = model.base / "tokenizer"
            made = StableDiffusionPipeline(
                **load_networks(original, device, dtype, text_dtype),
                tokenizer=CLIPTokenizer.from_pretrained(tokenizer if tokenizer.is_dir() else TOKENIZER),
                scheduler=PNDMScheduler.from_config(read_configs(original)["scheduler"]),
                **NO_CHECKER,
            )
        else:
            unet = load_unet(model.base / "unet", model.find_tensors("unet"), device, dtype)
            parts = (
                {} if model.vae is None else {"vae": load_vae(model.vae, {}, {}, model.vae, device, dtype)}
            )
            made = StableDiffusionPipeline.from_pretrained(
                model.base,
                unet=unet,
                dtype={"text_encoder": text_dtype, "default": dtype},
                use_safetensors=True,
                local_files_only=True,
                **parts,
                **NO_CHECKER,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        part, reason = "Stable Diffusion 1 pipeline", shorten(error)
        raise ModelFileError(
            "weights-not-loadable", file=str(model.base), part=part, reason=reason
        ) from error
    return cast("Sd1Pipeline", made)
