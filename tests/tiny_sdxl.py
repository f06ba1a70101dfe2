"""A random SDXL with the real block layout and the real key names, small enough for a test.

Two layers a block and a transformer of depth 2 give kohya's real block numbers (input_blocks_4_1,
output_blocks_5_2); the widths are small. The tokenizers are the miniature's, the real CLIP ones.
"""

import json
import shutil
from pathlib import Path

import msgspec
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tilemix.system.project import ROOT
from tilemix.weights import load_manifest

MINIATURE = ROOT / "weights" / "miniature"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
TEMPLATE = {
    "name": "tiny",
    "text": "ohwx_rubber_tile <s0><s1>, $prompt, photorealistic rubber tile",
    "trigger_words": ["ohwx_rubber_tile"],
    "placeholder_tokens": ["<s0>", "<s1>"],
    "negative_prompt": "blurry",
}


def build_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """Build the pipeline with random weights of the kind SDXL has: eos_token_id 2, zeros for no negative."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": 49408,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    }
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=64, projection_dim=32, hidden_act="quick_gelu", **text
        )
    )
    encoder_2 = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=48, intermediate_size=96, projection_dim=48, hidden_act="gelu", eos_token_id=2, **text
        )
    )
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=80,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
        use_linear_projection=True,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,  # as the fp16-fix VAE has it
        scaling_factor=0.13025,
        force_upcast=False,
    )
    scheduler_config = json.loads(
        (ROOT / "tilemix" / "data" / "sdxl" / "scheduler" / "scheduler_config.json").read_text()
    )
    from diffusers import EulerDiscreteScheduler

    return StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        text_encoder_2=encoder_2.eval(),
        tokenizer=CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer_2"),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler.from_config(scheduler_config),
        add_watermarker=False,
    )


def write_project(root: Path, *, adapters: list[dict[str, object]] = ()) -> Path:
    """Write a project folder with the packaged model `tiny` (fp16 files) and return it."""
    folder = root / "weights" / "tiny"
    build_pipeline().save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / name)
        shutil.copytree(MINIATURE / name, folder / name)
    for path in folder.rglob("*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    files = [{"path": str(path.relative_to(folder))} for path in sorted(folder.rglob("*")) if path.is_file()]
    write_manifest(root, adapters=list(adapters), base={"folder": "tiny", "files": files})
    (root / "prompt_templates").mkdir()
    (root / "prompt_templates" / "tiny.json").write_text(json.dumps(TEMPLATE))
    return root


def base_of(project: Path) -> dict[str, object]:
    """The base of a project's model `tiny`, as its manifest writes it."""
    base = load_manifest("tiny", project).base
    return {"folder": base.folder, "files": [{"path": file.path} for file in base.files]}


def share_model(
    root: Path, project: Path, *, template: dict[str, object] = TEMPLATE, **changes: object
) -> Path:
    """Write a project folder that shares the files of another one's `tiny`; return it. `changes`: of the manifest."""
    (root / "weights").mkdir()
    (root / "weights" / "tiny").symlink_to(project / "weights" / "tiny")
    (root / "prompt_templates").mkdir()
    (root / "prompt_templates" / "tiny.json").write_text(json.dumps(template))
    write_manifest(root, **({"base": base_of(project)} | changes))
    return root


def write_lora(root: Path) -> dict[str, object]:
    """Write a LoRA of one module of `tiny`; return the manifest's entry."""
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(3)
    halves = {
        "lora_A": 0.3 * torch.randn(4, 32, generator=generator),
        "lora_B": 0.3 * torch.randn(32, 4, generator=generator),
    }
    tensors = {f"{module}.{half}.weight": tensor for half, tensor in halves.items()}
    save_file(tensors, root / "weights" / "lora.safetensors")
    return {"file": "lora.safetensors", "kind": "lora", "scale": 0.7}


def write_tokens(root: Path) -> dict[str, object]:
    """Write two tokens for both of `tiny`'s encoders; return the manifest's entry."""
    rows = {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48)}
    save_file(rows, root / "weights" / "tokens.safetensors")
    return {"file": "tokens.safetensors", "kind": "embedding", "tokens": ["<s0>", "<s1>"]}


def write_manifest(root: Path, **changes: object) -> None:
    """Write weights/tiny.model.json: a valid manifest with `changes` over it."""
    manifest = {
        "base": {"folder": "tiny", "files": []},
        "scheduler": {"name": "dpm++_2m_karras"},
        "defaults": {"width": 256, "height": 256, "num_inference_steps": 2, "guidance_scale": 5.0},
        "prompt_template": "tiny",
        "license": "none",
    }
    (root / "weights").mkdir(exist_ok=True)
    (root / "weights" / "tiny.model.json").write_bytes(msgspec.json.encode(manifest | changes))


def random_pairs(
    pipeline: StableDiffusionXLPipeline, modules: list[str], rank: int = 4
) -> dict[str, torch.Tensor]:
    """Return random LoRA halves in fp32 for modules written as "unet.PATH": PATH.down and PATH.up tensors."""
    generator = torch.Generator().manual_seed(1)
    halves = {}
    for module in modules:
        component, _, path = module.partition(".")
        weight = getattr(pipeline, component).get_submodule(path).weight
        kernel = weight.shape[2:]
        ones = (1,) * len(kernel)
        halves[f"{module}.down"] = torch.randn((rank, weight.shape[1], *kernel), generator=generator) * 0.3
        halves[f"{module}.up"] = torch.randn((weight.shape[0], rank, *ones), generator=generator) * 0.3
    return halves
