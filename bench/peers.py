"""The two ways to draw the same picture with plain diffusers that tilemix is measured against.

N, the naive way: the model card's lines, the LoRA loaded and left beside the weights, its scale passed in
`cross_attention_kwargs`, compel, `image.save`. S, the strong recipe of diffusers' "accelerate inference" pages: the
LoRA fused and its wrappers unloaded, channels_last, fused QKV projections, the UNet and the VAE's decoder compiled;
compel and `image.save` as in N.

Nothing of tilemix is imported here, so that a peer's cold start is its own.

Sources: https://huggingface.co/docs/diffusers (SDXL, LoRA, "Accelerate inference"); compel's README.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from compel import CompelForSDXL
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from safetensors.torch import load_file

if TYPE_CHECKING:
    from PIL import Image

ADAPTER = "tile_lora"


@dataclass(frozen=True, slots=True)
class PeerFiles:
    """The files of a model."""

    base: Path  # a folder in diffusers' layout
    lora: Path | None = None
    lora_scale: float = 1.0
    embeddings: Path | None = None  # for both text encoders: clip_l and clip_g
    tokens: tuple[str, ...] = ()  # one for each row
    karras: bool = True  # DPM++ 2M with Karras sigmas, or with the base's own step spacing

    @property
    def only_lora(self) -> Path:
        """The LoRA of a model that has one."""
        assert self.lora is not None
        return self.lora


@dataclass(frozen=True, slots=True)
class Order:
    """One picture to draw; the peers and tilemix get the same."""

    prompt: str  # as sent to the text encoders
    negative_prompt: str
    seed: int
    side: int  # pixels, square
    steps: int
    guidance_scale: float


@dataclass(slots=True)
class Peer:
    """A loaded pipeline of plain diffusers."""

    pipe: StableDiffusionXLPipeline
    compel: CompelForSDXL
    call_options: Mapping[str, object] = field(default_factory=dict)

    def encode(self, order: Order) -> dict[str, torch.Tensor]:
        """Return compel's embeddings of the prompts, by the names of the pipeline's arguments."""
        encoded = self.compel(order.prompt, negative_prompt=order.negative_prompt)
        return {
            "prompt_embeds": encoded.embeds,
            "pooled_prompt_embeds": encoded.pooled_embeds,
            "negative_prompt_embeds": encoded.negative_embeds,
            "negative_pooled_prompt_embeds": encoded.negative_pooled_embeds,
        }

    def draw(
        self,
        order: Order,
        *,
        on_step: Callable[[], None] | None = None,
        latents: torch.Tensor | None = None,
    ) -> Image.Image:
        """Return the picture; `on_step` is called after each denoising step.

        `latents` (1, 4, h/8, w/8) is the noise to begin with, or None for the seed's own.
        """
        options = dict(self.call_options)
        if latents is not None:
            options["latents"] = latents.to(self.pipe.device, self.pipe.unet.dtype)
        if on_step is not None:

            def after_step(_: object, __: int, ___: object, tensors: dict[str, object]) -> dict[str, object]:
                on_step()
                return tensors

            options |= {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": []}
        images: list[Image.Image] = self.pipe(
            **self.encode(order),
            width=order.side,
            height=order.side,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(order.seed),
            **options,
        ).images
        return images[0]

    def predict(self, order: Order) -> bytes:
        """Return the picture as the bytes of a PNG file."""
        return save_png(self.draw(order))


def save_png(image: Image.Image) -> bytes:
    """Return what `image.save("picture.png")` would write."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def load_naive(files: PeerFiles, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Peer:
    """Load peer N."""
    return make_naive(load_base(files, dtype=dtype, device=device), files)


def make_naive(pipe: StableDiffusionXLPipeline, files: PeerFiles) -> Peer:
    """Make peer N of a base with its scheduler and tokens."""
    if files.lora is None:
        return Peer(pipe, CompelForSDXL(pipe))
    load_lora(pipe, files.lora)
    return Peer(pipe, CompelForSDXL(pipe), {"cross_attention_kwargs": {"scale": files.lora_scale}})


def load_strong(
    files: PeerFiles, *, dtype: torch.dtype = torch.float32, device: str = "cpu", compiled: bool = False
) -> Peer:
    """Load peer S. Without `compiled` it stays eager and needs no C++ compiler."""
    peer = make_strong(load_base(files, dtype=dtype, device=device), files)
    if compiled:
        compile_strong(peer)
    return peer


def make_strong(pipe: StableDiffusionXLPipeline, files: PeerFiles) -> Peer:
    """Make peer S, eager, of a base with its scheduler and tokens."""
    if files.lora is not None:
        load_lora(pipe, files.lora)
        fuse_lora(pipe, files.lora_scale)
    pipe.fuse_qkv_projections()
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    return Peer(pipe, CompelForSDXL(pipe))


def compile_strong(peer: Peer) -> None:
    """Compile peer S when it next draws."""
    mode = "max-autotune" if peer.pipe.device.type == "cuda" else None
    peer.pipe.unet = torch.compile(peer.pipe.unet, fullgraph=True, mode=mode)
    peer.pipe.vae.decode = torch.compile(peer.pipe.vae.decode, fullgraph=True, mode=mode)


def compile_regions(peer: Peer) -> None:
    """Compile what peer S repeats, and its VAE's decoder: diffusers' recipe for a compilation of seconds.

    Source: https://huggingface.co/docs/diffusers, "Compiling and offloading", regional compilation.
    """
    peer.pipe.unet.compile_repeated_blocks(fullgraph=True)
    peer.pipe.vae.decoder.forward = torch.compile(peer.pipe.vae.decoder.forward, fullgraph=True)


def load_base(
    files: PeerFiles, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> StableDiffusionXLPipeline:
    """Load the base with its scheduler and tokens, without a LoRA."""
    pipe = StableDiffusionXLPipeline.from_pretrained(
        files.base, dtype=dtype, use_safetensors=True, add_watermarker=False, local_files_only=True
    )
    return dress_base(pipe.to(device), files)


def dress_base(pipe: StableDiffusionXLPipeline, files: PeerFiles) -> StableDiffusionXLPipeline:
    """Put the scheduler and the tokens into a base that is on its device."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="dpmsolver++", use_karras_sigmas=files.karras
    )
    if files.embeddings is not None:
        rows = load_file(files.embeddings)
        for key, encoder, tokenizer in (
            ("clip_l", pipe.text_encoder, pipe.tokenizer),
            ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
        ):
            pipe.load_textual_inversion(
                rows[key],  # type: ignore[arg-type]  # accepts a tensor, too
                token=list(files.tokens),
                text_encoder=encoder,
                tokenizer=tokenizer,
            )
    return pipe


def load_lora(pipe: StableDiffusionXLPipeline, path: Path) -> None:
    """Load a LoRA beside the weights, in PEFT's wrappers."""
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=ADAPTER)


def fuse_lora(pipe: StableDiffusionXLPipeline, scale: float) -> None:
    """Merge the loaded LoRA into the weights and remove its wrappers."""
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()


def quiet() -> None:
    """Turn the libraries' progress bars and notes off for the whole process."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def find_cxx_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would use on a CPU, or None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((found for name in names if (found := shutil.which(name))), None)
