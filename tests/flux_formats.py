"""Every published format of a LoRA for Flux.1; see tests/adapter_formats.py, which prints the table."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tests.adapter_crafts import (
    A_B,
    Craft,
    Format,
    Truth,
    Workbench,
    bare,
    kron,
    own_file,
    pairs,
    peft_folder,
    product,
    zeros,
)

BLOCK, SINGLE = "transformer.transformer_blocks.1", "transformer.single_transformer_blocks.0"
QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
TEXT = ("text_encoder.encoder.layers.1.mlp.fc1",)
MODULES = (
    f"{BLOCK}.attn.to_q", f"{BLOCK}.attn.add_k_proj", f"{BLOCK}.attn.to_out.0", f"{BLOCK}.ff.net.0.proj",
    f"{BLOCK}.ff_context.net.2", f"{BLOCK}.norm1.linear", f"{SINGLE}.attn.to_v", f"{SINGLE}.proj_mlp",
    f"{SINGLE}.proj_out", f"{SINGLE}.norm.linear", "transformer.x_embedder", "transformer.proj_out",
    "transformer.time_text_embed.guidance_embedder.linear_1",
)  # fmt: skip
ATTENTION = tuple(f"{block}.attn.{name}" for block in (BLOCK, SINGLE) for name in QKV)
DOUBLE = {
    "double_blocks.1.img_attn.qkv": tuple(f"{BLOCK}.attn.{name}" for name in QKV),
    "double_blocks.1.img_attn.proj": (f"{BLOCK}.attn.to_out.0",),
    "double_blocks.1.img_mlp.0": (f"{BLOCK}.ff.net.0.proj",),
    "double_blocks.1.img_mlp.2": (f"{BLOCK}.ff.net.2",),
    "double_blocks.1.img_mod.lin": (f"{BLOCK}.norm1.linear",),
    "double_blocks.1.txt_attn.qkv": tuple(f"{BLOCK}.attn.{name}" for name in ADDED),
    "double_blocks.1.txt_attn.proj": (f"{BLOCK}.attn.to_add_out",),
    "double_blocks.1.txt_mlp.0": (f"{BLOCK}.ff_context.net.0.proj",),
    "double_blocks.1.txt_mlp.2": (f"{BLOCK}.ff_context.net.2",),
    "double_blocks.1.txt_mod.lin": (f"{BLOCK}.norm1_context.linear",),
}
# The names on the left are written by hand after the published checkpoint.
ORIGINAL = DOUBLE | {
    "single_blocks.0.linear1": (*(f"{SINGLE}.attn.{name}" for name in QKV), f"{SINGLE}.proj_mlp"),
    "single_blocks.0.linear2": (f"{SINGLE}.proj_out",),
    "single_blocks.0.modulation.lin": (f"{SINGLE}.norm.linear",),
    "img_in": ("transformer.x_embedder",),
    "txt_in": ("transformer.context_embedder",),
    "time_in.in_layer": ("transformer.time_text_embed.timestep_embedder.linear_1",),
    "vector_in.out_layer": ("transformer.time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("transformer.time_text_embed.guidance_embedder.linear_1",),
    "final_layer.linear": ("transformer.proj_out",),
}
XLABS = {
    "double_blocks.1.processor.qkv_lora1": ORIGINAL["double_blocks.1.img_attn.qkv"],
    "double_blocks.1.processor.proj_lora1": ORIGINAL["double_blocks.1.img_attn.proj"],
    "double_blocks.1.processor.qkv_lora2": ORIGINAL["double_blocks.1.txt_attn.qkv"],
    "double_blocks.1.processor.proj_lora2": ORIGINAL["double_blocks.1.txt_attn.proj"],
    "single_blocks.0.processor.qkv_lora": tuple(f"{SINGLE}.attn.{name}" for name in QKV),
    "single_blocks.0.processor.proj_lora": (f"{SINGLE}.proj_out",),
}
DOWN_UP = (".lora_down.weight", ".lora_up.weight")


def joined(
    table: Mapping[str, tuple[str, ...]],
    *,
    prefix: str,
    suffixes: tuple[str, str] = DOWN_UP,
    alpha: float | None = None,
    text: Mapping[str, str] | None = None,
) -> Craft:
    """Craft a file whose modules are several modules here, each with its share of the rows of `up`."""

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        tensors, deltas = {}, {}
        for name, modules in (table | {name: (module,) for name, module in (text or {}).items()}).items():
            spelled = name if text and name in text else spell(prefix, name)
            counts = [len(bench.base(module)) for module in modules]
            down = bench.draw(4, bench.base(modules[0]).shape[1])
            up = bench.draw(sum(counts), 4)
            tensors |= {spelled + suffixes[0]: down, spelled + suffixes[1]: up}
            if alpha is not None:
                tensors[f"{spelled}.alpha"] = torch.tensor(alpha)
            change = product(down, up) * (1 if alpha is None else alpha / 4)
            deltas |= dict(zip(modules, change.split(counts), strict=True))
        return bench.write(tensors), bench.added(deltas)

    return craft


def spell(prefix: str, name: str) -> str:
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def swapped(bench: Workbench) -> tuple[Path, Truth]:
    """The last norm's shift and scale, which diffusers keeps in the other order."""
    module = "transformer.norm_out.linear"
    down, up = bench.pair(module)
    name = "lora_unet_final_layer_adaLN_modulation_1"
    shift, scale = product(down, up).chunk(2)
    path = bench.write({name + DOWN_UP[0]: down, name + DOWN_UP[1]: up})
    return path, bench.added({module: torch.cat([scale, shift])})


