"""A web UI's folder becomes manifests that point at its files, and what is left out has its reason."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny_sd1
from tests.model_files import SDXL_LORA, lora, write_model
from tilemix.errors import WeightsError
from tilemix.weights import find_missing, load_manifest, locate_model
from tilemix.weights.webui import import_folder

ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SD1_LORA = lora({ATTENTION: (320, 768)})
CHECKPOINT = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
}
SDXL = {
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    "model.diffusion_model.input_blocks.7.1.transformer_blocks.9.norm1.weight": (1280,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
VAE = {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}


@pytest.fixture
def folder(tmp_path):
    """A web UI's folder as one finds it."""
    ui = tmp_path / "ui"
    for name in ("Stable-diffusion/anime", "Lora", "VAE", "hypernetworks", "ESRGAN", "Stable-diffusion/_old"):
        (ui / "models" / name).mkdir(parents=True)
    (ui / "embeddings").mkdir()
    models = ui / "models"
    final = models / "Stable-diffusion/anime/Final pruned (v2).safetensors"
    write_model(final, CHECKPOINT)
    final.with_suffix(".yaml").write_text(tiny_sd1.YAML)
    write_model(final.with_suffix(".vae.safetensors"), VAE)
    write_model(models / "Stable-diffusion/xl.safetensors", SDXL)
    write_model(models / "Stable-diffusion/_old/hidden.safetensors", CHECKPOINT)
    torch.save({"state_dict": {"a": torch.zeros(2)}}, models / "Stable-diffusion/it's.ckpt")
    write_model(models / "Lora/floor.safetensors", SD1_LORA)
    write_model(models / "Lora/for xl.safetensors", SDXL_LORA)
    write_model(models / "Lora/broken.safetensors", {f"{ATTENTION}.lora_down.weight": (4, 768)})
    write_model(models / "VAE/other.safetensors", VAE)
    save_file({"x": torch.zeros(2)}, models / "ESRGAN/4x.pth")
    torch.save({"a": torch.zeros(2)}, models / "Lora/floor.pt")
    (models / "Lora/floor.preview.png").write_bytes(b"")
    return ui


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/weights").mkdir(parents=True)
    (tmp_path / "root/prompt_templates").mkdir()
    (tmp_path / "root/prompt_templates/plain.json").write_text("{}")
    return tmp_path / "root"


def test_a_checkpoint_gets_a_manifest_that_points_at_its_files(folder, root):
    made = import_folder(folder, root=root)
    assert [path.name for path in made.manifests] == ["final_pruned_v2.model.json"]
    model = locate_model("final_pruned_v2", root)
    assert [file.path for file in model.manifest.base.files] == [
        "final_pruned_v2.safetensors",
        "final_pruned_v2.yaml",
        "final_pruned_v2.vae.safetensors",
    ]
    checkpoint = model.base / "final_pruned_v2.safetensors"
    assert checkpoint.is_symlink()
    assert checkpoint.resolve() == folder / "models/Stable-diffusion/anime/Final pruned (v2).safetensors"
    assert [(a.file, a.kind, a.scale) for a in model.manifest.adapters] == [
        ("webui/floor.safetensors", "lora", 0)
    ]
    assert find_missing(model.manifest, root) == []
    reasons = {str(one.path.relative_to(folder / "models")): str(one.reason) for one in made.unused}
    assert reasons.keys() == {
        "Stable-diffusion/xl.safetensors", "Stable-diffusion/it's.ckpt", "Lora/for xl.safetensors",
        "Lora/broken.safetensors", "Lora/floor.pt", "VAE/other.safetensors", "ESRGAN/4x.pth",
    }  # fmt: skip
    assert "a checkpoint of SDXL" in reasons["Stable-diffusion/xl.safetensors"]
    assert reasons["Stable-diffusion/it's.ckpt"].startswith(
        "a pickle; convert it first: tilemix weights convert '"
    )
    assert reasons["Lora/for xl.safetensors"] == "made for SDXL, and no checkpoint of that base is here"
    assert "incomplete LoRA" in reasons["Lora/broken.safetensors"]
    assert reasons["Lora/floor.pt"] == "converted already: floor.safetensors"
    assert reasons["ESRGAN/4x.pth"] == "upscalers are not supported"


