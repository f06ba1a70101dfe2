"""Model manifest -> a pipeline that is ready to draw: on its device, in its dtype, adapters in place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilemix.adapters import EmbeddingFile, LoraMerger, TokenInstaller, check_fit, read_embedding
from tilemix.errors import AdapterError, ManifestError
from tilemix.modelfile.spellings import COMPONENTS, ENCODERS
from tilemix.pipelines.attention import TextKeys, speed_attention
from tilemix.pipelines.parts import lay_channels_last, move
from tilemix.pipelines.schedulers import make_scheduler
from tilemix.pipelines.sdxl import (
    load_base,
    load_unet,
    quiet_libraries,
    take_and_give_fp32,
)
from tilemix.pipelines.speed import Speed, choose_dtype
from tilemix.weights import LocalModel

if TYPE_CHECKING:
    from tilemix.pipelines.parts import Scheduler, SdxlPipeline

logger = logging.getLogger(__name__)

TILE_PIXELS = 1024  # the VAE decodes up to this side length in one piece


@dataclass(slots=True, eq=False)
class ReadyPipeline:
    """A loaded model, and its state: what `loras` has merged, which tokens are installed, `pipeline.scheduler`."""

    pipeline: SdxlPipeline
    model: LocalModel
    device: torch.device
    dtype: torch.dtype  # of the UNet
    speed: Speed
    scheduler_config: Mapping[str, object]  # the base's own, never changed
    loras: LoraMerger
    tokens: TokenInstaller
    text_keys: TextKeys

    @property
    def lora_scales(self) -> dict[str, float]:
        """The scale that the manifest gives each LoRA, by its file."""
        return {
            adapter.file: 1.0 if adapter.scale is None else adapter.scale
            for adapter in self.model.manifest.adapters
            if adapter.kind == "lora"
        }

    def make_scheduler(self) -> Scheduler:
        """Make the manifest's scheduler anew from the base's own configuration."""
        scheduler = self.model.manifest.scheduler
        return make_scheduler(scheduler.name, self.scheduler_config, scheduler.config)


def choose_device(speed: Speed = Speed.EXACT) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype: CUDA in fp16 if there is one, else the CPU in the dtype of `speed`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, choose_dtype(device, speed)


def load_pipeline(
    model: LocalModel, device: torch.device, dtype: torch.dtype, *, speed: Speed = Speed.EXACT
) -> ReadyPipeline:
    """Load the model's files, put its tokens into the vocabulary and its LoRAs into the weights.

    `dtype` is the UNet's and the VAE's. The text encoders have it on a GPU, and fp32 on a CPU, where they
    are a hundredth of the work. The UNet takes and returns fp32 in any case.

    Raises:
        ModelFileError: a file cannot be loaded as what it should be.
        AdapterError: an adapter cannot be loaded completely.
        ManifestError: the base's folder or the scheduler's name does not fit.
    """
    with quiet_libraries():
        variant = "fp16" if any(".fp16." in file.path for file in model.manifest.base.files) else None
        encoders = torch.float32 if device.type == "cpu" else dtype
        dtypes = dict.fromkeys(ENCODERS, encoders) | {"default": dtype}
        unet = load_unet(model.base / "unet", _find_tensors(model, "unet"), device, dtype)
        pipeline = load_base(model.base, dtypes, vae=model.vae, unet=unet, variant=variant)
    return prepare_pipeline(pipeline, model, device, dtype, speed=speed)


def prepare_pipeline(
    pipeline: SdxlPipeline,
    model: LocalModel,
    device: torch.device,
    dtype: torch.dtype,
    *,
    speed: Speed = Speed.EXACT,
) -> ReadyPipeline:
    """Make a pipeline that holds the model's weights ready to draw; its networks are changed in place.

    `dtype` is the one that its UNet and its VAE have. The model's files of the merged components are opened,
    because merging reads the base's weights from them.

    Raises:
        AdapterError, ManifestError: see `load_pipeline`.
    """
    if dtype == torch.float16 and pipeline.vae.config["force_upcast"]:
        move(pipeline.vae, dtype=torch.bfloat16)  # this VAE overflows in fp16; bf16 has the range of fp32
    for component in (pipeline.unet, pipeline.vae):
        # Convolutions read all channels of a pixel: in this layout the VAE takes 0.8 of the time, in bf16 half.
        lay_channels_last(move(component, device))
    pipeline.to(device)
    if dtype != torch.float32:
        take_and_give_fp32(pipeline.unet)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    # By default the tile size is the VAE's sample_size, 512 for the fp16-fix VAE. A picture of 1024 pixels would
    # be decoded in tiles, which differ from the whole, because GroupNorm sees less of it.
    pipeline.vae.tile_sample_min_size = TILE_PIXELS
    pipeline.vae.tile_latent_min_size = TILE_PIXELS // 8
    components = {name: getattr(pipeline, name) for name in COMPONENTS}
    ready = ReadyPipeline(
        pipeline=pipeline,
        model=model,
        device=device,
        dtype=dtype,
        speed=speed,
        scheduler_config=dict(pipeline.scheduler.config),
        loras=LoraMerger(components, {name: _find_tensors(model, name) for name in COMPONENTS}),
        tokens=TokenInstaller(pipeline),
        text_keys=speed_attention(pipeline.unet),
    )
    ready.make_scheduler()  # a wrong name or setting fails here, not in the first prediction
    _load_adapters(ready)
    return ready


def _find_tensors(model: LocalModel, component: str) -> Path:
    """Return the one safetensors file of a component of the base."""
    paths = [
        file.path
        for file in model.manifest.base.files
        if file.path.startswith(f"{component}/") and file.path.endswith(".safetensors")
    ]
    if len(paths) != 1:
        file = f"{model.name}.model.json"
        raise ManifestError("manifest-wrong-tensor-files", file=file, count=len(paths), component=component)
    return model.base / paths[0]


def _load_adapters(ready: ReadyPipeline) -> None:
    embeddings: list[tuple[EmbeddingFile, tuple[str, ...]]] = []

    def add_tokens(file: EmbeddingFile, named: tuple[str, ...]) -> None:
        tokens = named or file.tokens
        check_fit(file, ready.tokens.widths, len(tokens))
        embeddings.append((file, tokens))
        logger.info("Loaded embedding: %s (tokens=%s)", file.name, "".join(tokens))

    for adapter, path in zip(ready.model.manifest.adapters, ready.model.adapters, strict=True):
        if adapter.kind == "embedding":
            count = len(adapter.tokens) or None
            add_tokens(read_embedding(path, ready.tokens.widths, token_count=count), adapter.tokens)
            continue
        lora = ready.loras.load(adapter.file, path)
        logger.info("Loaded LoRA: %s (scale=%g)", path.name, 1.0 if adapter.scale is None else adapter.scale)
        if lora.embedding is not None:
            add_tokens(lora.embedding, adapter.tokens)
        elif adapter.tokens:
            raise AdapterError("lora-without-embeddings", file=path.name)
    ready.tokens.install(embeddings)
    ready.loras.apply(ready.lora_scales)