def joined_dora(*, columns: bool) -> Craft:
    """A DoRA of query, key and value together: one norm for each row or, in older files, for each column."""
    name, modules = "lora_unet_double_blocks_1_img_attn_qkv", DOUBLE["double_blocks.1.img_attn.qkv"]

    def craft(bench: Workbench) -> tuple[Path, Truth]:
        base = torch.cat([bench.base(module) for module in modules])
        down, up = bench.draw(4, base.shape[1]), bench.draw(len(base), 4)
        norms = 1.25 * base.norm(dim=0 if columns else 1, keepdim=True)
        tensors = {name + DOWN_UP[0]: down, name + DOWN_UP[1]: up, f"{name}.dora_scale": norms.float()}

        def truth(strength: float) -> dict[str, torch.Tensor]:
            moved = base + strength * product(down, up)
            merged = norms * moved / moved.norm(dim=1, keepdim=True) if strength else base
            return {f"{module}.weight": part for module, part in zip(modules, merged.chunk(3), strict=True)}

        return bench.write(tensors), truth

    return craft


def joined_lokr(bench: Workbench) -> tuple[Path, Truth]:
    """The factors' rows do not end where those of query and key do."""
    modules = DOUBLE["double_blocks.1.txt_attn.qkv"]
    first, second = bench.draw(2, 4) * 4, bench.draw(48, 8)
    name = "lora_unet_double_blocks_1_txt_attn_qkv"
    parts = dict(zip(modules, kron(first, second).chunk(3), strict=True))
    return bench.write({f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}), bench.added(parts)


def joined_loha(bench: Workbench) -> tuple[Path, Truth]:
    modules = ORIGINAL["single_blocks.0.linear1"]
    counts = [len(bench.base(module)) for module in modules]
    width = bench.base(modules[0]).shape[1]
    parts = {
        f"hada_{half}": bench.draw(*shape) * 3
        for half, shape in (
            ("w1_a", (sum(counts), 3)), ("w1_b", (3, width)), ("w2_a", (sum(counts), 3)), ("w2_b", (3, width))
        )
    }  # fmt: skip
    first, second = (product(parts[f"hada_{w}_b"], parts[f"hada_{w}_a"]) for w in ("w1", "w2"))
    name = "lora_unet_single_blocks_0_linear1"
    tensors = {f"{name}.{part}": tensor for part, tensor in parts.items()} | {
        f"{name}.alpha": torch.tensor(1.5)
    }
    changes = (0.5 * first * second).split(counts)
    return bench.write(tensors), bench.added(dict(zip(modules, changes, strict=True)))


