import logging
import shutil
import tarfile

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.tiny_sdxl import base_of, random_pairs, write_manifest
from tilemix.errors import AdapterError, ManifestError, ModelFileError
from tilemix.pipelines.loading import FAMILIES, find_family, load_pipeline
from tilemix.pipelines.schedulers import make_scheduler
from tilemix.pipelines.unet import load_unet
from tilemix.weights import find_model
from tilemix.weights import manifest as manifests
from tilemix.weights.calibration import Calibration, encode_calibration

QUERY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_lora_and_its_tokens_are_in_place_after_loading(project, caplog):
    plain = load_pipeline(find_model("tiny", project), CPU, torch.float32)
    halves = random_pairs(plain.base.pipeline, [QUERY])
    weights = project / "weights"
    tensors = {
        f"{QUERY}.lora_A.weight": halves[f"{QUERY}.down"],
        f"{QUERY}.lora_B.weight": halves[f"{QUERY}.up"],
    }
    save_file(tensors, weights / "tile_sdxl_lora.safetensors")
    rows = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}
    save_file(rows, weights / "tile_sdxl_embeddings.safetensors")
    adapters = [
        {"file": "tile_sdxl_lora.safetensors", "kind": "lora"},  # 0.7 without a scale
        {"file": "tile_sdxl_embeddings.safetensors", "kind": "embedding", "tokens": ["<s0>", "<s1>"]},
    ]
    write_manifest(project, base=base_of(project), adapters=adapters)
    caplog.set_level(logging.INFO, logger="tilemix")
    ready = load_pipeline(find_model("tiny", project), CPU, torch.float32)
    assert "Loaded LoRA: tile_sdxl_lora.safetensors (scale=0.7)" in caplog.messages
    assert "Loaded embedding: tile_sdxl_embeddings.safetensors (tokens=<s0><s1>)" in caplog.messages

    path = QUERY.removeprefix("unet.")
    before = plain.base.pipeline.unet.get_submodule(path).weight
    weight = ready.base.pipeline.unet.get_submodule(path).weight
    delta = halves[f"{QUERY}.up"] @ halves[f"{QUERY}.down"]
    torch.testing.assert_close(weight, before + 0.7 * delta)
    assert ready.base.pipeline.tokenizer_2("<s0><s1>").input_ids[1:3] == [49408, 49409]
    lora = "tile_sdxl_lora.safetensors"
    assert ready.lora_scales == {lora: 0.7}
    ready.loras.apply({lora: 1.2})
    torch.testing.assert_close(weight, before + 1.2 * delta)
    ready.loras.apply({lora: 0})
    assert torch.equal(weight, before)
    ready.loras.apply(ready.lora_scales)
    torch.testing.assert_close(weight, before + 0.7 * delta)

    model = find_model("tiny", project)
    calibration = Calibration(strength=1, colors={}, figures={}, files=dict(model.hashes), lora_scale=0.9)
    model.calibration.write_bytes(encode_calibration(calibration))
    ready = load_pipeline(model, CPU, torch.float32)
    assert "Loaded LoRA: tile_sdxl_lora.safetensors (scale=0.9)" in caplog.messages, "what a picture gets"
    torch.testing.assert_close(ready.base.pipeline.unet.get_submodule(path).weight, before + 0.9 * delta)
    assert ready.lora_scales == {lora: 0.7}, "the manifest's"


