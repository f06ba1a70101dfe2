"""Model manifest -> a pipeline that is ready to draw: on its device, in its dtype, adapters in place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilemix.adapters import EmbeddingFile, LoraMerger, TokenInstaller, check_fit, read_embedding
from tilemix.attention import TextKeys, speed_attention
from tilemix.errors import AdapterError, ManifestError, ModelFileError
from tilemix.modelfile.header import read_header
from tilemix.schedulers import make_scheduler
from tilemix.speed import Speed, choose_dtype
from tilemix.weights import LocalModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
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
    dtype: torch.dtype  # of the UNet
    speed: Speed
    scheduler_config: Mapping[str, object]  # the base's own, never changed
    loras: LoraMerger
    tokens: TokenInstaller
    text_keys: TextKeys

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


def choose_device(speed: Speed = Speed.EXACT) -> tuple[torch.device, torch.dtype]:
    """Return where to run and in what: a CUDA device in fp16, else the CPU in what `speed` says."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, choose_dtype(device, speed)


def import_libraries() -> None:
    """Import what `load_pipeline` and a first prediction need of the libraries, which takes seconds."""
    with quiet_libraries():
        import compel  # noqa: F401
        from diffusers import (  # noqa: F401
            AutoencoderKL,
            DPMSolverMultistepScheduler,
            StableDiffusionXLPipeline,
        )


def load_pipeline(
    model: LocalModel, device: torch.device, dtype: torch.dtype, *, speed: Speed = Speed.EXACT
) -> ReadyPipeline:
    """Load the model's files, put its tokens into the vocabulary and its LoRAs into the weights.

    `dtype` is the UNet's and the VAE's. The text encoders have it on a GPU, and fp32 on a CPU, where they
    are a hundredth of the work. The UNet takes and gives fp32 in any case.

    Raises:
        ModelFileError: a file is not what its name says.
        AdapterError: an adapter cannot be loaded completely.
        ManifestError: the base's folder or the scheduler's name does not fit.
    """
    with quiet_libraries():
        variant = "fp16" if any(".fp16." in file.path for file in model.manifest.base.files) else None
        encoders = torch.float32 if device.type == "cpu" else dtype
        dtypes = {"text_encoder": encoders, "text_encoder_2": encoders, "default": dtype}
        unet = load_unet(model.base / "unet", _find_tensors(model, "unet"), device, dtype)
        pipeline = load_base(model.base, dtypes, vae=model.vae, unet=unet, variant=variant)
    if dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.to(torch.bfloat16)  # this VAE overflows in fp16; bf16 has the range of fp32
    for component in (pipeline.unet, pipeline.vae):
        # Convolutions read all channels of a place: the VAE takes 0.8 of its time, in bf16 half of it.
        component.to(device, memory_format=torch.channels_last)
    pipeline.to(device)
    if dtype != torch.float32:
        _take_and_give_fp32(pipeline.unet)
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
        speed=speed,
        scheduler_config=dict(pipeline.scheduler.config),
        loras=LoraMerger(components, {name: _find_tensors(model, name) for name in MERGED_COMPONENTS}),
        tokens=TokenInstaller(pipeline),
        text_keys=speed_attention(pipeline.unet),
    )
    ready.make_scheduler()  # a wrong name or setting fails here, not in the first prediction
    _load_adapters(ready)
    return ready


def load_base(
    base: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    *,
    vae: Path | None = None,
    unet: UNet2DConditionModel | None = None,
    variant: str | None = None,
) -> StableDiffusionXLPipeline:
    """Load an SDXL folder in diffusers' layout, with its own VAE or the one in the folder `vae`, and so the UNet.

    `dtype` may name one for each component, and "default" for the rest; `variant` is the "fp16" in the
    files' names.

    Raises:
        ModelFileError: it cannot be loaded as an SDXL pipeline.
    """
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline

    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        own = dtype if isinstance(dtype, torch.dtype) else dtype.get("vae", dtype.get("default"))
        parts = {} if vae is None else {"vae": AutoencoderKL.from_pretrained(vae, **options | {"dtype": own})}
        if unet is not None:
            parts["unet"] = unet
        return StableDiffusionXLPipeline.from_pretrained(
            base, variant=variant, add_watermarker=False, **parts, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(f"{base}: cannot be loaded as an SDXL pipeline: {_shorten(error)}") from error


def load_unet(folder: Path, tensors: Path, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load a UNet from the `folder` of its configuration and the file of its `tensors`.

    from_pretrained maps the file into memory, where it stays beside its copies in another dtype until the last
    one is made, and it reads as the pages are touched. Here one tensor after another is read, and converted.

    Raises:
        ModelFileError: the two do not fit together, or one of them cannot be read.
    """
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError, safe_open

    header = read_header(tensors)
    found: dict[str, object] = {name: info.shape for name, info in header.tensors.items()}
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
        expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                has, needs = (shapes.get(name, "missing") for shapes in (found, expected))
                raise ModelFileError(
                    f"{tensors}: tensor {name[:80]}: {has}, in the UNet of config.json: {needs}"
                )
        with safe_open(tensors, framework="pt", backend="pread") as file:
            state = {name: file.get_tensor(name).to(device, dtype) for name in header.tensors}
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelFileError(f"{tensors}: cannot be loaded as an SDXL UNet: {_shorten(error)}") from error
    unet.load_state_dict(state, assign=True)
    return unet.eval()


def _shorten(error: Exception) -> str:
    """Return the beginning of what an error of the libraries says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _take_and_give_fp32(unet: UNet2DConditionModel) -> None:
    """Let a UNet of lower precision take its latents and give its answer in fp32.

    So the pipeline keeps the latents, the guidance and the scheduler's sums in fp32. In bf16 throughout, the
    latents would be rounded to 8 bits in every step.
    """
    dtype: torch.dtype = unet.dtype

    def take(
        _: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, object]]:
        sample, *rest = args
        return (sample.to(dtype), *rest), kwargs

    def give(
        _: torch.nn.Module, __: tuple[torch.Tensor, ...], output: tuple[torch.Tensor]
    ) -> tuple[torch.Tensor]:
        return (output[0].float(),)

    unet.register_forward_pre_hook(take, with_kwargs=True)
    unet.register_forward_hook(give)


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
