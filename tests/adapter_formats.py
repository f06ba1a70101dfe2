"""Every published format of a LoRA or an embedding: how a file of it looks, and what becomes of it.

This is the one list. The tests craft a file of each format from it, and the tables in docs/adapters.md are
printed from it: `python -m tests.adapter_formats`.
"""

import math

import torch

from tests.adapter_crafts import (
    A_B,
    ATTENTION,
    COMFY_MODULES,
    CROSS,
    LINEAR,
    MODULES,
    ORIGINAL_NAMES,
    TEXT,
    TEXT_LINEAR,
    UNET_MODULES,
    Format,
    as_bare_original,
    as_comfy,
    as_kohya,
    as_processor,
    bare,
    bundle,
    dora,
    embeddings,
    flat_columns,
    flat_embeddings,
    half_pairs,
    header_alphas,
    loha,
    loha_kernel,
    lokr,
    lokr_convolution,
    lokr_whole,
    mixed,
    named_embeddings,
    own_file,
    pairs,
    peft_folder,
    raw,
    training_tar,
    zeros,
)
from tests.flux_formats import FLUX_FORMATS
from tests.sd1_formats import SD1_EMBEDDINGS, SD1_FORMATS

CONVERT = "expected safetensors; `tilemix weights convert` makes one"

Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
NOT_SUPPORTED = "is not supported; SDXL's LoRA, LoHa, LoKr, DoRA are"
LORA_FORMATS = (
    Format(
        "kohya, the original block names",
        f"{Q}.lora_down.weight",
        pairs(ORIGINAL_NAMES.get, (f"{ATTENTION}.to_q", f"{CROSS}.to_k"), alpha=lambda _: 2.0),
        peft=True,
    ),
    Format(
        "kohya, diffusers' block names",
        "lora_unet_down_blocks_1_attentions_0_..._to_q.lora_down.weight",
        pairs(as_kohya, LINEAR, alpha=lambda _: 2.0),
        peft=True,
    ),
    Format(
        "kohya, the embedding layers in diffusers' names",
        "lora_unet_add_embedding_linear_1.lora_down.weight",
        pairs(as_kohya, ("unet.add_embedding.linear_1", "unet.time_embedding.linear_2"), alpha=lambda _: 4.0),
    ),
    Format(
        "kohya LoCon: convolutions and all else",
        "lora_unet_input_blocks_2_0_in_layers_2.lora_down.weight (4-D)",
        pairs(ORIGINAL_NAMES.get, UNET_MODULES, alpha=lambda _: 4.0),
    ),
    Format(
        "kohya, mixed ranks and mixed alphas",
        "*.lora_down.weight of ranks 2 to 6, *.alpha",
        pairs(ORIGINAL_NAMES.get, MODULES, alpha=mixed, rank=lambda module: 2 + len(module) % 5),
    ),
    Format(
        "kohya, text encoders alone, text projection",
        "lora_te1_text_model_encoder_layers_0_..., lora_te2_text_projection.lora_up.weight",
        pairs(as_kohya, (*TEXT_LINEAR, f"{TEXT}.mlp.fc1", "text_encoder_2.text_projection"), alpha=mixed),
    ),
    Format(
        "kohya, one text encoder",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight",
        pairs(
            lambda module: as_kohya(module).replace("lora_te1_", "lora_te_"), TEXT_LINEAR, alpha=lambda _: 1.0
        ),
    ),
    Format(
        "diffusers",
        "unet.down_blocks.1....to_q.lora_A.weight / .lora_B.weight",
        pairs(str, LINEAR, suffixes=A_B),
        peft=True,
    ),
    Format(
        "diffusers, every kind of module, text encoders",
        "text_encoder_2.text_projection.lora_A.weight",
        pairs(str, MODULES, suffixes=A_B),
    ),
    Format(
        "diffusers, text encoders as before transformers 5",
        "text_encoder.text_model.encoder.layers.1....lora_A.weight",
        pairs(
            lambda module: module.replace("encoder.encoder", "encoder.text_model.encoder"),
            TEXT_LINEAR,
            suffixes=A_B,
        ),
        peft=True,
    ),
    Format(
        "diffusers, alphas in the header", "__metadata__: lora_adapter_metadata", header_alphas, peft=True
    ),
    Format(
        "diffusers, a network's own file",
        "down_blocks.1....lora_A.weight, __metadata__: lora_adapter_metadata",
        own_file(LINEAR),
    ),
    Format(
        "diffusers with `.alpha` tensors",
        "unet.*.lora_A.weight, unet.*.alpha",
        pairs(str, MODULES, suffixes=A_B, alpha=mixed),
    ),
    Format(
        "diffusers 0.22 to 0.25",
        "unet.*.to_q.lora.down.weight",
        pairs(str, LINEAR, suffixes=(".lora.down.weight", ".lora.up.weight")),
        peft=True,
    ),
    Format(
        "diffusers 0.22 to 0.25, text encoders",
        "text_encoder.*.q_proj.lora_linear_layer.down.weight",
        pairs(str, TEXT_LINEAR, suffixes=(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")),
        peft=True,
    ),
    Format(
        "diffusers 0.17 to 0.21, attention processors",
        "unet.*.attn1.processor.to_q_lora.down.weight",
        pairs(as_processor, LINEAR + TEXT_LINEAR, suffixes=(".down.weight", ".up.weight")),
        peft=True,
    ),
    Format(
        "dotted names with kohya's endings",
        "unet.*.to_q.lora_down.weight",
        pairs(str, MODULES, alpha=mixed),
    ),
    Format(
        "no component in front",
        "down_blocks.1....to_q.lora_A.weight",
        pairs(bare, UNET_MODULES, suffixes=A_B),
    ),
    Format(
        "no component in front, the original block names",
        "input_blocks.4.1....to_q.lora_A.weight, .alpha",
        pairs(as_bare_original, COMFY_MODULES[:4], suffixes=A_B, alpha=mixed),
    ),
    Format(
        "cog-sdxl's lora.safetensors",
        "down_blocks.1....attn1.processor.to_q_lora.down.weight",
        pairs(lambda module: bare(as_processor(module)), LINEAR, suffixes=(".down.weight", ".up.weight")),
    ),
    Format(
        "trained_model.tar of a Replicate training",
        "lora.safetensors, embeddings.pti, special_params.json",
        training_tar,
        tokens=("<s0>", "<s1>"),
    ),
    Format(
        "PEFT folder, rank and alpha patterns",
        "base_model.model.down_blocks.1....lora_A.weight, adapter_config.json",
        peft_folder(
            {
                "lora_alpha": 2,
                "rank_pattern": {"attn1.to_q": 6},
                "alpha_pattern": {"attn1.to_q": 12, r"down_blocks.*attn\d.to_[qk]": 6},
            },
            lambda module: 2.0 if module.endswith("attn1.to_q") else 1.5 if module.endswith("to_k") else 0.5,
            rank=lambda module: 6 if module.endswith("attn1.to_q") else 4,
        ),
    ),
    Format(
        "PEFT folder, rsLoRA",
        "adapter_config.json: use_rslora",
        peft_folder({"lora_alpha": 3, "use_rslora": True}, lambda _: 3 / math.sqrt(4)),
    ),
    Format(
        "PEFT folder `text_encoder/`",
        "base_model.model.text_model.encoder.layers.1....lora_A.weight",
        peft_folder(
            {"lora_alpha": 8},
            lambda _: 2.0,
            modules=TEXT_LINEAR,
            spell=lambda module: f"base_model.model.text_model.{bare(module)}",
            folder="text_encoder",
        ),
    ),
    Format(
        "PEFT's names with the component inside",
        "base_model.model.unet.down_blocks.1....lora_A.weight",
        peft_folder(
            {"lora_alpha": 8}, lambda _: 2.0, spell=lambda m: f"base_model.model.{m}", modules=MODULES
        ),
    ),
    Format(
        "PEFT's names behind the component",
        "unet.base_model.model.down_blocks.1....lora_A.weight",
        peft_folder({"lora_alpha": 8}, lambda _: 2.0, spell=lambda m: f"unet.base_model.model.{bare(m)}"),
    ),
    Format(
        "PEFT's adapter name left in",
        "unet.*.lora_A.default.weight",
        pairs(str, MODULES, suffixes=(".lora_A.default.weight", ".lora_B.default.weight")),
    ),
    Format(
        "ComfyUI",
        "diffusion_model.input_blocks.4.1....to_q.lora_up.weight, .alpha",
        pairs(as_comfy, COMFY_MODULES, alpha=mixed),
    ),
    Format(
        "ComfyUI without alpha",
        "diffusion_model.input_blocks.4.1....to_q.lora_A.weight",
        pairs(as_comfy, COMFY_MODULES, suffixes=A_B),
    ),
    Format(
        "LyCORIS' own prefix",
        "lycoris_down_blocks_1_attentions_0_....lora_down.weight",
        pairs(lambda m: "lycoris_" + bare(m).replace(".", "_"), UNET_MODULES, alpha=mixed),
    ),
    Format(
        "DoRA, kohya",
        "*.lora_down.weight, *.dora_scale (out, 1)",
        dora(".dora_scale", modules=(*LINEAR, "unet.conv_in", *TEXT_LINEAR)),
    ),
    Format(
        "DoRA, older LyCORIS",
        "*.dora_scale (1, in)",
        dora(
            ".dora_scale",
            columns=True,
            modules=(f"{CROSS}.to_k", "unet.down_blocks.1.resnets.0.conv_shortcut"),
        ),
    ),
    Format(
        "DoRA, older LyCORIS, flat convolutions",
        "*.hada_w1_b (rank, in k k), *.dora_scale (1, in, 1, 1)",
        flat_columns,
    ),
    Format(
        "DoRA, diffusers",
        "unet.*.lora_magnitude_vector",
        dora(".lora_magnitude_vector", modules=LINEAR),
        peft=True,
    ),
    Format(
        "DoRA, PEFT with convolutions",
        "unet.*.lora_magnitude_vector.weight (1, out, 1, 1)",
        dora(".lora_magnitude_vector.weight", modules=(*LINEAR, "unet.conv_in")),
    ),
    Format("LoHa, LyCORIS", "*.hada_w1_a, _w1_b, _w2_a, _w2_b, *.alpha", loha()),
    Format("LoHa, a convolution's halves as kernels", "*.hada_w1_b (rank, in, k, k)", loha_kernel),
    Format("LoHa with DoRA", "*.hada_w1_a, *.dora_scale", loha(dora_scale=True)),
    Format("LoKr, LyCORIS", "*.lokr_w1, *.lokr_w2_a, *.lokr_w2_b, *.alpha", lokr(as_kohya, alpha=3.0)),
    Format("LoKr, a convolution's factor as a product", "*.lokr_w2_b (rank, d k k)", lokr_convolution),
    Format("LoKr, whole factors, alpha infinite", "*.alpha inf in fp16", lokr_whole(torch.float16, math.inf)),
    Format("LoKr, whole factors, alpha 1e10", "*.alpha 1e10 in bf16", lokr_whole(torch.bfloat16, 1e10)),
    Format("LoKr, diffusers' names", "unet.*.lokr_w1, unet.*.lokr_w2", lokr(str, alpha=None)),
    Format(
        "LoRA with bundled embeddings",
        "bundle_emb.NAME.clip_l / .clip_g beside the LoRA",
        bundle,
        tokens=("<floor_0>", "<floor_1>", "<tile>"),
    ),
    Format(
        "SD 1.5",
        "lora_unet_down_blocks_1_..._attn2_to_k.lora_down.weight (4, 768)",
        half_pairs("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 640, 768),
        "x.safetensors: made for SD 1, 768 wide; this model is 80 wide",
    ),
    Format(
        "SD 1.5 or SD 2, self-attention alone",
        "lora_unet_down_blocks_0_attentions_0_...",
        half_pairs("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320),
        "x.safetensors: made for SD 1 or SD 2, which have attention where SDXL has none",
    ),
    Format(
        "SD 2",
        "lora_unet_input_blocks_4_1_..._attn2_to_k.lora_down.weight (4, 1024)",
        half_pairs("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 640, 1024),
        "x.safetensors: made for SD 2, 1024 wide; this model is 80 wide",
    ),
    Format(
        "SDXL refiner",
        "lora_unet_input_blocks_4_1_..._attn2_to_k.lora_down.weight (4, 1280)",
        half_pairs("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 768, 1280),
        "x.safetensors: made for SDXL refiner, 1280 wide; this model is 80 wide",
    ),
    Format(
        "SDXL in its real size, on the miniature",
        "unet.*.attn2.to_k.lora_down.weight (4, 2048)",
        half_pairs(f"{CROSS}.to_k", 1280, 2048),
        "x.safetensors: made for SDXL, 2048 wide; this model is 80 wide",
    ),
    Format(
        "the same, text encoders alone",
        "lora_te2_..._self_attn_q_proj.lora_down.weight (4, 1280)",
        half_pairs("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280),
        "x.safetensors: made for SDXL, 1280 wide; this model is 48 wide",
    ),
    Format(
        "Flux",
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        zeros(lora_unet_double_blocks_0_img_attn_qkv__lora_down__weight=(4, 3072)),
        f"x.safetensors: Flux.1 LoRA {NOT_SUPPORTED}",
    ),
    Format(
        "SD 3",
        "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight",
        zeros(transformer__transformer_blocks__0__attn__add_q_proj__lora_A__weight=(4, 1536)),
        f"x.safetensors: SD 3 LoRA {NOT_SUPPORTED}",
    ),
    Format(
        "other diffusion transformers",
        "diffusion_model.blocks.0.cross_attn.q.lora_A.weight",
        zeros(diffusion_model__blocks__0__cross_attn__q__lora_A__weight=(4, 1536)),
        f"x.safetensors: LoRA for a diffusion transformer {NOT_SUPPORTED}",
    ),
    Format(
        "the same, diffusers' names",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        zeros(transformer__transformer_blocks__0__attn__to_q__lora_A__weight=(4, 1536)),
        f"x.safetensors: LoRA for a diffusion transformer {NOT_SUPPORTED}",
    ),
    Format(
        "tucker cores",
        "*.lora_mid.weight, *.hada_t1, *.lokr_t2",
        zeros(**{f"{Q}__lora_mid__weight": (4, 4, 3, 3)}),
        f"x.safetensors: Tucker core (lora_mid) {NOT_SUPPORTED}",
    ),
    Format(
        "full difference",
        "*.diff, *.diff_b",
        zeros(**{f"{Q}__diff": (32, 32)}),
        f"x.safetensors: full difference (.diff) {NOT_SUPPORTED}",
    ),
    Format(
        "norms",
        "*.w_norm, *.b_norm",
        zeros(lora_unet_input_blocks_4_1_norm__w_norm=(32,)),
        f"x.safetensors: difference of norms (.w_norm, .b_norm) {NOT_SUPPORTED}",
    ),
    Format(
        "IA3",
        "*.weight, *.on_input",
        zeros(**{f"{Q}__weight": (32,), f"{Q}__on_input": (1,)}),
        f"x.safetensors: IA3 {NOT_SUPPORTED}",
    ),
    Format(
        "OFT, BOFT",
        "*.oft_blocks",
        zeros(**{f"{Q}__oft_blocks": (4, 8, 8)}),
        f"x.safetensors: OFT {NOT_SUPPORTED}",
    ),
    Format(
        "GLoRA",
        "*.a1.weight",
        zeros(**{f"{Q}__a1__weight": (4, 32)}),
        f"x.safetensors: GLoRA {NOT_SUPPORTED}",
    ),
    Format(
        "biases",
        "*.lora_B.bias",
        zeros(unet__conv_in__lora_B__bias=(16,)),
        f"x.safetensors: LoRA with biases {NOT_SUPPORTED}",
    ),
    Format(
        "PEFT without its configuration",
        "base_model.model.*, no adapter_config.json",
        half_pairs(f"base_model.model.{bare(ATTENTION)}.to_q", 32, 32),
        "adapter_config.json: cannot be read: No such file or directory; "
        "PEFT keeps the strength of its tensors there",
    ),
    Format(
        "PEFT that changes the base itself",
        "adapter_config.json: init_lora_weights pissa, olora, corda, loftq",
        peft_folder({"init_lora_weights": "pissa_niter_4"}, lambda _: 1.0),
        "adapter_config.json: init_lora_weights 'pissa_niter_4' changes the base's own weights, "
        "which this file does not hold",
    ),
    Format(
        "half a pair",
        "*.lora_down.weight alone",
        zeros(**{f"{Q}__lora_down__weight": (4, 32)}),
        f"x.safetensors: incomplete LoRA for {ATTENTION}.to_q: only 'down'",
    ),
    Format(
        "unknown tensors",
        "whatever is left over",
        zeros(surprise=(1,)),
        "x.safetensors: no place in this model for 1 of its tensors: 'surprise'",
    ),
    Format(
        "a bundled embedding for one text encoder",
        "bundle_emb.NAME.string_to_param.*",
        lambda bench: (
            bench.write(
                {
                    "bundle_emb.tile.string_to_param.*": torch.zeros(1, 32),
                    f"{Q}.lora_down.weight": torch.zeros(4, 32),
                    f"{Q}.lora_up.weight": torch.zeros(32, 4),
                }
            ),
            None,
        ),
        "x.safetensors: bundled 'bundle_emb.tile.string_to_param.*': "
        "only an SDXL embedding's clip_l with clip_g is supported",
    ),
    Format(
        "whole checkpoint",
        "model.diffusion_model.input_blocks.0.0.weight",
        zeros(model__diffusion_model__input_blocks__0__0__weight=(16, 4, 3, 3)),
        f"x.safetensors: checkpoint {NOT_SUPPORTED}",
    ),
    Format(
        "ControlNet",
        "lllite_unet_*",
        zeros(lllite_unet_input_blocks_4_1__up__weight=(4, 4)),
        f"x.safetensors: ControlNet {NOT_SUPPORTED}",
    ),
    Format(
        "VAE",
        "decoder.conv_in.weight",
        zeros(decoder__conv_in__weight=(4, 4)),
        f"x.safetensors: VAE {NOT_SUPPORTED}",
    ),
    Format(
        "hypernetwork",
        "768.0.linear.0.weight",
        zeros(**{"768__0__linear__0__weight": (32, 32)}),
        f"x.safetensors: hypernetwork {NOT_SUPPORTED}",
    ),
    Format(
        "hypernetwork, pickled",
        "layer_structure in a pickle, whatever its name",
        raw(b"PK\x03\x04archive/data.pkl" + b"\x80\x02}q\x00(X\x0f\x00\x00\x00layer_structureq\x01"),
        f"x.safetensors: a pickled hypernetwork, {CONVERT}",
    ),
    Format(
        "pickle (.pt, .bin, .ckpt)",
        "a zip archive or a pickle, whatever its name",
        raw(b"\x80\x02}q\x00" + bytes(20)),
        f"x.safetensors: a pickle, {CONVERT}",
    ),
    Format(
        "HTML page",
        "<!DOCTYPE html>",
        raw(b"<!DOCTYPE html><html><body>Sign in</body></html>"),
        "x.safetensors: an HTML page, expected safetensors",
    ),
    Format(
        "git-lfs pointer",
        "version https://git-lfs.github.com/spec/v1",
        raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "x.safetensors: a git-lfs pointer, not the file itself, expected safetensors",
    ),
)

SPELLED = "expected 'clip_l with clip_g' or 'text_encoders_0 with text_encoders_1'"
EMBEDDING_FORMATS = (
    Format(
        "diffusers' advanced trainer, kohya",
        "clip_l (n, 768), clip_g (n, 1280)",
        embeddings("clip_l", "clip_g"),
        tokens=("<s0>", "<s1>"),
    ),
    Format(
        "cog-sdxl's embeddings.pti",
        "text_encoders_0, text_encoders_1",
        embeddings("text_encoders_0", "text_encoders_1", name="embeddings.pti"),
        tokens=("<s0>", "<s1>"),
    ),
    Format(
        "several vectors, named by special_params.json",
        '{"TOK": "<tile><floor>"} beside the file',
        named_embeddings,
        tokens=("<tile>", "<floor>"),
    ),
    Format(
        "one vector",
        "clip_l (1, 768), clip_g (1, 1280)",
        embeddings("clip_l", "clip_g", count=1),
        tokens=("<s0>",),
    ),
    Format("one vector, flat", "clip_l (768), clip_g (1280)", flat_embeddings, tokens=("<s0>",)),
    Format(
        "one text encoder alone",
        "clip_l",
        zeros(clip_l=(2, 32)),
        f"x.safetensors: an embedding for one text encoder, 'clip_l' alone; {SPELLED}",
    ),
    Format(
        "SD 1.5, kohya",
        "emb_params (n, 768)",
        zeros(emb_params=(2, 768)),
        f"x.safetensors: an embedding for SD 1, 768 wide ('emb_params'); {SPELLED}",
    ),
    Format(
        "SD 2",
        "emb_params (n, 1024)",
        zeros(emb_params=(2, 1024)),
        f"x.safetensors: an embedding for SD 2, 1024 wide ('emb_params'); {SPELLED}",
    ),
    Format(
        "SD 1.5, diffusers' learned_embeds",
        "<token> (768)",
        lambda bench: (bench.write({"<tile>": torch.zeros(768)}), None),
        f"x.safetensors: an embedding for SD 1, 768 wide ('<tile>'); {SPELLED}",
    ),
    Format(
        "SDXL in its real size, on the miniature",
        "clip_l (2, 768), clip_g (2, 1280)",
        zeros(clip_l=(2, 768), clip_g=(2, 1280)),
        "x.safetensors: made for SDXL, 768 and 1280 wide; this model's text encoders are 32 and 48 wide",
    ),
    Format(
        "A1111's .pt",
        "string_to_param, string_to_token in a pickle",
        raw(b"\x80\x02}q\x00X\x0f\x00\x00\x00string_to_paramq\x01"),
        f"x.safetensors: a pickled textual inversion embedding, {CONVERT}",
    ),
)


def render_table() -> str:
    """Return the formats as the Markdown tables of docs/adapters.md."""
    sections = []
    for kind, formats in (
        ("LoRA for SDXL", LORA_FORMATS),
        ("LoRA for Flux.1", FLUX_FORMATS),
        ("LoRA for SD 1", SD1_FORMATS),
        ("Embedding", (*EMBEDDING_FORMATS, *SD1_EMBEDDINGS)),
    ):
        rows = [f"| {kind} | the file holds | result |", "|---|---|---|"]
        rows += [f"| {form.name} | {_as_code(form.keys)} | {form.verdict} |" for form in formats]
        sections.append("\n".join(rows))
    return "\n\n".join(sections) + "\n"


def _as_code(keys: str) -> str:
    return f"`{keys.replace('|', chr(92) + '|')}`"


if __name__ == "__main__":
    print(render_table(), end="")  # noqa: T201  a program of its own
