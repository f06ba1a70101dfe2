"""The Flux.1 family: a folder in diffusers' layout -> a model that encodes, denoises and decodes.

A prompt goes through two text encoders. T5 gives the states of each token; CLIP gives one pooled vector, of the first
75 tokens. The published models are distilled: there is no negative prompt. Guidance is an input of the network; FLUX.1
[schnell] has none.

Emphasis moves the states of T5's tokens away from those of an empty text, or towards them: e + w (s - e).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import torch
import torch.nn.functional as F

from tilemix.adapters.merging import BaseWeights
from tilemix.adapters.tokens import Vocabulary
from tilemix.errors import ManifestError, ModelFileError
from tilemix.modelfile.base_families import FLUX1
from tilemix.pipelines.conditioning import EncodedText
from tilemix.pipelines.decoding import FACTOR, decode_latents, encode_pixels, set_tiles
from tilemix.pipelines.parts import lay_channels_last, move, shorten
from tilemix.prompts.language import Fragment
from tilemix.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    from tilemix.pipelines.conditioning import Guidance, Parts
    from tilemix.pipelines.family import Denoising
    from tilemix.pipelines.parts import Drawn, Scheduler
    from tilemix.weights import LocalModel

logger = logging.getLogger(__name__)

CLIP_TOKENS = 77  # with begin and end
# That T5 reads, with the end. Source: the model cards of FLUX.1 [dev] and FLUX.1 [schnell].
T5_TOKENS, T5_TOKENS_SCHNELL = 512, 256
PATCH = 2  # latents along a side of what is one place to the transformer
SPACE = Fragment(" ", 1.0)


class Flux1Pipeline(Protocol):
    """diffusers' `FluxPipeline`, which registers its parts at run time and so hides their types."""

    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    scheduler: Scheduler

    @property
    def components(self) -> dict[str, object]:
        """Every part, by the name of the argument that a pipeline takes it by."""

    def to(self, device: torch.device) -> Flux1Pipeline:
        """Move every part."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show or hide the progress bar of the steps."""

    def __call__(self, **inputs: object) -> Drawn:
        """Draw; diffusers documents the inputs."""


