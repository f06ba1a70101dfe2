"""What a file is, told from its header: one crafted file for every kind, format and base model."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.model_files import KOHYA, SDXL_LORA, lora, write_model
from tilemix.deltas import SUFFIXES
from tilemix.modelfile import facts
from tilemix.modelfile.adapter_layout import read_layout
from tilemix.modelfile.base_models import tell_base
from tilemix.modelfile.header import Header, TensorInfo, read_header
from tilemix.modelfile.inspection import read
from tilemix.modelfile.kinds import recognize
from tilemix.modelfile.training_notes import read_notes

WHOLE = "model.diffusion_model."
TO_K = "1.transformer_blocks.0.attn2.to_k.weight"
UNET_TO_K = "attentions.0.transformer_blocks.0.attn2.to_k.weight"
PEFT = "attn2.to_k.lora_A.weight", "attn2.to_k.lora_B.weight"
DEEP = "down_blocks.2.attentions.0.transformer_blocks.9."


def ab(module, out, width, *, middle=""):
    return {f"{module}.lora_A{middle}.weight": (4, width), f"{module}.lora_B{middle}.weight": (out, 4)}


def halves(module, down, up, out=640, width=2048):
    return {f"{module}.{down}.weight": (4, width), f"{module}.{up}.weight": (out, 4)}


UNET_ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"
SPLIT_QKV = f"lora_unet_{'double_blocks_0_img_attn_qkv'}"

# name -> (shapes, kind, format, base model)
LORAS = {
    "kohya, original blocks": (SDXL_LORA, "LoRA (kohya, original blocks)", "SDXL"),
    "kohya, diffusers blocks": (
        lora({"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 2048)}),
        "LoRA (kohya, diffusers blocks)",
        "SDXL",
    ),
    "SD 1": (
        lora({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (320, 768)}),
        "LoRA (kohya, diffusers blocks)",
        "SD 1",
    ),
    "SD 2": (
        lora({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (320, 1024)}),
        "LoRA (kohya, diffusers blocks)",
        "SD 2",
    ),
    "text encoder of SDXL, kohya's, the first alone": (
        lora({"lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}), "LoRA (kohya)", "SDXL",
    ),
    "text encoders of SDXL, ComfyUI's": (
        ab("text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj", 768, 768),
        "LoRA (ComfyUI)",
        "SDXL",
    ),
    "text encoder, diffusers 0.20": (
        halves("text_encoder.text_model.encoder.layers.0.self_attn", "to_q_lora.down", "to_q_lora.up", 1024, 1024),
        "LoRA (diffusers)",
        "SD 2",
    ),
    "PEFT's DoRA with an adapter's name left in": (
        ab(f"{UNET_ATTENTION}.to_k", 640, 2048, middle=".default")
        | {f"{UNET_ATTENTION}.to_k.lora_magnitude_vector.default.weight": (640,)},
        "DoRA (diffusers)",
        "SDXL",
    ),
    "PEFT's wrapper behind the component": (
        ab("unet.base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 640, 2048),
        "LoRA (PEFT)",
        "SDXL",
    ),
    "attention at SD 1's highest resolution, on the way up": (
        lora({"lora_unet_output_blocks_11_1_transformer_blocks_0_attn1_to_q": (320, 320)}),
        "LoRA (kohya, original blocks)",
        "SD 1 or SD 2",
    ),
    "LoHa, told by its second half": (
        {f"{KOHYA}.hada_w2_a": (640, 8), f"{KOHYA}.hada_w2_b": (8, 2048)}, "LoHa (kohya, original blocks)", "SDXL",
    ),
    "the refiner": (lora({KOHYA: (768, 1280)}), "LoRA (kohya, original blocks)", "SDXL refiner"),
    "text encoders of SDXL": (
        lora({"lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768),
              "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)}),
        "LoRA (kohya)",
        "SDXL",
    ),
    "text encoder of SD 1": (
        lora({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}), "LoRA (kohya)", "SD 1",
    ),
    "text encoder of SD 2": (
        lora({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (1024, 1024)}), "LoRA (kohya)", "SD 2",
    ),
    "self-attention of SDXL": (
        lora({"lora_unet_up_blocks_0_attentions_0_transformer_blocks_7_attn1_to_q": (1280, 1280)}),
        "LoRA (kohya, diffusers blocks)",
        "SDXL",
    ),
    "self-attention of an older model": (
        lora({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320)}),
        "LoRA (kohya, diffusers blocks)",
        "SD 1 or SD 2",
    ),
    "LoCon": (
        {"lora_unet_input_blocks_4_0_in_layers_2.lora_down.weight": (8, 320, 3, 3),
         "lora_unet_input_blocks_4_0_in_layers_2.lora_up.weight": (640, 8, 1, 1)} | SDXL_LORA,
        "LoCon (kohya, original blocks)",
        "SDXL",
    ),
    "diffusers": (ab(f"{UNET_ATTENTION}.to_k", 640, 2048), "LoRA (diffusers)", "SDXL"),
    "diffusers 0.22": (halves(f"{UNET_ATTENTION}.to_k", "lora.down", "lora.up"), "LoRA (diffusers)", "SDXL"),
    "diffusers 0.20": (
        halves(f"{UNET_ATTENTION}.processor", "to_k_lora.down", "to_k_lora.up"), "LoRA (diffusers)", "SDXL",
    ),
    "cog-sdxl": (
        halves(f"{UNET_ATTENTION.removeprefix('unet.')}.processor", "to_k_lora.down", "to_k_lora.up"),
        "LoRA (diffusers, no component's name in front)",
        "SDXL",
    ),
    "an adapter's name left in": (
        ab(f"{UNET_ATTENTION}.to_k", 640, 2048, middle=".default"), "LoRA (diffusers)", "SDXL",
    ),
    "PEFT": (
        ab(f"base_model.model.{UNET_ATTENTION.removeprefix('unet.')}.to_k", 640, 2048), "LoRA (PEFT)", "SDXL",
    ),
    "ComfyUI": (
        ab("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", 640, 2048),
        "LoRA (ComfyUI)",
        "SDXL",
    ),
    "kohya's DoRA": (
        SDXL_LORA | {f"{KOHYA}.dora_scale": (640, 1)}, "DoRA (kohya, original blocks)", "SDXL",
    ),
    "diffusers' DoRA": (
        ab(f"{UNET_ATTENTION}.to_k", 640, 2048) | {f"{UNET_ATTENTION}.to_k.lora_magnitude_vector": (640,)},
        "DoRA (diffusers)",
        "SDXL",
    ),
    "LoHa": (
        {f"{KOHYA}.hada_w1_a": (640, 8), f"{KOHYA}.hada_w1_b": (8, 2048), f"{KOHYA}.hada_w2_a": (640, 8),
         f"{KOHYA}.hada_w2_b": (8, 2048), f"{KOHYA}.alpha": ()},
        "LoHa (kohya, original blocks)",
        "SDXL",
    ),
    "LoKr": (
        {f"{KOHYA}.lokr_w1": (16, 32), f"{KOHYA}.lokr_w2_a": (40, 8), f"{KOHYA}.lokr_w2_b": (8, 64)},
        "LoKr (kohya, original blocks)",
        "SDXL",
    ),
    "LyCORIS names": (
        {KOHYA.replace("lora_unet", "lycoris") + ".lokr_w1": (16, 32),
         KOHYA.replace("lora_unet", "lycoris") + ".lokr_w2": (40, 64)},
        "LoKr (LyCORIS)",
        "SDXL",
    ),
    "full difference": ({f"{KOHYA}.diff": (640, 2048)}, "full difference (kohya, original blocks)", "SDXL"),
    "IA3": (
        {f"{KOHYA}.weight": (640, 1), f"{KOHYA}.on_input": ()}, "IA3 (kohya, original blocks)", None,
    ),
    "OFT": ({"oft_unet_mid_block_attentions_0_proj_in.oft_blocks": (4, 8, 8)}, "OFT (kohya)", None),
    "with bundled embeddings": (
        SDXL_LORA | {"bundle_emb.tile.clip_l": (2, 768), "bundle_emb.tile.clip_g": (2, 1280)},
        "LoRA (kohya, original blocks, with bundled embeddings)",
        "SDXL",
    ),
    "Flux, kohya": (lora({SPLIT_QKV: (9216, 3072)}), "LoRA (kohya)", "Flux.1"),
    "Flux, diffusers": (
        ab("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072), "LoRA (diffusers)", "Flux.1",
    ),
    "SD 3": (
        ab("transformer.transformer_blocks.0.attn.add_k_proj", 1536, 1536), "LoRA (diffusers)", "SD 3",
    ),
    "a small SDXL": (
        lora({KOHYA: (64, 128), KOHYA.replace("4_1", "7_1").replace("blocks_0", "blocks_1"): (64, 128)}),
        "LoRA (kohya, original blocks)",
        "SDXL",
    ),
}  # fmt: skip
OTHERS = {
    "SDXL embedding": (
        {"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "SDXL embedding (clip_l, clip_g)", "SDXL",
    ),
    "cog-sdxl embedding": (
        {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)},
        "embedding",
        "SDXL embedding (cog-sdxl)",
        "SDXL",
    ),
    "half an embedding": ({"clip_l": (2, 768)}, "embedding", "half an SDXL embedding (clip_l only)", "SDXL"),
    "kohya's embedding": ({"emb_params": (4, 768)}, "embedding", "kohya embedding (emb_params)", "SD 1"),
    "diffusers' embedding": ({"<tile>": (1024,)}, "embedding", "diffusers embedding", "SD 2"),
    "SDXL checkpoint": (
        {f"{WHOLE}input_blocks.4.{TO_K}": (640, 2048), "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
         f"{WHOLE}middle_block.1.transformer_blocks.9.norm1.weight": (1280,),
         "conditioner.embedders.1.model.ln_final.bias": (1280,)},
        "checkpoint", "one file, original names", "SDXL",
    ),
    "SSD-1B": (
        {f"{WHOLE}input_blocks.4.{TO_K}": (640, 2048), "conditioner.embedders.1.model.ln_final.bias": (1280,)},
        "checkpoint", "one file, original names", "SSD-1B",
    ),
    "Playground": (
        {f"{WHOLE}input_blocks.4.{TO_K}": (640, 2048), "edm_mean": (4,), "edm_std": (4,),
         "conditioner.embedders.1.model.ln_final.bias": (1280,)},
        "checkpoint", "one file, original names", "Playground 2.5",
    ),
    "refiner": (
        {f"{WHOLE}input_blocks.4.{TO_K}": (768, 1280), "conditioner.embedders.0.model.ln_final.bias": (1280,)},
        "checkpoint", "one file, original names", "SDXL refiner",
    ),
    "SD 1 checkpoint": (
        {f"{WHOLE}input_blocks.2.{TO_K}": (320, 768), "cond_stage_model.transformer.text_model.x": (768,)},
        "checkpoint", "one file, original names", "SD 1",
    ),
    "SD 2 checkpoint": (
        {f"{WHOLE}input_blocks.2.{TO_K}": (320, 1024), "cond_stage_model.model.ln_final.bias": (1024,)},
        "checkpoint", "one file, original names", "SD 2",
    ),
    "SD 3": (
        {f"{WHOLE}joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536), "text_encoders.x": (1,)},
        "checkpoint", "one file, original names", "SD 3",
    ),
    "Flux": (
        {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "unet", "original names", "Flux.1",
    ),
    "SDXL UNet": (
        {f"down_blocks.1.{UNET_TO_K}": (640, 2048), DEEP + "norm1.weight": (1280,), "conv_in.bias": (320,)},
        "unet", "diffusers", "SDXL",
    ),
    "SD 1 UNet": ({f"down_blocks.0.{UNET_TO_K}": (320, 768)}, "unet", "diffusers", "SD 1"),
    "UNet alone": (
        {f"{WHOLE}input_blocks.2.{TO_K}": (320, 768)},
        "unet", "original names, without text encoder and VAE", "SD 1",
    ),
    "VAE, diffusers": (
        {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.up_blocks.0.resnets.0.norm1.bias": (512,)},
        "vae", "diffusers", None,
    ),
    "VAE, original": ({"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, "vae", "original names", None),
    "VAE of later models": (
        {"decoder.conv_in.weight": (512, 16, 3, 3)}, "vae", "original names", "SD 3 or Flux.1",
    ),
    "text encoder": (
        {"text_model.embeddings.token_embedding.weight": (49408, 768)}, "text encoder", "transformers", None,
    ),
    "ControlNet": (
        {"controlnet_cond_embedding.conv_in.bias": (16,), f"down_blocks.1.{UNET_TO_K}": (640, 2048),
         DEEP + "norm1.weight": (1280,)},
        "controlnet", "diffusers", "SDXL",
    ),
    "something else": ({"weights": (3, 3)}, "unknown", "1 tensors", None),
    "nothing": ({}, "unknown", "no tensors", None),
}  # fmt: skip


@pytest.mark.parametrize("name", LORAS)
def test_every_lora_is_recognized(tmp_path, name):
    shapes, file_format, base = LORAS[name]
    file = read(write_model(tmp_path / "x.safetensors", shapes), hashes="none")
    assert (file.kind, file.format, file.base_model) == ("lora", file_format, base)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_file_is_recognized(tmp_path, name):
    shapes, kind, file_format, base = OTHERS[name]
    file = read(write_model(tmp_path / "x.safetensors", shapes), hashes="none")
    assert (file.kind, file.format, file.base_model) == (kind, file_format, base)


def test_what_a_lora_touches_is_counted_by_component_and_sort(tmp_path):
    shapes = lora(
        {
            KOHYA: (640, 2048),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_2": (640, 2560),
            "lora_unet_input_blocks_4_1_proj_in": (640, 640),
            "lora_unet_input_blocks_4_0_skip_connection": (640, 320),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768),
            "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280),
        }
    )
    shapes["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"] = (32, 640)
    shapes["lora_unet_input_blocks_4_1_proj_in.lora_up.weight"] = (640, 32)
    file = read(write_model(tmp_path / "x", shapes), hashes="none")
    assert file.modules == {
        "text_encoder": {"feed-forward": 1},
        "text_encoder_2": {"attention": 1},
        "unet": {"attention": 1, "feed-forward": 1, "other": 1, "convolution": 1},
    }
    assert (file.rank, file.ranks) == (None, {8: 5, 32: 1})
    expected = 8 * (640 + 2048 + 640 + 2560 + 640 + 320 + 3072 + 768 + 1280 + 1280) + 32 * (640 + 640) + 6
    assert (file.parameters, file.tensors, file.dtype) == (expected, 18, "F16")


@pytest.mark.parametrize(
    ("shapes", "metadata", "alpha", "told_by"),
    [
        (SDXL_LORA, {"ss_network_alpha": "4.0"}, 4.0, "ss_network_alpha"),
        (SDXL_LORA, {}, 0.0, "the tensors"),
        (SDXL_LORA, {"ss_network_alpha": "None"}, 0.0, "the tensors"),
        (
            ab(f"{UNET_ATTENTION}.to_k", 640, 2048),
            {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 8}'},
            8.0,
            "lora_adapter_metadata",
        ),
        (ab(f"{UNET_ATTENTION}.to_k", 640, 2048), {}, None, "none stored: the scale is 1"),
    ],
)
def test_alpha_comes_with_what_tells_it(tmp_path, shapes, metadata, alpha, told_by):
    file = read(write_model(tmp_path / "x", shapes, metadata=metadata), hashes="none")
    assert (file.alpha, file.alpha_told_by) == (alpha, told_by)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_alpha_is_read_from_its_tensors(tmp_path, dtype):
    """Two of them stand between the halves, which are not read."""
    path = tmp_path / "x.safetensors"

    def read_with(*alphas):
        tensors = {}
        for place, alpha in enumerate(alphas):
            module = f"lora_unet_down_blocks_1_attentions_{place}_proj_in"
            tensors[f"{module}.lora_down.weight"] = torch.zeros(4, 640)
            tensors[f"{module}.lora_up.weight"] = torch.zeros(640, 4)
            tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=dtype)
        save_file(tensors, path, metadata={"ss_network_alpha": "1"})
        file = read(path, hashes="none")
        return file.alpha, file.alpha_told_by

    assert read_with(32) == (32.0, "the tensors")
    assert read_with(32, 32) == (32.0, "the tensors")
    assert read_with(4, 32) == (None, "4 to 32, in the tensors")


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_exchanged_and_infinite_rows_of_an_embedding_are_told(tmp_path, names):
    first, second = names
    path = tmp_path / "x.safetensors"
    save_file({first: torch.zeros(2, 1280), second: torch.zeros(2, 768)}, path)
    (note,) = read(path, hashes="none").notes
    assert note == f"{first} and {second} are 1280 and 768 wide, expected 768 and 1280: exchanged"
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rows = torch.zeros(3, 1280, dtype=dtype)
        rows[1, 7], rows[2, 0] = torch.nan, torch.inf
        save_file({first: torch.zeros(3, 768, dtype=dtype), second: rows}, path)
        assert read(path, hashes="none").notes == (f"{second}: inf or NaN in the rows 1, 2",)
    save_file({first: torch.zeros(2, 768), second: torch.zeros(2, 1280)}, path)
    assert read(path, hashes="none").notes == ()


def test_what_the_header_tells_is_read_once(tmp_path, monkeypatch):
    path = write_model(tmp_path / "x", SDXL_LORA, metadata={"ss_tag_frequency": '{"1_a": {"b": 3}}'})
    read_times = []

    def count(path):
        read_times.append(path)
        return read_header(path)

    monkeypatch.setattr(facts, "read_header", count)
    first = read(path, hashes="none")
    assert read(path, hashes="none") == first
    assert len(read_times) == 1
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert read(path, hashes="none") == first
    assert len(read_times) == 2


def test_the_alpha_of_a_peft_folder_stands_in_its_configuration(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    write_model(path, ab(f"base_model.model.{UNET_ATTENTION[5:]}.to_k", 640, 2048))
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 16}')
    file = read(path, hashes="none")
    assert (file.rank, file.alpha, file.alpha_told_by) == (4, 16.0, "adapter_config.json")


@pytest.mark.parametrize(
    ("shapes", "tokens", "vectors"),
    [
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, ("<s0>", "<s1>"), 2),
        ({"<tile>": (768,)}, ("<tile>",), 1),
        ({"emb_params": (4, 768)}, (), 4),
        (SDXL_LORA | {"bundle_emb.tile.clip_l": (2, 768)}, ("<tile_0>", "<tile_1>"), None),
    ],
)
def test_the_tokens_of_an_embedding_are_named(tmp_path, shapes, tokens, vectors):
    file = read(write_model(tmp_path / "x", shapes), hashes="none")
    assert (file.tokens, file.vectors) == (tokens, vectors)


@pytest.mark.parametrize(
    ("metadata", "base", "told_by"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL", "modelspec.architecture"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux.1", "modelspec.architecture"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL", "ss_base_model_version"),
        ({"ss_base_model_version": "sd_v1"}, "SD 1", "ss_base_model_version"),
        ({"ss_v2": "True"}, "SD 2", "ss_v2"),
        ({"ss_base_model_version": "what?"}, None, None),
    ],
)
def test_where_no_shape_tells_the_metadata_does(tmp_path, metadata, base, told_by):
    shapes = lora({"lora_unet_mid_block_attentions_0_proj_in": (1280, 1280)})
    file = read(write_model(tmp_path / "x", shapes, metadata=metadata), hashes="none")
    assert file.base_model == base
    assert (file.base_told_by or "").startswith(told_by or "")


def test_shapes_win_over_metadata_and_the_conflict_is_told(tmp_path):
    metadata = {
        "ss_base_model_version": "sd_v1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    }
    file = read(write_model(tmp_path / "x", SDXL_LORA, metadata=metadata), hashes="none")
    assert (file.base_model, file.base_told_by) == ("SDXL", "cross-attention 2048 wide")
    assert file.base_conflict == "ss_base_model_version 'sd_v1' says SD 1"


def test_variants_of_a_checkpoint_are_told(tmp_path):
    shapes = {
        f"{WHOLE}input_blocks.0.0.weight": (320, 9, 3, 3),
        f"{WHOLE}input_blocks.4.{TO_K}": (640, 2048),
        "v_pred": (0,),
        "ztsnr": (0,),
    }
    file = read(write_model(tmp_path / "x", shapes), hashes="none")
    assert file.variant == "inpainting, v-prediction, zero terminal SNR"


NAMES = st.one_of(
    st.sampled_from([name for shapes, *_ in (*LORAS.values(), *OTHERS.values()) for name in shapes]),
    st.builds(
        "{}.{}".format,
        st.from_regex(r"[a-z_0-9.]{1,30}", fullmatch=True),
        st.sampled_from([*SUFFIXES, "weight"]),
    ),
)
TENSORS = st.dictionaries(
    NAMES,
    st.builds(
        TensorInfo, st.just("F16"), st.lists(st.integers(1, 4096), max_size=5).map(tuple), st.just((0, 2))
    ),
    max_size=8,
)
FIELDS = (
    "modelspec.architecture",
    "modelspec.trigger_phrase",
    "lora_adapter_metadata",
    "ss_base_model_version",
    "ss_dataset_dirs",
    "ss_network_alpha",
    "ss_tag_frequency",
    "ss_v2",
)
VALUES = (
    "{}",
    "[]",
    "{",
    "[1]",
    '{"a": 1}',
    '{"a": {"b": 1}}',
    "1e999",
    "nan",
    '{"1_x": {"img_count": "y"}}',
)
METADATA = st.dictionaries(st.sampled_from(FIELDS), st.one_of(st.text(max_size=20), st.sampled_from(VALUES)))


@pytest.mark.slow
@given(tensors=TENSORS, metadata=METADATA)
def test_recognition_answers_for_any_header_and_not_by_the_order(tensors, metadata):
    header = Header(tensors, metadata, 0)
    backwards = Header(dict(reversed(tensors.items())), metadata, 0)
    found, again = recognize(header), recognize(backwards)
    assert (found.kind, found.format, set(found.tokens)) == (again.kind, again.format, set(again.tokens))
    assert tell_base(header, found) == tell_base(backwards, again)
    read_notes(metadata)
    if (layout := read_layout(tensors)) is not None:
        modules = sum(sum(layers.values()) for layers in layout.count_modules().values())
        assert modules == len(layout.modules)
        assert sum(layout.count_ranks().values()) <= modules


def test_real_files_of_the_library_are_recognized(tiny_project):
    folder = tiny_project / "weights" / "tiny"
    kinds = {
        name: recognize(read_header(next((folder / name).glob("*.safetensors")))).kind
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    assert kinds == {
        "unet": "unet",
        "vae": "vae",
        "text_encoder": "text encoder",
        "text_encoder_2": "text encoder",
    }
    whole = read(folder)
    assert (whole.kind, whole.format, whole.base_model) == ("diffusers", "StableDiffusionXLPipeline", "SDXL")
    assert whole.components["unet"].class_name == "UNet2DConditionModel"
    assert whole.parameters == sum(part.parameters for part in whole.components.values())
    assert (whole.hash, whole.verified) == (None, None)
