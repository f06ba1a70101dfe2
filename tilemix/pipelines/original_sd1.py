"""SD 1.x in one file, as it was published and as the web UIs keep it -> diffusers' networks.

The file's own names are those of Stable Diffusion's code: `model.diffusion_model.`, `cond_stage_model.`,
`first_stage_model.`. Beside it there may be its configuration `NAME.yaml` and another VAE, `NAME.vae.safetensors`. What
is loaded is what the manifest lists. A tokenizer is not among these files: CLIP's is the same in every SD 1 and
SDXL, and comes with the miniature.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tilemix.adapters.merging import BaseWeights
from tilemix.adapters.tensor_file import TensorFile
from tilemix.errors import LIST_SEPARATOR, ManifestError, ModelFileError
from tilemix.modelfile.base_models import tell_base
from tilemix.modelfile.kinds import recognize
from tilemix.modelfile.ldm_config import read_ldm_config
from tilemix.pipelines.parts import Network, shorten
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.modeling_clip import CLIPTextModel

    from tilemix.weights import LocalModel

logger = logging.getLogger(__name__)

PUBLISHED = ROOT / "tilemix" / "data" / "sd1"  # the configurations of the published models
TOKENIZER = ROOT / "weights" / "miniature" / "tokenizer"
TEXT = "cond_stage_model.transformer."
TEXT_MODEL = "text_model."  # left out in some files of 2022
HEAD_WIDTH = 64  # of CLIP's attention
# A file with the marks of two families was merged or renamed by mistake.
FAMILY_MARKS = {
    "SD 1": "cond_stage_model.transformer.",
    "SD 2": "cond_stage_model.model.",
    "SDXL": "conditioner.embedders.",
    "SD 3": "model.diffusion_model.joint_blocks.",
    "Flux.1": "model.diffusion_model.double_blocks.",
}


@dataclass(frozen=True, slots=True)
class Original:
    """A checkpoint in one file and what its manifest lists beside it."""

    path: Path
    config: Path | None  # NAME.yaml
    vae: Path | None  # NAME.vae.safetensors, or the manifest's own


def find_original(model: LocalModel) -> Original | None:
    """Return a model's checkpoint; None where its base is a folder in diffusers' layout.

    Raises:
        ManifestError: the base lists several checkpoints.
    """
    names = [file.path for file in model.manifest.base.files if "/" not in file.path]
    if "model_index.json" in names:
        return None
    checkpoints = [n for n in names if n.endswith(".safetensors") and not n.endswith(".vae.safetensors")]
    if len(checkpoints) != 1:
        file = f"{model.name}.model.json"
        raise ManifestError("manifest-wrong-checkpoints", file=file, count=len(checkpoints))
    path = model.base / checkpoints[0]
    beside = {end: path.with_suffix(end) for end in (".yaml", ".vae.safetensors", ".vae.pt")}
    listed = {end: place for end, place in beside.items() if place.name in names}
    for end, place in beside.items():
        if end not in listed and place.is_file():
            logger.warning(
                "%s lies beside the checkpoint and is not used: the manifest does not list it", place.name
            )
    vae = listed.get(".vae.safetensors")
    return Original(path, listed.get(".yaml"), vae or _find_own_vae(model))


def _find_own_vae(model: LocalModel) -> Path | None:
    """Return the VAE that the manifest names: a file, or a folder in diffusers' layout."""
    if model.manifest.vae is None or model.vae is None:
        return None
    names = [file.path for file in model.manifest.vae.files]
    return model.vae if "config.json" in names or len(names) != 1 else model.vae / names[0]


def load_networks(
    original: Original, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype
) -> dict[str, torch.nn.Module]:
    """Return the UNet, the VAE and the text encoder, by the names of a pipeline's arguments.

    Raises:
        ModelFileError: the file is another family's, or two families', or not whole.
    """
    file = TensorFile(original.path)
    check_family(original.path.name, file)
    tensors = {name: file.get_tensor(name) for name in file.header.tensors}
    configs = read_configs(original)
    try:
        return {
            "unet": _load_unet(original.path, configs["unet"], tensors, device, dtype),
            "vae": load_vae(original.vae, configs["vae"], tensors, original.path, device, dtype),
            "text_encoder": _load_text_encoder(original.path, tensors, device, text_dtype),
        }
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        part, reason = "Stable Diffusion 1 checkpoint", shorten(error)
        raise ModelFileError(
            "weights-not-loadable", file=str(original.path), part=part, reason=reason
        ) from error


def check_family(name: str, file: TensorFile) -> None:
    """Refuse a checkpoint of another family, or of two at once.

    Raises:
        ModelFileError: it is one.
    """
    found = [
        base for base, mark in FAMILY_MARKS.items() if any(n.startswith(mark) for n in file.header.tensors)
    ]
    if len(found) > 1:
        raise ModelFileError("checkpoint-two-families", file=name, bases=LIST_SEPARATOR.join(found))
    base = tell_base(file.header, recognize(file.header))
    if base.name != "SD 1":
        raise ModelFileError("checkpoint-other-base", file=name, base=base.name or "-", expected="SD 1")
    if base.variant is not None:
        raise ModelFileError("checkpoint-variant", file=name, variant=base.variant)


