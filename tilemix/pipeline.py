"""Model manifest -> a pipeline that is ready to draw: on its device, in its dtype, adapters in place."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilemix.adapters import LoraMerger, TokenInstaller
from tilemix.embedding_file import EmbeddingFile, check_fit, read_embedding
from tilemix.errors import AdapterError, ManifestError, ModelFileError
from tilemix.schedulers import make_scheduler
from tilemix.weights import LocalModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from diffusers.schedulers import DPMSolverMultistepScheduler

logger = logging.getLogger(__name__)

TILE_PIXELS = 1024  # the VAE decodes up to this side length in one piece
MERGED_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class ReadyPipeline:
    """A loaded model. Its adapters are changed through `set_lora_scale` alone."""

    pipeline: StableDiffusionXLPipeline
    model: LocalModel
    device: torch.device
    dtype: torch.dtype
    scheduler_config: Mapping[str, object]  # the base's own, never changed
    loras: LoraMerger
    tokens: TokenInstaller

    def set_lora_scale(self, lora_scale: float | None) -> dict[str, float]:
        """Merge the manifest's LoRAs at `lora_scale`, or each at its own scale for None.

        Returns the scale of each LoRA by its file.
        """
        own = {
            adapter.file: 1.0 if adapter.scale is None else adapter.scale
            for adapter in self.model.manifest.adapters
            if adapter.kind == "lora"
        }
        scales = own if lora_scale is None else dict.fromkeys(own, lora_scale)
        self.loras.apply(scales)
        return scales

    def make_scheduler(self) -> DPMSolverMultistepScheduler:
        """Make the manifest's scheduler anew from the base's own configuration."""
        scheduler = self.model.manifest.scheduler
        return make_scheduler(scheduler.name, self.scheduler_config, scheduler.config)


def choose_device() -> tuple[torch.device, torch.dtype]:
    """Return where to run and in what: a CUDA device in fp16, else the CPU in fp32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.float16
    return torch.device("cpu"), torch.float32


def load_pipeline(model: LocalModel, device: torch.device, dtype: torch.dtype) -> ReadyPipeline:
    """Load the model's files, put its tokens into the vocabulary and its LoRAs into the weights.

    Raises:
        ModelFileError: a file is not what its name says.
        AdapterError: an adapter cannot be loaded completely.
        ManifestError: the base's folder or the scheduler's name does not fit.
    """
    with quiet_libraries():
        variant = "fp16" if any(".fp16." in file.path for file in model.manifest.base.files) else None
        pipeline = load_base(model.base, dtype, vae=model.vae, variant=variant)
        importlib.import_module(
            "compel"
        )  # slow, and it imports half of diffusers: not in the first prediction
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    # The tile size follows the VAE's sample_size, which is 512 for the fp16-fix VAE: a 1024 px picture
    # would be decoded in tiles, and every tile differs from the whole (GroupNorm sees less of it).
    pipeline.vae.tile_sample_min_size = TILE_PIXELS
    pipeline.vae.tile_latent_min_size = TILE_PIXELS // 8
    components = {name: getattr(pipeline, name) for name in MERGED_COMPONENTS}
    ready = ReadyPipeline(
        pipeline=pipeline,
        model=model,
        device=device,
        dtype=dtype,
        scheduler_config=dict(pipeline.scheduler.config),
        loras=LoraMerger(components, {name: _find_tensors(model, name) for name in MERGED_COMPONENTS}),
        tokens=TokenInstaller(pipeline),
    )
    ready.make_scheduler()  # a wrong name or setting fails here, not in the first prediction
    _load_adapters(ready)
    return ready


def load_base(
    base: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    *,
    vae: Path | None = None,
    variant: str | None = None,
) -> StableDiffusionXLPipeline:
    """Load an SDXL folder in diffusers' layout, with its own VAE or the one in the folder `vae`.

    `dtype` may name one for each component, and "default" for the rest; `variant` is the "fp16" in the
    files' names.

    Raises:
        ModelFileError: it cannot be loaded as an SDXL pipeline.
    """
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline

    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        parts = {} if vae is None else {"vae": AutoencoderKL.from_pretrained(vae, **options)}
        return StableDiffusionXLPipeline.from_pretrained(
            base, variant=variant, add_watermarker=False, **parts, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelFileError(f"{base}: cannot be loaded as an SDXL pipeline: {reason}") from error


def _find_tensors(model: LocalModel, component: str) -> Path:
    """Return the one safetensors file of a component of the base."""
    paths = [
        file.path
        for file in model.manifest.base.files
        if file.path.startswith(f"{component}/") and file.path.endswith(".safetensors")
    ]
    if len(paths) != 1:
        raise ManifestError(
            f"{model.name}.model.json: {len(paths)} safetensors files in {component}/, expected 1"
        )
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
            raise AdapterError(f"{path.name}: a LoRA without embeddings; the manifest names tokens for it")
    ready.tokens.install(embeddings)
    ready.set_lora_scale(None)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the loaders' progress bars and notes about parts that SDXL does not use off the screen."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (transformers.utils.logging, diffusers.utils.logging)
    verbosity = libraries[0].get_verbosity()
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    libraries[0].set_verbosity_error()
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        libraries[0].set_verbosity(verbosity)
        for library in shown:
            library.enable_progress_bar()