class Flux1:
    """A loaded Flux.1 model, a `tilemix.pipelines.family.Family`.

    Args:
        pipeline: on its device, in its dtype. Its VAE is changed in place.
        dtype: of the transformer and of the VAE.
    """

    def __init__(self, pipeline: Flux1Pipeline, device: torch.device, dtype: torch.dtype) -> None:
        self.pipeline = pipeline
        lay_channels_last(move(pipeline.vae, device))
        pipeline.to(device)
        if dtype != torch.float32:
            _take_and_give_fp32(pipeline.transformer)
        pipeline.set_progress_bar_config(disable=True)
        set_tiles(pipeline.vae)

    @staticmethod
    def import_libraries() -> None:
        """Import the libraries that `load` and the first picture need, which takes seconds."""
        with quiet_libraries():
            from diffusers import (  # noqa: F401  imported for their time
                AutoencoderKL,
                FlowMatchEulerDiscreteScheduler,
                FluxImg2ImgPipeline,
                FluxPipeline,
            )

    @classmethod
    def load(cls, model: LocalModel, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a model's base and make it ready to draw. Transformer, text encoders and VAE have `dtype`.

        Raises:
            ModelFileError: a file cannot be loaded as what it should be.
        """
        with quiet_libraries():
            return cls(_load_base(model.base, dtype, vae=model.vae), device, dtype)

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The networks that LoRAs are merged into: the transformer and CLIP's text encoder."""
        return {name: getattr(self.pipeline, name) for name in FLUX1.components}

    @staticmethod
    def locate_weights(model: LocalModel) -> dict[str, BaseWeights]:
        """Return where the pristine weights of each component are: in all the files of its folder.

        Raises:
            ManifestError: the manifest lists none.
        """
        found = {name: BaseWeights(model.list_tensors(name)) for name in FLUX1.components}
        for name, weights in found.items():
            if not weights.files:
                file = f"{model.name}.model.json"
                raise ManifestError("manifest-wrong-tensor-files", file=file, count=0, component=name)
        return found

    @property
    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """CLIP's tokenizer and text encoder. T5 gets no learned tokens and reads their names as text."""
        part = self.pipeline
        return (Vocabulary("tokenizer", part.tokenizer, "text_encoder", part.text_encoder),)

    def set_tokenizers(self, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        """Replace CLIP's tokenizer."""
        (self.pipeline.tokenizer,) = tokenizers

    @property
    def drawing_networks(self) -> tuple[torch.nn.Module, ...]:
        """The transformer and the VAE's decoder."""
        return self.pipeline.transformer, self.pipeline.vae.decoder

    @property
    def scheduler_config(self) -> Mapping[str, object]:
        """The configuration of the pipeline's scheduler: the base's own until something is drawn."""
        return self.pipeline.scheduler.config

    def encode(self, parts: Parts, clip_skip: int | None) -> EncodedText:  # noqa: ARG002  Flux reads the last layers
        """Return T5's states (1, 512 or 256, 4096) and CLIP's pooled vector (1, 768); BREAK is a space."""
        words = [word for part in parts for word in (SPACE, *part)][1:]
        text = "".join(word.text for word in words)
        count = len(self.pipeline.tokenizer_2(text, verbose=False).input_ids)
        if count > self._t5_tokens:
            cut = count - self._t5_tokens
            logger.warning("the prompt has %d tokens; %s does not read the last %d", count, FLUX1.base, cut)
        with torch.inference_mode():
            states = self._encode_t5(text)
            if any(word.weight != 1 for word in words):
                empty = self._encode_t5("")
                weights = self._weigh_tokens(words).to(states)
                states = empty + weights * (states - empty)
            return EncodedText(states, self._encode_clip(text))

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the latents of a picture: (1, 16, h/8, w/8)."""
        return 1, self.pipeline.transformer.config["in_channels"] // 4, height // FACTOR, width // FACTOR

    def encode_picture(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Return the latents of a draft (h, w, 3); see `encode_pixels`."""
        return encode_pixels(self.pipeline.vae, pixels)

    def denoise(self, guidances: Sequence[Guidance], denoising: Denoising) -> torch.Tensor:
        """Return the latents of a picture (1, 16, h/8, w/8), fp32.

        A picture from a draft does not wrap: the transformer numbers the places from one edge to the other.
        """
        rows, columns = denoising.start.shape[-2:]
        height, width = rows * FACTOR, columns * FACTOR

        def after_step(
            _: Flux1Pipeline, step: int, __: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            denoising.after_step(step + 1)
            return tensors

        first = guidances[0].prompt
        assert first.pooled is not None
        options: dict[str, Any] = {
            "prompt_embeds": first.states.float(),  # latents have the text's dtype
            "pooled_prompt_embeds": first.pooled.float(),
            "width": width,
            "height": height,
            "num_inference_steps": denoising.num_inference_steps,
            "guidance_scale": denoising.guidance_scale,
            "generator": denoising.generator,
            "output_type": "latent",
            "callback_on_step_end": after_step,
        }
        pipeline = self.pipeline
        pipeline.scheduler = denoising.scheduler
        if denoising.strength == 1:
            options["latents"] = pack(denoising.start)
        else:
            pipeline = self._make_draft_pipeline(denoising.scheduler)
            drawn = int(denoising.num_inference_steps * denoising.strength)
            # diffusers rounds the steps that it leaves out; this is the middle of what gives `drawn` steps.
            options["strength"] = (drawn - 0.5) / denoising.num_inference_steps
            options["image"] = denoising.start
        with torch.inference_mode(), _following(self.pipeline.transformer, guidances):
            return unpack(pipeline(**options).images, rows, columns)

    def decode(self, latents: torch.Tensor, *, wraps: bool = False) -> NDArray[np.uint8]:  # noqa: ARG002  it cannot
        """Decode latents (1, 16, h/8, w/8) to pixels (h, w, 3), uint8 sRGB; see `decode_latents`."""
        return decode_latents(self.pipeline.vae, latents)

    def _make_draft_pipeline(self, scheduler: Scheduler) -> Flux1Pipeline:
        from diffusers import FluxImg2ImgPipeline

        made = FluxImg2ImgPipeline(**(self.pipeline.components | {"scheduler": scheduler}))
        pipeline = cast("Flux1Pipeline", made)  # diffusers hides its types
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def _t5_tokens(self) -> int:
        return T5_TOKENS if self.pipeline.transformer.config["guidance_embeds"] else T5_TOKENS_SCHNELL

    def _encode_t5(self, text: str) -> torch.Tensor:
        ids = self._tokenize(self.pipeline.tokenizer_2, text, self._t5_tokens).input_ids
        encoder = self.pipeline.text_encoder_2
        states: torch.Tensor = encoder(ids.to(encoder.device), output_hidden_states=False)[0]
        return states

    def _encode_clip(self, text: str) -> torch.Tensor:
        ids = self._tokenize(self.pipeline.tokenizer, text, CLIP_TOKENS).input_ids
        encoder = self.pipeline.text_encoder
        pooled: torch.Tensor = encoder(ids.to(encoder.device), output_hidden_states=False).pooler_output
        return pooled

    def _weigh_tokens(self, words: Sequence[Fragment]) -> torch.Tensor:
        """Return the weight of each of T5's tokens (1, tokens, 1): that of the fragment in which it ends."""
        ends = torch.tensor([len(word.text) for word in words]).cumsum(0)
        text = "".join(word.text for word in words)
        found = self._tokenize(self.pipeline.tokenizer_2, text, self._t5_tokens, return_offsets_mapping=True)
        begin, end = found.offset_mapping[0].unbind(-1)
        owners = torch.bucketize(end - 1, ends, right=True).clamp_(max=len(words) - 1)
        weights = torch.tensor([word.weight for word in words])[owners]
        weights[begin == end] = 1  # the end of the text and what fills up
        return weights[None, :, None]

    def _tokenize(self, tokenizer: PreTrainedTokenizerBase, text: str, tokens: int, **options: bool) -> Any:
        return tokenizer(
            text,
            padding="max_length",
            max_length=tokens,
            truncation=True,
            return_tensors="pt",
            verbose=False,
            **options,
        )


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (n, channels, h, w) as the transformer takes them: (n, h/2 * w/2, 4 channels)."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(packed: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return packed latents as (n, channels, rows, columns)."""
    return F.pixel_shuffle(packed.transpose(1, 2).unflatten(2, (rows // PATCH, columns // PATCH)), PATCH)


@contextmanager
def _following(transformer: FluxTransformer2DModel, guidances: Sequence[Guidance]) -> Iterator[None]:
    """Let the transformer see another text in the steps after a change of the prompt."""
    steps = iter(range(guidances[-1].last_step))

    def put_text(
        _: torch.nn.Module, args: tuple[object, ...], inputs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        done = next(steps)
        text = next(guidance.prompt for guidance in guidances if done < guidance.last_step)
        assert text.pooled is not None
        seen = {"encoder_hidden_states": text.states.float(), "pooled_projections": text.pooled.float()}
        return args, inputs | seen

    if len(guidances) == 1:
        yield
        return
    # Before the hook that changes the dtype.
    hook = transformer.register_forward_pre_hook(put_text, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _take_and_give_fp32(transformer: FluxTransformer2DModel) -> None:
    """Make a transformer of lower precision take its inputs and return its result in fp32.

    So the latents and the scheduler's sums stay in fp32.
    """
    dtype: torch.dtype = transformer.dtype

    def take(
        _: torch.nn.Module, args: tuple[object, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, Any]]:
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
        return args, inputs | {name: inputs[name].to(dtype) for name in names}

    def give(_: torch.nn.Module, __: object, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (output[0].float(),)

    transformer.register_forward_pre_hook(take, with_kwargs=True)
    transformer.register_forward_hook(give)


def _load_base(base: Path, dtype: torch.dtype, *, vae: Path | None) -> Flux1Pipeline:
    """Load a Flux.1 folder in diffusers' layout, with its own VAE, or with that of another folder.

    Raises:
        ModelFileError: it cannot be loaded as a Flux.1 pipeline.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        parts = {} if vae is None else {"vae": AutoencoderKL.from_pretrained(vae, **options)}
        pipeline: Flux1Pipeline = FluxPipeline.from_pretrained(base, **parts, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = shorten(error)
        raise ModelFileError(
            "weights-not-loadable", file=str(base), part="Flux.1 pipeline", reason=reason
        ) from error
    return pipeline