def read_configs(original: Original) -> dict[str, dict[str, Any]]:
    """Return the configurations of "unet", "vae" and "scheduler": the published ones, or those that the yaml gives.

    Raises:
        ModelFileError: the yaml cannot be used.
    """
    configs: dict[str, dict[str, Any]] = {
        name: json.loads(next((PUBLISHED / name).glob("*.json")).read_text("utf-8"))
        for name in ("unet", "vae", "scheduler")
    }
    if original.config is None:
        return configs
    from diffusers.loaders.single_file_utils import (
        create_unet_diffusers_config_from_ldm,
        create_vae_diffusers_config_from_ldm,
    )

    params = read_ldm_config(original.config)
    given = {"model": {"params": params}}
    try:
        configs["unet"] |= create_unet_diffusers_config_from_ldm(given, {})
        configs["vae"] |= create_vae_diffusers_config_from_ldm(given, {})
        betas = (
            ("linear_start", "beta_start"),
            ("linear_end", "beta_end"),
            ("timesteps", "num_train_timesteps"),
        )
        configs["scheduler"] |= {ours: params[theirs] for theirs, ours in betas if theirs in params}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {shorten(error)}"
        raise ModelFileError("checkpoint-yaml", file=original.config.name, reason=reason) from error
    if params.get("parameterization") == "v":
        configs["scheduler"]["prediction_type"] = "v_prediction"
    return configs


def locate_original(original: Original) -> dict[str, BaseWeights]:
    """Return where in the file the pristine weights of the UNet and the text encoder are."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = list(TensorFile(original.path).header.tensors)
    # The converter moves values without looking at them: with names for tensors it gives the table of names.
    unet = convert_ldm_unet_checkpoint(dict(zip(names, names, strict=True)), read_configs(original)["unet"])
    text = _name_text_tensors(names)
    return {
        component: BaseWeights(
            (original.path,),
            {
                ours.removesuffix(".weight"): theirs
                for ours, theirs in table.items()
                if ours.endswith(".weight")
            },
        )
        for component, table in (("unet", unet), ("text_encoder", text))
    }


def load_vae(
    path: Path | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> AutoencoderKL:
    """Load a VAE: a folder in diffusers' layout, a file in the original one, or the checkpoint's own (None).

    Raises:
        ModelFileError: its tensors do not fit.
        OSError, ValueError: diffusers refuses it.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if path is not None and path.is_dir():
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(
            path, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return vae
    if path is not None:
        file = TensorFile(path)
        tensors = {name: file.get_tensor(name) for name in file.header.tensors}
    with torch.device("meta"):
        made: AutoencoderKL = AutoencoderKL.from_config(dict(config))
    converted = convert_ldm_vae_checkpoint(dict(tensors), made.config)
    return _fill(made, path or checkpoint, converted, device, dtype)


def _load_unet(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> UNet2DConditionModel:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(dict(config))
    return _fill(unet, path, convert_ldm_unet_checkpoint(dict(tensors), unet.config), device, dtype)


def _load_text_encoder(
    path: Path, tensors: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> CLIPTextModel:
    """Load CLIP's text encoder; its sizes are those of the tensors."""
    from accelerate import init_empty_weights
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    found = {ours: tensors[theirs] for ours, theirs in _name_text_tensors(tensors).items()}
    vocabulary, width = found["embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig.from_json_file(PUBLISHED / "text_encoder" / "config.json")
    config.vocab_size, config.hidden_size = vocabulary, width
    config.intermediate_size = found["encoder.layers.0.mlp.fc1.weight"].shape[0]
    config.num_hidden_layers = sum(name.endswith(".mlp.fc1.weight") for name in found)
    config.num_attention_heads = max(width // HEAD_WIDTH, 1)
    with init_empty_weights(include_buffers=False):
        encoder: CLIPTextModel = CLIPTextModel(config)
    if hasattr(encoder, "text_model"):  # before transformers 5.6
        found = {TEXT_MODEL + name: tensor for name, tensor in found.items()}
    return _fill(encoder, path, found, device, dtype)


def _name_text_tensors(names: Mapping[str, object] | list[str]) -> dict[str, str]:
    """Return the names of the text encoder's tensors in the file, by those in the encoder."""
    return {
        name.removeprefix(TEXT).removeprefix(TEXT_MODEL): name
        for name in names
        if name.startswith(TEXT) and not name.endswith("position_ids")
    }


def _fill(
    network: Network,
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Network:
    """Give a network copies of the tensors, which it must have one for one.

    Raises:
        ModelFileError: one is missing, too many, or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            has, needs = (str(shapes.get(name, "missing")) for shapes in (found, expected))
            raise ModelFileError(
                "weights-wrong-tensor", file=str(path), tensor=name[:80], found=has, expected=needs
            )
    # Copies, because the file's pages are its own: somebody may replace it.
    state = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(state, assign=True)
    network.eval()
    return network