@pytest.mark.slow
def test_a_lora_that_brings_tokens_installs_them(project, caplog):
    """Under the manifest's names, or under the file's own."""
    weights = project / "weights"
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(4, 32), f"{QUERY}.lora_B.weight": torch.ones(32, 4)}
    rows = {"bundle_emb.floor.clip_l": torch.randn(2, 32), "bundle_emb.floor.clip_g": torch.randn(2, 48)}
    save_file(tensors | rows, weights / "bundle.safetensors")
    caplog.set_level(logging.INFO, logger="tilemix")
    for named, tokens in (([], "<floor_0><floor_1>"), (["<s0>", "<s1>"], "<s0><s1>")):
        adapters = [{"file": "bundle.safetensors", "kind": "lora", "scale": 0.7, "tokens": named}]
        write_manifest(project, base=base_of(project), adapters=adapters)
        ready = load_pipeline(find_model("tiny", project), CPU, torch.float32)
        assert f"Loaded embedding: bundle.safetensors (tokens={tokens})" in caplog.messages
        assert "".join(ready.tokens.installed) == tokens
        assert ready.base.pipeline.tokenizer(tokens).input_ids[1:3] == [49408, 49409]
        matrix = ready.base.pipeline.text_encoder_2.get_input_embeddings().weight
        assert torch.equal(matrix[49408:], rows["bundle_emb.floor.clip_g"])
    write_manifest(project, base=base_of(project), adapters=[adapters[0] | {"tokens": ["<s0>"]}])
    with pytest.raises(AdapterError, match="^bundle.safetensors: 2 rows for 1 tokens$"):
        load_pipeline(find_model("tiny", project), CPU, torch.float32)
    save_file(tensors, weights / "bundle.safetensors")
    with pytest.raises(
        AdapterError, match="^bundle.safetensors: a LoRA without embeddings; the manifest names"
    ):
        load_pipeline(find_model("tiny", project), CPU, torch.float32)


@pytest.mark.slow
def test_the_archive_of_a_training_is_one_adapter(project):
    weights = project / "weights"
    path = QUERY.removeprefix("unet.").replace(".to_q", ".processor.to_q_lora")
    lora, rows, names = (
        weights / name for name in ("lora.safetensors", "embeddings.pti", "special_params.json")
    )
    save_file({f"{path}.down.weight": torch.ones(4, 32), f"{path}.up.weight": torch.ones(32, 4)}, lora)
    save_file({"text_encoders_0": torch.randn(2, 32), "text_encoders_1": torch.randn(2, 48)}, rows)
    names.write_text('{"TOK": "<s0><s1>"}')
    with tarfile.open(weights / "trained_model.tar", "w") as archive:
        for file in (lora, rows, names):
            archive.add(file, arcname=file.name)
    adapters = [{"file": "trained_model.tar", "kind": "lora", "scale": 0.7}]
    write_manifest(project, base=base_of(project), adapters=adapters)
    plain = load_pipeline(find_model("tiny", project), CPU, torch.float32)
    assert plain.tokens.installed == ("<s0>", "<s1>")
    weight = plain.base.pipeline.unet.get_submodule(QUERY.removeprefix("unet.")).weight
    merged = weight.clone()
    assert plain.lora_scales == {"trained_model.tar": 0.7}
    plain.loras.apply({"trained_model.tar": 0})
    torch.testing.assert_close(merged - weight, torch.full((32, 32), 0.7 * 4))


@pytest.mark.slow
def test_embeddings_without_names_in_the_manifest_have_the_files_own(project):
    weights = project / "weights"
    rows = {"text_encoders_0": torch.randn(2, 32), "text_encoders_1": torch.randn(2, 48)}
    save_file(rows, weights / "embeddings.pti")
    adapters = [{"file": "embeddings.pti", "kind": "embedding"}]
    write_manifest(project, base=base_of(project), adapters=adapters)
    assert load_pipeline(find_model("tiny", project), CPU, torch.float32).tokens.installed == ("<s0>", "<s1>")
    (weights / "special_params.json").write_text('{"TOK": "<a><b>"}')
    assert load_pipeline(find_model("tiny", project), CPU, torch.float32).tokens.installed == ("<a>", "<b>")


@pytest.mark.slow
def test_a_picture_of_1024_is_decoded_in_one_piece_and_a_larger_one_in_tiles(project):
    """The VAE says sample_size 512, as the fp16-fix VAE does; left alone, 1024 would be tiled and differ."""
    vae = load_pipeline(find_model("tiny", project), CPU, torch.float32).base.pipeline.vae
    assert vae.use_tiling
    assert vae.use_slicing
    generator = torch.Generator().manual_seed(0)
    # One side decides; the other one is short, so that there is little to decode.
    whole = torch.randn((1, 4, 128, 8), generator=generator)
    large = torch.randn((1, 4, 129, 8), generator=generator)

    def decode(latents, *, tiling):
        vae.use_tiling = tiling
        with torch.inference_mode():
            return vae.decode(latents).sample

    assert torch.equal(decode(whole, tiling=True), decode(whole, tiling=False))
    assert not torch.equal(decode(large, tiling=True), decode(large, tiling=False))


