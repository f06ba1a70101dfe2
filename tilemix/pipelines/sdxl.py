"""The SDXL family: which libraries it needs, how its folder is read, which components LoRAs change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tilemix.errors import ModelFileError
from tilemix.modelfile.header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from tilemix.pipelines.parts import SdxlPipeline


def import_libraries() -> None:
    """Import the libraries that `load_pipeline` and the first prediction need, which takes seconds."""
    with quiet_libraries():
        import compel  # noqa: F401
        from diffusers import (  # noqa: F401
            AutoencoderKL,
            DPMSolverMultistepScheduler,
            StableDiffusionXLPipeline,
        )


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
        reason = _shorten(error)
        raise ModelFileError("weights-not-sdxl", file=str(base), part="pipeline", reason=reason) from error
    return pipeline


def load_unet(folder: Path, tensors: Path, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load a UNet from the `folder` of its configuration and the file of its `tensors`.

    `from_pretrained` maps the file into memory, where it stays until the last copy in another dtype is made, and
    is read page by page as it is touched. Here each tensor is read and converted before the next.

    Raises:
        ModelFileError: the two do not match, or one of them cannot be read.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors import SafetensorError, safe_open

    header = read_header(tensors)
    found: dict[str, object] = {name: info.shape for name, info in header.tensors.items()}
    try:
        with torch.device("meta"):
            unet: UNet2DConditionModel = UNet2DConditionModel.from_config(
                UNet2DConditionModel.load_config(folder)
            )
        expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                has, needs = (shapes.get(name, "missing") for shapes in (found, expected))
                raise ModelFileError(
                    "weights-wrong-tensor",
                    file=str(tensors),
                    tensor=name[:80],
                    found=str(has),
                    expected=str(needs),
                )
        with safe_open(tensors, framework="pt", backend="pread") as file:
            state = {name: file.get_tensor(name).to(device, dtype) for name in header.tensors}
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = _shorten(error)
        raise ModelFileError("weights-not-sdxl", file=str(tensors), part="UNet", reason=reason) from error
    unet.load_state_dict(state, assign=True)
    unet.eval()
    return unet


def take_and_give_fp32(unet: UNet2DConditionModel) -> None:
    """Make a UNet of lower precision take its latents and return its result in fp32.

    So the pipeline computes latents, guidance and the scheduler's sums in fp32. In bf16, every step would round
    the latents to 8 bits.
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


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the loaders' progress bars, and their notes about parts that SDXL does not use."""
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


def _shorten(error: Exception) -> str:
    """Return the beginning of a library's error message, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