def test_a_manifest_that_is_there_stays_and_copies_are_files(folder, root):
    manifest = import_folder(folder, root=root).manifests[0]
    changed = json.loads(manifest.read_text()) | {"license": "mine"}
    manifest.write_text(json.dumps(changed))
    again = import_folder(folder / "models", root=root)
    assert again.manifests == []
    assert any("is there already" in str(one.reason) for one in again.unused)
    assert load_manifest("final_pruned_v2", root).license == "mine"
    import_folder(folder, root=root, copies=True, replaces=True)
    assert load_manifest("final_pruned_v2", root).license == "unknown"
    assert not (root / "weights/files/final_pruned_v2/final_pruned_v2.yaml").is_symlink()


def test_names_are_spelled_readably_and_none_is_given_twice(tmp_path, root):
    models = tmp_path / "ui/models"
    for folder in ("Stable-diffusion", "Lora/a", "Lora/b"):
        (models / folder).mkdir(parents=True)
    for name in ("Größe", "grosse", "Été №2", "床"):
        write_model(models / "Stable-diffusion" / f"{name}.safetensors", CHECKPOINT)
    for name in ("a/Ölfleck", "b/olfleck", "a/x y", "b/x_y"):
        write_model(models / "Lora" / f"{name}.safetensors", SD1_LORA)
    made = import_folder(models, root=root)
    names = [path.name.removesuffix(".model.json") for path in made.manifests]
    assert names == ["grosse", "grosse_2", "ete_no2", "model"]
    for name, stem in zip(names, ("Größe", "grosse", "Été №2", "床"), strict=True):
        placed = root / "weights/files" / name / f"{name}.safetensors"
        assert placed.resolve() == models / "Stable-diffusion" / f"{stem}.safetensors"
    adapters = load_manifest("grosse", root).adapters

    def source(adapter):
        return (root / "weights/files" / adapter.file).resolve().stem

    assert {one.file.removeprefix("webui/").removesuffix(".safetensors"): source(one) for one in adapters} == {
        "Olfleck": "Ölfleck", "olfleck": "olfleck", "x_y": "x_y", "x_y_2": "x y"
    }  # fmt: skip


def test_a_hostile_yaml_leaves_its_checkpoint_out(folder, root):
    yaml = folder / "models/Stable-diffusion/anime/Final pruned (v2).yaml"
    yaml.write_text("model: !!python/name:os.system")
    made = import_folder(folder, root=root)
    assert made.manifests == []
    assert sum("Final pruned (v2).yaml: cannot be read" in str(one.reason) for one in made.unused) == 2


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds none of the folders of a web UI"):
        import_folder(tmp_path)
    with pytest.raises(WeightsError, match="no such folder"):
        import_folder(tmp_path / "x")


