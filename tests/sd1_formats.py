"""Every published format of an adapter for SD 1.x; see tests/adapter_formats.py, which prints the table."""

import torch

from tests.adapter_crafts import A_B, Format, as_kohya, bare, mixed, pairs, raw, zeros

CONVERT = "expected safetensors; `tilemix weights convert` makes one"
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
UP = "unet.up_blocks.1.attentions.2.transformer_blocks.0"
TEXT = ("text_encoder.encoder.layers.1.self_attn.q_proj", "text_encoder.encoder.layers.0.mlp.fc2")
LINEAR = (f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn2.to_k", f"{UP}.ff.net.0.proj")
CONVOLUTIONS = (
    "unet.down_blocks.0.resnets.1.conv1",
    "unet.down_blocks.0.downsamplers.0.conv",
    "unet.conv_in",
)
# Written by hand after the published checkpoint: two layers a block, and a resampling is a block of its own.
ORIGINAL = {
    f"{ATTENTION}.attn1.to_q": "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    f"{ATTENTION}.attn2.to_k": "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k",
    f"{UP}.ff.net.0.proj": "lora_unet_output_blocks_5_1_transformer_blocks_0_ff_net_0_proj",
    "unet.mid_block.attentions.0.proj_in": "lora_unet_middle_block_1_proj_in",
    "unet.down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.conv_in": "lora_unet_input_blocks_0_0",
}


def as_kohya_te(module: str) -> str:
    """The names of SD 1's trainer, which knows one text encoder."""
    return as_kohya(module).replace("lora_te1_", "lora_te_")


SD1_FORMATS = (
    Format(
        "kohya, diffusers' block names",
        "lora_unet_down_blocks_0_attentions_0_..._to_q.lora_down.weight, lora_te_text_model_...",
        pairs(as_kohya_te, (*LINEAR, *TEXT), alpha=lambda _: 2.0),
    ),
    Format(
        "kohya, the original block names",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        pairs(ORIGINAL.get, tuple(ORIGINAL), alpha=mixed),
    ),
    Format(
        "kohya LoCon",
        "lora_unet_down_blocks_0_resnets_1_conv1.lora_down.weight (4-D)",
        pairs(as_kohya_te, CONVOLUTIONS, alpha=lambda _: 1.0),
    ),
    Format(
        "diffusers",
        "unet.down_blocks.0....to_q.lora_A.weight, text_encoder.text_model....lora_A.weight",
        pairs(
            lambda module: module.replace("encoder.encoder", "encoder.text_model.encoder"),
            (*LINEAR, *TEXT),
            suffixes=A_B,
        ),
    ),
    Format(
        "diffusers, the UNet alone",
        "down_blocks.0....to_q.lora_A.weight",
        pairs(bare, LINEAR, suffixes=A_B),
    ),
    Format(
        "SDXL",
        "lora_unet_down_blocks_1_..._attn2_to_k.lora_down.weight (4, 2048)",
        zeros(
            **{
                f"{as_kohya(LINEAR[1])}.lora_down.weight": (4, 2048),
                f"{as_kohya(LINEAR[1])}.lora_up.weight": (640, 4),
            }
        ),
        "x.safetensors: made for SDXL, 2048 wide; this model is 64 wide",
    ),
    Format(
        "a hypernetwork in place of a LoRA",
        "768.0.linear.0.weight",
        zeros(**{"768.0.linear.0.weight": (1536, 768)}),
        "x.safetensors: hypernetwork is not supported; SD 1's LoRA, LoHa, LoKr, DoRA are",
    ),
    Format(
        "pickle (.pt, .ckpt)",
        "a zip archive or a pickle, whatever its name",
        raw(b"\x80\x02}q\x00X\x05\x00\x00\x00"),
        f"x.safetensors: a pickle, {CONVERT}",
    ),
)
SD1_EMBEDDINGS = (
    Format(
        "SD 1, kohya, and converted from a web UI's .pt",
        "emb_params (n, 768)",
        lambda bench: (bench.write({"emb_params": torch.randn(2, 64)}), None),
    ),
    Format(
        "SDXL, on SD 1",
        "clip_l (2, 768), clip_g (2, 1280)",
        zeros(clip_l=(2, 768), clip_g=(2, 1280)),
        "x.safetensors: made for SDXL; this model is SD 1",
    ),
    Format(
        "SD 2, on SD 1",
        "emb_params (n, 1024)",
        zeros(emb_params=(2, 1024)),
        "x.safetensors: made for another model, 1024 wide; this model's text encoder is 64 wide",
    ),
)
