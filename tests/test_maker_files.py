"""The maker's own adapter files: the real tokens where they are at hand, and a LoRA of exactly his layout."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_sdxl import build_pipeline
from tilemix.adapters.fit import PUBLISHED, read_shapes
from tilemix.adapters.lora_file import read_lora
from tilemix.adapters.merging import merge
from tilemix.adapters.names import find_weights, spell_modules
from tilemix.modelfile.hashes import compute_hashes
from tilemix.modelfile.inspection import read
from tilemix.system.project import ROOT
from tilemix.weights import load_manifest

MAKER = ROOT.parent / "shared" / "data" / "maker"
LORA, TOKENS = load_manifest("rubber-tile").adapters
SIZE = 101_961_928  # bytes
ENDINGS = ("to_q", "to_k", "to_v", "to_out.0", "conv2")  # of the modules that his trainer changed
RANK = 32


def is_changed(key):
    component, name = key
    return component == "unet" and name.endswith(ENDINGS)


def write_layout(path, weights):
    """Write a LoRA of the maker's layout for the UNet's modules: BF16, alphas in INT64, no metadata, all else zero."""
    parts = {}
    for (_, name), weight in weights.items():
        rows, columns, *kernel = weight.shape
        module = f"lora_unet_{name.replace('.', '_')}"
        parts[f"{module}.alpha"] = ("I64", [], 8)
        parts[f"{module}.lora_down.weight"] = ("BF16", [RANK, columns, *kernel], 2)
        parts[f"{module}.lora_up.weight"] = ("BF16", [rows, RANK, *([1] * len(kernel))], 2)
    header, alphas, position = {}, [], 0
    for name in sorted(parts, key=lambda name: (-parts[name][2], name)):  # as the library sorts them
        dtype, shape, width = parts[name]
        end = position + math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        if dtype == "I64":
            alphas.append(position)
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for alpha in alphas:
            file.seek(8 + len(raw) + alpha)
            file.write(RANK.to_bytes(8, "little"))
        file.truncate(8 + len(raw) + position)
    return path


@pytest.mark.slow
def test_a_lora_of_his_layout_is_told_and_fits_in_full_size(tmp_path):
    shapes = read_shapes(tmp_path, "stabilityai/stable-diffusion-xl-base-1.0")
    weights = {key: weight for key, weight in shapes.weights.items() if is_changed(key)}
    assert len(weights) == 577
    path = write_layout(tmp_path / LORA.file, weights)
    assert path.stat().st_size == LORA.size == SIZE
    file = read(path, hashes="none")
    assert (file.kind, file.base_model, file.rank, file.alpha) == ("lora", "SDXL", RANK, 32.0)
    assert file.format == "LoCon (kohya, diffusers blocks)"
    assert file.modules == {"unet": {"attention": 560, "convolution": 17}}
    assert (file.tensors, file.dtype, file.notes, file.metadata) == (3 * 577, "BF16", (), {})
    shapes.prove_lora(path, 0)


def test_a_lora_of_his_layout_is_merged_exactly(tmp_path):
    pipeline = build_pipeline()
    components = {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    weights = find_weights(components)
    generator = torch.Generator().manual_seed(5)
    tensors, expected = {}, {}
    for key in filter(is_changed, weights):
        rows, columns, *kernel = weights[key].shape
        down = torch.randn((4, columns, *kernel), generator=generator).mul(0.1).bfloat16()
        up = torch.randn((rows, 4, *(1 for _ in kernel)), generator=generator).bfloat16()
        module = f"lora_unet_{key[1].replace('.', '_')}"
        tensors |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        tensors[f"{module}.alpha"] = torch.tensor(8)
        change = up.double().flatten(1) @ down.double().flatten(1) * 8 / 4
        expected[key] = weights[key].double() + 0.7 * change.view_as(weights[key])
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors", weights, spell_modules(components))
    assert lora.deltas.keys() == expected.keys()
    for key, delta in lora.deltas.items():
        weight = weights[key].detach()
        merge(weight, weight.clone(), [(delta, 0.7)])
        torch.testing.assert_close(weight.double(), expected[key], rtol=1e-5, atol=1e-6)


def test_his_tokens_are_the_ones_in_the_manifest_and_fit():
    path = MAKER / TOKENS.file
    if not path.is_file():
        pytest.skip("the maker's tokens are not here: ../shared/data/maker")
    assert (path.stat().st_size, compute_hashes(path).sha256) == (TOKENS.size, TOKENS.sha256)
    file = read(path, hashes="none")
    assert (file.kind, file.base_model, file.tokens, file.notes) == (
        "embedding",
        "SDXL",
        ("<s0>", "<s1>"),
        (),
    )
    repository = load_manifest("rubber-tile").base.repository
    assert repository in PUBLISHED
    read_shapes(path.parent, repository).prove_embedding(path, 2)
