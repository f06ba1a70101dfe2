"""Files made to be read half: each is loaded completely or refused with one line, and the weights stay."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_sdxl import COMPONENTS, build_pipeline
from tilemix.adapters import find_weights, read_embedding, read_lora, spell_modules
from tilemix.errors import AdapterError, ModelFileError

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"  # 32 x 32
SGM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"  # the same module
DOTTED = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"  # another one
WRAPPED = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_1_conv1"  # 16 x 16 x 3 x 3
MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def read():
    components = {name: getattr(build_pipeline(), name) for name in COMPONENTS}
    weights, names = find_weights(components), spell_modules(components)
    return lambda path: read_lora(path, weights, names)


def pair(name, *, halves=("lora_down.weight", "lora_up.weight"), rank=4, dtype=torch.float32):
    return {
        f"{name}.{halves[0]}": torch.ones((rank, 32), dtype=dtype),
        f"{name}.{halves[1]}": torch.ones((32, rank), dtype=dtype),
    }


A_B = ("lora_A.weight", "lora_B.weight")
NAN, INFINITE = torch.tensor(float("nan")), torch.tensor(float("inf"))


@pytest.mark.slow
def test_two_conventions_in_one_file_are_both_read(read, tmp_path):
    path = tmp_path / "x.safetensors"
    one = torch.tensor([2.0])  # an alpha of the shape (1,) is a number
    save_file(pair(KOHYA) | {f"{KOHYA}.alpha": one} | pair(DOTTED, halves=A_B), path)
    deltas = read(path).deltas
    assert {".".join(key): delta.factor for key, delta in deltas.items()} == {MODULE: 0.5, DOTTED: 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_of_16_bits_or_more_is_read(read, tmp_path, dtype):
    save_file(pair(KOHYA, dtype=dtype), tmp_path / "x.safetensors")
    assert len(read(tmp_path / "x.safetensors").deltas) == 1


FAULTS = {
    "one module in two spellings": (
        pair(KOHYA) | pair(SGM),
        f"x.safetensors: '{KOHYA}.lora_down.weight' and '{SGM}.lora_down.weight' are for the same weight",
    ),
    "one module in two ways": (
        pair(KOHYA) | pair(KOHYA, halves=A_B),
        f"x.safetensors: '{KOHYA}.lora_down.weight' and '{KOHYA}.lora_A.weight' are for the same weight",
    ),
    "an alpha that is no number": (
        pair(KOHYA) | {f"{KOHYA}.alpha": NAN},
        f"x.safetensors: alpha of {MODULE} is nan, expected at most 1e+06",
    ),
    "an infinite alpha": (
        pair(KOHYA) | {f"{KOHYA}.alpha": INFINITE},
        f"x.safetensors: alpha of {MODULE} is inf, expected at most 1e+06",
    ),
    "two alphas": (
        pair(KOHYA) | {f"{KOHYA}.alpha": torch.ones(2)},
        f"x.safetensors: alpha of {MODULE} has the shape (2,), expected one number",
    ),
    "an alpha alone": (
        {f"{KOHYA}.alpha": torch.ones(())},
        f"x.safetensors: incomplete LoRA for {MODULE}: only 'alpha'",
    ),
    "rank 0": (
        pair(KOHYA, rank=0),
        f"x.safetensors: 'down' of {MODULE} is empty",
    ),
    "a text encoder that SDXL has not": (
        pair("lora_te3_text_model_encoder_layers_0_mlp_fc1"),
        "x.safetensors: SD 3 LoRA is not supported; SDXL's LoRA, LoHa, LoKr, DoRA are",
    ),
    "a layer that the text encoder has not": (
        pair("lora_te1_text_model_encoder_layers_9_mlp_fc1"),
        "x.safetensors: no place in this model for 2 of its tensors: "
        "'lora_te1_text_model_encoder_layers_9_mlp_fc1.lora_down.weight'",
    ),
    "two adapters of PEFT's": (
        pair(DOTTED, halves=("lora_A.x.weight", "lora_B.y.weight")),
        "x.safetensors: holds several adapters: 'x' and 'y'; expected one",
    ),
    "a product that fp32 cannot hold": (
        {name: 1e25 * tensor for name, tensor in pair(KOHYA).items()},
        f"x.safetensors: the change of {MODULE} is beyond what float32 holds, though its tensors are finite",
    ),
    "doubles that fp32 cannot hold": (
        {name: 1e100 * tensor for name, tensor in pair(KOHYA, dtype=torch.float64).items()},
        f"x.safetensors: the change of {MODULE} is beyond what float32 holds",
    ),
    "norms that fp32 cannot hold": (
        pair(DOTTED, halves=A_B) | {f"{DOTTED}.lora_magnitude_vector": torch.full((32,), 1e30)},
        f"x.safetensors: the change of {DOTTED} is beyond what float32 holds",
    ),
    "8-bit floats": (
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in pair(KOHYA).items()},
        f"x.safetensors: 'down' of {MODULE} is float8_e4m3fn, expected a float of 16 bits or more",
    ),
    "whole numbers": (
        pair(KOHYA, dtype=torch.int32),
        f"x.safetensors: 'down' of {MODULE} is int32, expected a float of 16 bits or more",
    ),
    "both kinds of DoRA norms": (
        pair(DOTTED, halves=A_B)
        | {f"{DOTTED}.dora_scale": torch.ones(32, 1), f"{DOTTED}.lora_magnitude_vector": torch.ones(32)},
        f"x.safetensors: {DOTTED} has two kinds of DoRA norms: 'dora_scale' and 'magnitude'",
    ),
    "a kernel of another form": (
        {
            f"{CONVOLUTION}.lora_down.weight": torch.ones(4, 16, 1, 9),
            f"{CONVOLUTION}.lora_up.weight": torch.ones(16, 4, 1, 1),
        },
        "x.safetensors: made for another model: unet.down_blocks.0.resnets.1.conv1 is 16x16x1x9 in the file, "
        "16x16x3x3 in this model",
    ),
    "a letter of another script": (
        pair(KOHYA) | {"bundle_emb.плитка.clip_l": torch.ones(32)},
        "x.safetensors: the bundled embedding 'плитка' has clip_l alone",
    ),
    "two bundled names of one token": (
        pair(KOHYA)
        | {f"bundle_emb.{name}.clip_l": torch.ones(32) for name in ("a.b", "a_b")}
        | {f"bundle_emb.{name}.clip_g": torch.ones(48) for name in ("a.b", "a_b")},
        "x.safetensors: the bundled embedding '<a_b>' cannot be a token's name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_completely_is_refused(read, tmp_path, fault):
    tensors, message = FAULTS[fault]
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelFileError) as caught:
        read(path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_large_factors_of_a_small_change_are_read(read, tmp_path):
    """The bound from the largest numbers is too wide here: those of one half meet zeros of the other."""
    down, up = torch.zeros(2, 32), torch.zeros(32, 2)
    down[0], up[:, 1] = 1e15, 1e15
    save_file({f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}, tmp_path / "x.safetensors")
    assert len(read(tmp_path / "x.safetensors").deltas) == 1


def test_what_half_precision_cannot_hold_is_refused_for_it_alone(tmp_path):
    components = {name: getattr(build_pipeline(), name) for name in COMPONENTS}
    weights, names = find_weights(components), spell_modules(components)
    path = tmp_path / "x.safetensors"
    save_file({name: 200 * tensor for name, tensor in pair(KOHYA).items()}, path)  # 4 * 200 * 200
    assert read_lora(path, weights, names).deltas
    with pytest.raises(AdapterError, match="is beyond what float16 holds"):
        read_lora(path, {key: weight.half() for key, weight in weights.items()}, names)


def write_folder(folder, tensors, **config):
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8} | config))
    return folder


def test_modules_without_an_alpha_of_their_own_have_the_configurations(read, tmp_path):
    """One alpha among the tensors does not speak for the others."""
    tensors = pair(f"{WRAPPED}q", halves=A_B) | pair(f"{WRAPPED}k", halves=A_B)
    tensors[f"{WRAPPED}q.alpha"] = torch.tensor(1.0)
    deltas = read(write_folder(tmp_path, tensors)).deltas
    assert {key[1][-1]: delta.factor for key, delta in deltas.items()} == {"q": 0.25, "k": 2.0}


def test_dora_without_its_norms_is_refused(read, tmp_path):
    folder = write_folder(tmp_path, pair(f"{WRAPPED}q", halves=A_B), use_dora=True)
    with pytest.raises(AdapterError) as caught:
        read(folder)
    assert str(caught.value) == (
        f"adapter_config.json: use_dora is set, but {MODULE} has no magnitude in the file"
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"clip_l": torch.ones(2, 48), "clip_g": torch.ones(2, 32)},
            "x.safetensors: made for another model, 48 and 32 wide; this model's text encoders are 32 and 48 wide",
        ),
        (
            {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48), "clip_h": torch.ones(2, 48)},
            "x.safetensors: holds 'clip_g', 'clip_h' and 'clip_l'; expected 'clip_l with clip_g'",
        ),
        (
            {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48).to(torch.float8_e5m2)},
            "x.safetensors: the rows of text_encoder_2 are float8_e5m2, expected a float of 16 bits",
        ),
        (
            {"clip_l": torch.ones(0, 32), "clip_g": torch.ones(0, 48)},
            "x.safetensors: the rows of text_encoder are 0x32, expected tokens x width",
        ),
        (
            {"clip_l": torch.ones(2, 32), "clip_g": torch.full((2, 48), 1e300, dtype=torch.float64)},
            "x.safetensors: the rows of text_encoder_2 hold a number that is not finite",
        ),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, tensors, message):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(AdapterError) as caught:
        read_embedding(path, {"text_encoder": 32, "text_encoder_2": 48})
    assert str(caught.value).startswith(message)
