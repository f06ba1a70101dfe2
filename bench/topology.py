"""A random SDXL with the real UNet's blocks in any width: 70 transformer blocks, 560 LoRA modules.

In Python an operation costs the same however wide its tensors are, so a narrow copy shows on a CPU, within
milliseconds, what calls and launches cost the real model. `write_project` writes it as a packaged model with its
manifest and LoRA, so that tilemix and plain diffusers load the same files.

Source of the layout: unet/config.json of stabilityai/stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

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
MINIATURE = ROOT / "weights" / "miniature"  # its tokenizers and its scheduler are SDXL's


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths of a model; layers and blocks are SDXL's unless `depths` says otherwise."""

    widths: tuple[int, int, int] = (32, 64, 128)  # of the UNet's levels
    heads: tuple[int, int, int] = (1, 2, 4)
    depths: tuple[int, int, int] = (1, 2, 10)  # transformer blocks at each level
    vae_widths: tuple[int, ...] = (16, 16, 32, 32)
    text: tuple[int, int, int] = (64, 2, 2)  # width, layers and heads of text_encoder
    text_2: tuple[int, int, int] = (64, 2, 2)

    @property
    def norm_groups(self) -> int:
        """Groups of the UNet's norms: SDXL's 32, or fewer in a narrower model."""
        return min(32, self.widths[0])


FAITHFUL = Shape()
TINY = Shape(widths=(16, 32, 32), heads=(1, 2, 2), depths=(1, 1, 1), vae_widths=(8, 8, 8, 8))
REAL = Shape(
    widths=(320, 640, 1280),
    heads=(5, 10, 20),
    vae_widths=(128, 256, 512, 512),
    text=(768, 12, 12),
    text_2=(1280, 32, 20),
)


def build_parts(shape: Shape, *, seed: int = 0) -> dict[str, ModelMixin | PreTrainedModel]:
    """Build the four networks with random weights, on the default device in the default dtype."""
    torch.manual_seed(seed)
    vae: AutoencoderKL = AutoencoderKL(
        block_out_channels=shape.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=min(32, shape.vae_widths[0]),
        sample_size=1024,
        scaling_factor=0.13025,
        force_upcast=False,
    )
    return {
        "unet": _build_unet(shape),
        "vae": vae,
        "text_encoder": CLIPTextModel(_text_config(shape.text, act="quick_gelu", eos_token_id=49407)),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config(shape.text_2, act="gelu", eos_token_id=2)),
    }


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
    folder = root / "weights" / name
    parts = build_parts(shape)
    for part, module in parts.items():
        move(module, dtype=dtype).eval()
        module.save_pretrained(folder / part)
    for shared in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(MINIATURE / shared, folder / shared)
    shutil.copy(MINIATURE / "model_index.json", folder)
    adapters = []
    if lora:
        file = f"{name}_sdxl_lora.safetensors"
        tensors = draw_lora(parts["unet"])
        save_file(tensors, root / "weights" / file, metadata={"format": "pt"})
        adapters = [{"file": file, "kind": "lora", "scale": LORA_SCALE}]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "base": {"folder": name, "files": [{"path": str(path.relative_to(folder))} for path in files]},
        "scheduler": {"name": "dpm++_2m_karras"},
        "defaults": {"width": side, "height": side, "num_inference_steps": 25, "guidance_scale": 5.0},
        "prompt_template": name,
        "license": "none",
        "adapters": adapters,
    }
    template = {
        "name": name,
        "text": "rubber_tile, $prompt, photorealistic rubber tile, high quality",
        "trigger_words": ["rubber_tile"],
        "placeholder_tokens": [],
        "negative_prompt": "blurry",
    }
    (root / "prompt_templates").mkdir(exist_ok=True)
    (root / "weights" / f"{name}.model.json").write_text(json.dumps(manifest), encoding="utf-8")
    (root / "prompt_templates" / f"{name}.json").write_text(json.dumps(template), encoding="utf-8")
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


def _build_unet(shape: Shape) -> UNet2DConditionModel:
    pooled_width = shape.text_2[0]
    time_width = 256
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=shape.widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=shape.depths,
        attention_head_dim=shape.heads,  # the number of heads, by an old mistake in diffusers
        cross_attention_dim=shape.text[0] + shape.text_2[0],
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=pooled_width + 6 * time_width,
        use_linear_projection=True,
        norm_num_groups=shape.norm_groups,
    )
    return unet


def _text_config(size: tuple[int, int, int], *, act: str, eos_token_id: int) -> CLIPTextConfig:
    width, layers, heads = size
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        hidden_act=act,
        eos_token_id=eos_token_id,
    )