@pytest.mark.slow
def test_the_scheduler_is_made_anew_from_the_files_own_configuration(project):
    """from_config(pipeline.scheduler.config) would keep Karras sigmas on for whatever comes next."""
    ready = load_pipeline(find_model("tiny", project), CPU, torch.float32)
    first = ready.make_scheduler()
    ready.base.pipeline.scheduler = first
    second = ready.make_scheduler()
    plain = make_scheduler("euler", ready.scheduler_config)
    assert plain.config.use_karras_sigmas is False
    assert first is not second
    assert type(first).__name__ == "DPMSolverMultistepScheduler"
    assert first.config.use_karras_sigmas
    assert first.config.algorithm_type == "dpmsolver++"
    assert first.config.beta_end == 0.012
    assert not ready.scheduler_config["use_karras_sigmas"]


@pytest.mark.slow
def test_an_adapter_for_another_model_stops_the_loading(project):
    down, up = torch.zeros(4, 640), torch.zeros(640, 4)
    path = project / "weights" / "big.safetensors"
    save_file({f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up}, path)
    write_manifest(project, base=base_of(project), adapters=[{"file": "big.safetensors", "kind": "lora"}])
    with pytest.raises(AdapterError, match="^big.safetensors: made for another model: "):
        load_pipeline(find_model("tiny", project), CPU, torch.float32)


def test_a_truncated_base_file_is_refused_by_name(project, tiny_project):
    path = copy_base(project, tiny_project)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="truncated"):
        load_pipeline(find_model("tiny", project), CPU, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_in.bias": None}, "tensor conv_in.bias: missing, in the UNet of config.json: (16,)"),
        ({"conv_in.more": 1}, "tensor conv_in.more: (1,), in the UNet of config.json: missing"),
        ({"conv_in.bias": 31}, "tensor conv_in.bias: (31,), in the UNet of config.json: (16,)"),
    ],
)
def test_a_unet_that_is_not_its_configurations_is_refused(project, tiny_project, change, message):
    path = copy_base(project, tiny_project)
    tensors = load_file(path)
    for name, width in change.items():
        tensors.pop(name, None)
        if width:
            tensors[name] = torch.zeros(width)
    save_file(tensors, path)
    with pytest.raises(ModelFileError) as caught:
        load_pipeline(find_model("tiny", project), CPU, torch.float32)
    assert str(caught.value) == f"{path}: {message}"


def test_a_configuration_that_is_no_unets_is_refused(project, tiny_project):
    path = copy_base(project, tiny_project)
    path.with_name("config.json").write_text("{")
    with pytest.raises(ModelFileError, match=f"^{path}: not a UNet that diffusers can load: "):
        load_pipeline(find_model("tiny", project), CPU, torch.float32)


@pytest.mark.slow
def test_the_unet_is_the_one_that_diffusers_reads(project):
    for dtype in (torch.float32, torch.bfloat16):
        model = find_model("tiny", project)
        ours = load_unet(model.base / "unet", find_unet(model.base), CPU, dtype)
        theirs = UNet2DConditionModel.from_pretrained(model.base / "unet", torch_dtype=dtype)
        assert (ours.training, ours.dtype) == (theirs.training, theirs.dtype) == (False, dtype)
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
        drop = ("_name_or_path", "_use_default_values")
        configs = [{k: v for k, v in one.config.items() if k not in drop} for one in (ours, theirs)]
        assert configs[0] == configs[1]


def copy_base(project, tiny_project):
    """Give the project a base of its own, and return its UNet's file."""
    folder = project / "weights" / "tiny"
    folder.unlink()
    shutil.copytree(tiny_project / "weights" / "tiny", folder)
    return find_unet(folder)


def find_unet(folder):
    (path,) = (folder / "unet").glob("*.safetensors")
    return path


@pytest.mark.slow
def test_an_unknown_scheduler_stops_the_loading(project):
    write_manifest(project, base=base_of(project), scheduler={"name": "eular"})
    with pytest.raises(ManifestError, match="^tiny.model.json: unknown scheduler 'eular'; known: "):
        load_pipeline(find_model("tiny", project), CPU, torch.float32)


def test_every_family_that_a_manifest_may_name_has_its_code(project):
    assert tuple(FAMILIES) == tuple(manifests.BASE_FAMILIES)
    assert find_family(find_model("tiny", project)) is FAMILIES["sdxl"]
