"""A random SDXL with the real UNet's blocks in any width: 70 transformer blocks, 560 LoRA modules.

In Python an operation costs the same however wide its tensors are, so a narrow copy shows on a CPU, within
milliseconds, what calls and launches cost the real model. `write_project` writes it as a packaged model with its
manifest and LoRA, so that tilemix and plain diffusers load the same files.

`sdxl/` beside this holds the published configurations, byte for byte.

Sources: stabilityai/stable-diffusion-xl-base-1.0; for the VAE madebyollin/sdxl-vae-fp16-fix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from tilemix.pipelines.parts import move
from tilemix.system.project import ROOT

MODEL = "topology"
LORA_SCALE = 0.7
LORA_RANK = 16
LORA_SHARE = 0.1  # size of the change, relative to the weight
MINIATURE = ROOT / "weights" / "miniature"  # its tokenizers are SDXL's
CONFIGS = ROOT / "tilemix" / "data" / "sdxl"
NOT_OF_THE_LAYOUT = ("architectures", "model_type", "torch_dtype", "transformers_version")
TEMPLATE = {
    "text": "rubber_tile, $prompt, photorealistic rubber tile, high quality",
    "trigger_words": ["rubber_tile"],
    "placeholder_tokens": [],
    "negative_prompt": "blurry",
}

Part = ModelMixin | PreTrainedModel


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths of a model; layers and blocks are SDXL's unless `depths` says otherwise."""

    widths: tuple[int, int, int] = (32, 64, 128)  # of the UNet's levels
    heads: tuple[int, int, int] = (1, 2, 4)
    depths: tuple[int, int, int] = (1, 2, 10)  # transformer blocks at each level
    vae_widths: tuple[int, ...] = (16, 16, 32, 32)
    text: tuple[int, int, int] = (64, 2, 2)  # width, layers and heads of text_encoder
    text_2: tuple[int, int, int] = (64, 2, 2)


FAITHFUL = Shape()
TINY = Shape(widths=(16, 32, 32), heads=(1, 2, 2), depths=(1, 1, 1), vae_widths=(8, 8, 8, 8))
REAL = Shape(
    widths=(320, 640, 1280),
    heads=(5, 10, 20),
    vae_widths=(128, 256, 512, 512),
    text=(768, 12, 12),
    text_2=(1280, 32, 20),
)


def find_config(name: str) -> Path:
    """Return the file of one of SDXL's published configurations."""
    return CONFIGS / name / ("scheduler_config.json" if name == "scheduler" else "config.json")


def read_config(name: str) -> dict[str, Any]:
    """Return one of SDXL's published configurations: unet, vae, text_encoder, text_encoder_2 or scheduler."""
    config: dict[str, Any] = json.loads(find_config(name).read_text(encoding="utf-8"))
    return config


def build_parts(shape: Shape, *, seed: int = 0) -> dict[str, Part]:
    """Build the four networks with random weights, on the default device in the default dtype."""
    torch.manual_seed(seed)
    vae: AutoencoderKL = AutoencoderKL.from_config(
        read_config("vae")
        | {"block_out_channels": shape.vae_widths, "norm_num_groups": min(32, shape.vae_widths[0])}
    )
    return {
        "unet": build_unet(shape),
        "vae": vae,
        "text_encoder": CLIPTextModel(_text_config("text_encoder", shape.text)),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config("text_encoder_2", shape.text_2)),
    }


def build_unet(shape: Shape) -> UNet2DConditionModel:
    """Build the UNet with random weights, on the default device in the default dtype."""
    config = read_config("unet")
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(
        config
        | {
            "block_out_channels": shape.widths,
            "transformer_layers_per_block": shape.depths,
            "attention_head_dim": shape.heads,  # the number of heads, by an old mistake in diffusers
            "cross_attention_dim": shape.text[0] + shape.text_2[0],
            "projection_class_embeddings_input_dim": shape.text_2[0] + 6 * config["addition_time_embed_dim"],
            "norm_num_groups": min(32, shape.widths[0]),
        }
    )
    return unet


def _text_config(name: str, size: tuple[int, int, int]) -> CLIPTextConfig:
    width, layers, heads = size
    published = {key: value for key, value in read_config(name).items() if key not in NOT_OF_THE_LAYOUT}
    own = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return CLIPTextConfig(**published | own)


def write_project(
    root: Path,
    shape: Shape = FAITHFUL,
    *,
    name: str = MODEL,
    dtype: torch.dtype = torch.float32,
    lora: bool = True,
    side: int = 256,
) -> Path:
    """Write the packaged model `name` into the project folder `root`, which may hold others; return `root`."""
    parts = {part: move(module, dtype=dtype).eval() for part, module in build_parts(shape).items()}
    adapters = []
    if lora:
        file = f"{name}_sdxl_lora.safetensors"
        (root / "weights").mkdir(exist_ok=True)
        save_file(draw_lora(parts["unet"]), root / "weights" / file, metadata={"format": "pt"})
        adapters = [{"file": file, "kind": "lora", "scale": LORA_SCALE}]
    return package(root, parts, TEMPLATE, name=name, adapters=adapters, side=side)


def package(
    root: Path,
    parts: Mapping[str, Part],
    template: Mapping[str, object],
    *,
    name: str = MODEL,
    adapters: Sequence[Mapping[str, object]] = (),
    side: int = 256,
) -> Path:
    """Write the four networks as the packaged model `name` into the project folder `root`; return `root`.

    `adapters` are entries of the manifest; their files are the caller's.
    """
    folder = root / "weights" / name
    for part, module in parts.items():
        module.save_pretrained(folder / part)
    for shared in ("tokenizer", "tokenizer_2"):
        shutil.copytree(MINIATURE / shared, folder / shared)
    (folder / "scheduler").mkdir()
    shutil.copy(find_config("scheduler"), folder / "scheduler")
    shutil.copy(MINIATURE / "model_index.json", folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "base": {"folder": name, "files": [{"path": str(path.relative_to(folder))} for path in files]},
        "scheduler": {"name": "dpm++_2m_karras"},
        "defaults": {"width": side, "height": side, "num_inference_steps": 25, "guidance_scale": 5.0},
        "prompt_template": name,
        "license": "none",
        "adapters": list(adapters),
    }
    (root / "prompt_templates").mkdir(exist_ok=True)
    (root / "weights" / f"{name}.model.json").write_text(json.dumps(manifest), encoding="utf-8")
    (root / "prompt_templates" / f"{name}.json").write_text(
        json.dumps({**template, "name": name}), encoding="utf-8"
    )
    return root


def draw_lora(unet: torch.nn.Module, *, rank: int = LORA_RANK) -> dict[str, torch.Tensor]:
    """Return a random fp32 LoRA for all attention projections of `unet`, with diffusers' names."""
    generator = torch.Generator("cpu").manual_seed(1)
    tensors = {}
    for module in list_attention_modules(unet):
        weight = unet.get_parameter(f"{module}.weight")
        rows, columns = weight.shape
        size = LORA_SHARE * float(weight.detach().float().std()) / rank**0.5
        tensors[f"unet.{module}.lora_A.weight"] = torch.randn(
            (rank, columns), generator=generator, device="cpu"
        )
        tensors[f"unet.{module}.lora_B.weight"] = (
            torch.randn((rows, rank), generator=generator, device="cpu") * size
        )
    return tensors


def list_attention_modules(unet: torch.nn.Module) -> list[str]:
    """Return the path of every query, key, value and output projection: 560 in SDXL."""
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0")
    return [path for path, _ in unet.named_modules() if path.endswith(ends) and "transformer_blocks" in path]