KOHYA_TEXT = {"lora_te1_text_model_encoder_layers_1_mlp_fc1": TEXT[0]}
COMFY_TEXT = {"text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1": TEXT[0]}
SUPPORTED = "Flux.1's LoRA, LoHa, LoKr, DoRA are"
FLUX_FORMATS = (
    Format(
        "diffusers",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight / .lora_B.weight",
        pairs(str, ATTENTION, suffixes=A_B),
        peft=True,
    ),
    Format(
        "diffusers, every kind of module, CLIP's text encoder",
        "text_encoder.text_model.encoder.layers.1....lora_A.weight",
        pairs(
            lambda m: m.replace("encoder.encoder", "encoder.text_model.encoder"), MODULES + TEXT, suffixes=A_B
        ),
    ),
    Format(
        "diffusers, a network's own file",
        "transformer_blocks.0....lora_A.weight, __metadata__: lora_adapter_metadata",
        own_file(ATTENTION),
    ),
    Format(
        "PEFT folder",
        "base_model.model.transformer_blocks.0....lora_A.weight, adapter_config.json",
        peft_folder({"lora_alpha": 8}, lambda _: 2.0, modules=MODULES),
    ),
    Format(
        "PEFT's wrapper, the original block names",
        "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight, .alpha",
        joined(DOUBLE, prefix="base_model.model.", suffixes=A_B, alpha=2.0),
    ),
    Format(
        "kohya, double blocks",
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, .alpha",
        joined(DOUBLE, prefix="lora_unet_", alpha=2.0),
        peft=True,
    ),
    Format(
        "kohya, every kind of module, CLIP's text encoder",
        "lora_unet_single_blocks_0_linear1.lora_down.weight, lora_te1_...",
        joined(ORIGINAL, prefix="lora_unet_", alpha=2.0, text=KOHYA_TEXT),
    ),
    Format(
        "kohya, the last norm's shift and scale",
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight",
        swapped,
    ),
    Format(
        "kohya's endings, diffusers' block names",
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight, .alpha",
        pairs(lambda m: f"lora_transformer_{bare(m).replace('.', '_')}", MODULES, alpha=lambda _: 2.0),
    ),
    Format(
        "XLabs",
        "double_blocks.0.processor.qkv_lora1.down.weight",
        joined(XLABS, prefix="", suffixes=(".down.weight", ".up.weight")),
        peft=True,
    ),
    Format(
        "ComfyUI, Black Forest Labs",
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight, text_encoders.clip_l....",
        joined(ORIGINAL, prefix="diffusion_model.", suffixes=A_B, text=COMFY_TEXT),
    ),
    Format(
        "the original block names alone",
        "double_blocks.0.img_attn.qkv.lora_A.weight",
        joined(ORIGINAL, prefix="", suffixes=A_B),
    ),
    Format(
        "LyCORIS' own prefix",
        "lycoris_transformer_blocks_0_attn_to_q.lora_down.weight",
        pairs(lambda m: f"lycoris_{bare(m).replace('.', '_')}", MODULES, alpha=lambda _: 2.0),
    ),
    Format("LoKr of query, key and value", "lora_unet_double_blocks_0_txt_attn_qkv.lokr_w1", joined_lokr),
    Format("LoHa of four layers", "lora_unet_single_blocks_0_linear1.hada_w1_a", joined_loha),
    Format("DoRA of query, key and value", "*_qkv.dora_scale (out, 1)", joined_dora(columns=False)),
    Format(
        "DoRA of query, key and value, older LyCORIS",
        "*_qkv.dora_scale (1, in)",
        joined_dora(columns=True),
        "x.safetensors: transformer.transformer_blocks.1.attn.to_q is one of several layers that the file joins, "
        "and its DoRA scales columns of all of them; that is not supported",
    ),
    Format(
        "SDXL, kohya",
        "lora_unet_input_blocks_4_1_..._attn2_to_k.lora_down.weight (4, 2048)",
        zeros(
            lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k__lora_down__weight=(4, 2048),
            lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k__lora_up__weight=(640, 4),
        ),
        "x.safetensors: made for SDXL; this model is Flux.1",
    ),
    Format(
        "SD 1.5",
        "lora_unet_down_blocks_0_attentions_0_..._attn2_to_k.lora_down.weight (4, 768)",
        zeros(
            lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k__lora_down__weight=(4, 768),
            lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k__lora_up__weight=(320, 4),
        ),
        "x.safetensors: made for SD 1; this model is Flux.1",
    ),
    Format(
        "SD 3",
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight",
        zeros(diffusion_model__joint_blocks__0__x_block__attn__qkv__lora_A__weight=(4, 1536)),
        f"x.safetensors: SD 3 LoRA is not supported; {SUPPORTED}",
    ),
    Format(
        "Chroma",
        "diffusion_model.distilled_guidance_layer.layers.0.in_layer.lora_A.weight",
        zeros(diffusion_model__distilled_guidance_layer__layers__0__in_layer__lora_A__weight=(4, 64)),
        f"x.safetensors: Chroma LoRA is not supported; {SUPPORTED}",
    ),
    Format(
        "T5's text encoder",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        zeros(lora_te3_encoder_block_0_layer_0_SelfAttention_q__lora_down__weight=(4, 4096)),
        f"x.safetensors: LoRA for T5 is not supported; {SUPPORTED}",
    ),
    Format(
        "bundled embeddings",
        "bundle_emb.NAME.clip_l beside the LoRA",
        zeros(
            bundle_emb__tile__clip_l=(1, 32),
            transformer__x_embedder__lora_A__weight=(4, 64),
            transformer__x_embedder__lora_B__weight=(32, 4),
        ),
        "x.safetensors: bundled 'bundle_emb.tile.clip_l': embeddings bundled with a LoRA are read for SDXL alone",
    ),
    Format(
        "half a pair",
        "*.lora_A.weight alone",
        zeros(transformer__x_embedder__lora_A__weight=(4, 64)),
        "x.safetensors: incomplete LoRA for transformer.x_embedder: only 'down'",
    ),
)