def import_second(tmp_path, root, name, *, seed, **options):
    """Import a folder with a checkpoint and a LoRA, style.safetensors, of its own."""
    models = tmp_path / name / "models"
    for folder in ("Stable-diffusion", "Lora"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    write_model(models / f"Stable-diffusion/{name}.safetensors", CHECKPOINT)
    torch.manual_seed(seed)
    pair = {
        f"{ATTENTION}.lora_down.weight": torch.rand(4, 768),
        f"{ATTENTION}.lora_up.weight": torch.rand(320, 4),
    }
    save_file(pair, models / "Lora/style.safetensors")
    return import_folder(models, root=root, **options)


@pytest.mark.parametrize("copies", [False, True])
def test_a_second_import_leaves_the_files_of_the_first_alone(tmp_path, root, copies):
    """Both folders' style.safetensors had one name, and the first model drew with the second one's LoRA."""
    import_second(tmp_path, root, "first", seed=1, copies=copies)
    made = import_second(tmp_path, root, "second", seed=2, copies=copies)
    assert made.named == {tmp_path / "second/models/Lora/style.safetensors": "style_2"}
    assert import_second(tmp_path, root, "second", seed=2, copies=copies).named == {}
    import_second(tmp_path, root, "second", seed=2, copies=copies, replaces=True)
    for name, file in (("first", "style"), ("second", "style_2")):
        (adapter,) = load_manifest(name, root).adapters
        assert adapter.file == f"webui/{file}.safetensors"
        placed = root / "weights/files" / adapter.file
        assert placed.read_bytes() == (tmp_path / name / "models/Lora/style.safetensors").read_bytes()


def test_a_base_that_another_manifest_uses_is_not_replaced(tmp_path, root):
    import_second(tmp_path, root, "first", seed=1)
    manifest = root / "weights/first.model.json"
    manifest.with_name("mine.model.json").write_bytes(manifest.read_bytes())
    other = tmp_path / "other/first"
    (other / "Stable-diffusion").mkdir(parents=True)
    write_model(other / "Stable-diffusion/first.safetensors", CHECKPOINT | VAE)
    made = import_folder(other, root=root, replaces=True)
    assert [str(one.reason) for one in made.unused] == [
        "weights/files/first holds another file of that name, which is in use by 'mine'"
    ]


def test_embeddings_get_tokens_whatever_they_are_called_and_new_names_are_told(tmp_path, root):
    """One file's name stopped the whole import."""
    models = tmp_path / "ui"
    for folder in ("Stable-diffusion", "embeddings", "Lora"):
        (models / folder).mkdir(parents=True)
    write_model(models / "Stable-diffusion/final.safetensors", CHECKPOINT)
    for name in ("bad_v1.3", "bad_v1_3", "n" * 70, "плохие цвета"):
        save_file({"emb_params": torch.rand(2, 768)}, models / "embeddings" / f"{name}.safetensors")
    bundle = {
        f"{ATTENTION}.{half}": torch.rand(shape)
        for half, shape in (("lora_down.weight", (4, 768)), ("lora_up.weight", (320, 4)))
    }
    save_file(bundle, models / "Lora/Їжак и Щука.safetensors")
    made = import_folder(models, root=root)
    adapters = load_manifest("final", root).adapters
    assert {one.file.removeprefix("webui/").removesuffix(".safetensors"): one.tokens for one in adapters} == {
        "Izhak_i_Shchuka": (),
        "bad_v1.3": ("<bad_v1_3_0>", "<bad_v1_3_1>"),
        "bad_v1_3": ("<bad_v1_3_2_0>", "<bad_v1_3_2_1>"),
        "n" * 70: (f"<{'n' * 60}_0>", f"<{'n' * 60}_1>"),
        "plokhie_tsveta": ("<plokhie_tsveta_0>", "<plokhie_tsveta_1>"),
    }
    assert {path.stem: name for path, name in made.named.items()} == {
        "плохие цвета": "plokhie_tsveta",
        "Їжак и Щука": "Izhak_i_Shchuka",
    }


def test_what_is_not_a_file_is_listed(tmp_path, root):
    loras = tmp_path / "ui/Lora"
    (loras / "real").mkdir(parents=True)
    os.mkfifo(loras / "pipe.safetensors")
    (loras / "zero.safetensors").symlink_to("/dev/zero")
    (loras / "gone.safetensors").symlink_to("nowhere.safetensors")
    (loras / "more").symlink_to("real")
    unused = {one.path.name: str(one.reason) for one in import_folder(tmp_path / "ui", root=root).unused}
    assert unused == {
        "gone.safetensors": f"a link to {loras}/nowhere.safetensors, which is not there",
        "more": f"a link to the folder {loras}/real, which is not followed; import that one",
        "pipe.safetensors": "pipe.safetensors: not a regular file",
        "zero.safetensors": "zero.safetensors: not a regular file",
    }
