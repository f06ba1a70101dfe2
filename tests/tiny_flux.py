"""A random Flux.1 with the real block layout and the real key names, small enough for a test.

CLIP's tokenizer is the miniature's, the real one. T5's is made here: each letter is a token, and so are a few words.
"""

import json
import shutil
import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.tiny_sdxl import MINIATURE, TEMPLATE, write_manifest

WORDS = ("▁red", "▁black", "▁tile", "▁", *string.ascii_lowercase, *string.digits, *"%,.<>_")


def build_pipeline(seed: int = 0, *, guidance: bool = True) -> FluxPipeline:
    """Build the pipeline with random weights; without guidance it is one like FLUX.1 [schnell]."""
    torch.manual_seed(seed)
    clip = CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, hidden_act="quick_gelu", eos_token_id=2,
    )  # fmt: skip
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((word, -1.0 - len(word)) for word in WORDS),
    ]
    t5 = T5Config(
        vocab_size=128, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), guidance_embeds=guidance,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance, base_shift=0.5, max_shift=1.15
        ),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer"),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=T5TokenizerFast(vocab=vocabulary, extra_ids=0),
        transformer=transformer.eval(),
    )


def write_project(root: Path, *, guidance: bool = True) -> Path:
    """Write a project folder with the packaged model `tiny`, whose transformer is in two files, and return it."""
    folder = root / "weights" / "tiny"
    build_pipeline(guidance=guidance).save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(MINIATURE / "tokenizer", folder / "tokenizer")
    _split(folder / "transformer")
    files = [{"path": str(path.relative_to(folder))} for path in sorted(folder.rglob("*")) if path.is_file()]
    write_manifest(
        root,
        family="flux1",
        base={"folder": "tiny", "files": files},
        scheduler={"name": "euler"},
        defaults={"width": 256, "height": 256, "num_inference_steps": 2, "guidance_scale": 3.5},
    )
    (root / "prompt_templates").mkdir()
    (root / "prompt_templates" / "tiny.json").write_text(json.dumps(TEMPLATE | {"placeholder_tokens": []}))
    return root


def _split(folder: Path) -> None:
    """Store a network in two files with an index, as the published one is in three."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
