"""A random SD 1.x with the real block layout, small enough for a test, and its file in the original layout."""

import json
from pathlib import Path

import msgspec
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.tiny_sdxl import MINIATURE
from tilemix.adapters.names import _name_original_blocks
from tilemix.system.project import ROOT

TEMPLATE = {
    "name": "old",
    "text": "$prompt, a photograph",
    "trigger_words": [],
    "placeholder_tokens": [],
    "negative_prompt": "blurry",
}
YAML = """\
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        in_channels: 4
        out_channels: 4
        model_channels: 32
        attention_resolutions: [ 1 ]
        num_res_blocks: 2
        channel_mult: [ 1, 2 ]
        num_heads: 2
        transformer_depth: 1
        context_dim: 64
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        ddconfig: {z_channels: 4, in_channels: 3, out_ch: 3, ch: 32, ch_mult: [ 1, 1, 1, 1 ], num_res_blocks: 1}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""


def build_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Build the pipeline with random weights; its sizes are those of YAML."""
    torch.manual_seed(seed)
    text = json.loads((ROOT / "tilemix/data/sd1/text_encoder/config.json").read_text())
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    scheduler = json.loads((ROOT / "tilemix/data/sd1/scheduler/scheduler_config.json").read_text())
    return StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text | sizes)).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer"),
        unet=UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=64,
        ).eval(),
        scheduler=PNDMScheduler.from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_vae() -> AutoencoderKL:
    """Build a random VAE of YAML's sizes."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=512,
    ).eval()


def name_originals(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Return the weights of a pipeline by the names of Stable Diffusion's own code."""
    return (
        {f"model.diffusion_model.{name}": tensor for name, tensor in _name_unet(pipeline.unet).items()}
        | {f"first_stage_model.{name}": tensor for name, tensor in name_vae(pipeline.vae).items()}
        | {
            f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tensor
            for name, tensor in pipeline.text_encoder.state_dict().items()
        }
    )


def _name_unet(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    names = {"conv_norm_out": "out.0"}
    for ours, original in _name_original_blocks(unet):
        names[ours] = original
        if ours.endswith((".conv1", ".conv2")):
            norm = ours.replace(".conv1", ".norm1").replace(".conv2", ".norm2")
            names[norm] = original.replace("in_layers.2", "in_layers.0").replace(
                "out_layers.3", "out_layers.0"
            )
    renamed = {}
    for name, tensor in unet.state_dict().items():
        start = max((one for one in names if name.startswith(f"{one}.")), key=len)
        renamed[names[start] + name[len(start) :]] = tensor
    return renamed


def name_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Return the weights of a VAE by their original names; its attention was made of convolutions."""
    last = len(vae.config.block_out_channels) - 1
    words = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q",
             "to_k": "k", "to_v": "v"}  # fmt: skip
    renamed = {}
    for name, tensor in vae.state_dict().items():
        parts = name.split(".")
        if "down_blocks" in parts or "up_blocks" in parts:
            side, block, kind, place, *rest = parts[0], int(parts[2]), parts[3], parts[4], *parts[5:]
            way = "down" if "down_blocks" in parts else "up"
            number = block if way == "down" else last - block
            kinds = {"resnets": f"block.{place}", "downsamplers": "downsample", "upsamplers": "upsample"}
            parts = [side, way, str(number), kinds[kind], *rest]
        elif "mid_block" in parts:
            side, _, kind, place, *rest = parts
            middle = "attn_1" if kind == "attentions" else f"block_{int(place) + 1}"
            if kind == "attentions" and rest[0] != "group_norm" and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            parts = [side, "mid", middle, *(["proj_out", rest[-1]] if rest[0] == "to_out" else rest)]
        renamed[".".join(words.get(part, part) for part in parts)] = tensor.contiguous()
    return renamed


def write_project(root: Path, pipeline: StableDiffusionPipeline, **changes: object) -> Path:
    """Write a project whose packaged model `old` is the pipeline in one file, with its yaml beside it."""
    folder = root / "weights" / "old"
    folder.mkdir(parents=True)
    originals = {name: tensor.contiguous() for name, tensor in name_originals(pipeline).items()}
    save_file(originals, folder / "final.safetensors")
    (folder / "final.yaml").write_text(YAML)
    (root / "prompt_templates").mkdir()
    (root / "prompt_templates" / "old.json").write_text(json.dumps(TEMPLATE))
    write_manifest(root, **changes)
    return root


def write_manifest(root: Path, *files: str, **changes: object) -> None:
    """Write weights/old.model.json with `changes` over it; `files` are listed beside the checkpoint."""
    names = ("final.safetensors", "final.yaml", *files)
    manifest = {
        "family": "sd1",
        "base": {"folder": "old", "files": [{"path": name} for name in names]},
        "scheduler": {"name": "ddim"},
        "defaults": {"width": 256, "height": 256, "num_inference_steps": 2, "guidance_scale": 7.0},
        "prompt_template": "old",
        "license": "none",
    }
    (root / "weights" / "old.model.json").write_bytes(msgspec.json.encode(manifest | changes))
