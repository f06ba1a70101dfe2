"""From `weights add` to the picture: trainings and PEFT folders, added, locked, loaded and drawn with."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapter_crafts import (
    LINEAR,
    Workbench,
    bare,
    find_differing,
    peft_folder,
    read_weights,
    training_tar,
)
from tests.https_server import redirect, serve
from tests.tiny_sdxl import base_of, write_manifest
from tilemix.errors import AdapterError, ManifestError, MissingFilesError, ModelFileError, WeightsError
from tilemix.pipelines.loading import load_pipeline
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import find_model, load_manifest, verify
from tilemix.weights.add import add
from tilemix.weights.entry import Wish
from tilemix.weights.fetch import fetch
from tilemix.weights.lock import lock

CPU = torch.device("cpu")
CONFIG = {"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 12.0}}
FILE = "mine/adapter_model.safetensors"


def load(root):
    return load_pipeline(find_model("tiny", root), CPU, torch.float32)


@pytest.fixture(scope="module")
def plain(tiny_project):
    """The tiny model without adapters."""
    return load(tiny_project)


@pytest.fixture
def bench(plain, tmp_path):
    (tmp_path / "source").mkdir()
    return Workbench(read_weights(plain.base.pipeline), tmp_path / "source")


@pytest.fixture
def folder(bench):
    """A PEFT folder `mine` and what it must do to the weights."""
    path, truth = peft_folder(
        CONFIG, lambda module: 12 / 4 if "attn1.to_q" in module else 2 / 4, modules=LINEAR, folder="mine"
    )(bench)
    return path, truth


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(ready, **changes):
    request = GenerationRequest(prompt="60% red, 40% black", seed=7, **changes)
    return Renderer(ready).render(request).pixels


def assert_merged(ready, truth, scale):
    weights = read_weights(ready.base.pipeline)
    assert find_differing(weights, {name: weight.float() for name, weight in truth(scale).items()}) == []


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["file", "address"])
def test_a_training_is_added_locked_loaded_and_changes_the_picture(project, bench, server, origin):
    path, truth = training_tar(bench)
    server.routes["/pbxt/abc/trained_model.tar"] = serve(path.read_bytes())
    source = str(path) if origin == "file" else f"{server.url}/pbxt/abc/trained_model.tar"
    added = add(source, "tiny", root=project, web=server.web())
    lock("tiny", project)
    (adapter,) = load_manifest("tiny", project).adapters
    assert adapter == added.adapter
    assert (adapter.file, adapter.kind, adapter.scale, adapter.tokens) == (
        "trained_model.tar", "lora", 0.7, ("<s0>", "<s1>"),
    )  # fmt: skip
    assert (adapter.size, adapter.sha256) == (path.stat().st_size, digest(path))
    ready = load(project)
    assert ready.tokens.installed == ("<s0>", "<s1>")
    assert_merged(ready, truth, 0.7)
    picture, tokens_alone = draw(ready), draw(ready, lora_scale=0.0)
    assert not np.array_equal(picture, tokens_alone)
    assert not np.array_equal(tokens_alone, draw(load_with_blank_tokens(project)))
    again = add(source, "tiny", root=project, web=server.web())
    assert again.change == "unchanged"
    broken = bytearray(added.path.read_bytes())
    broken[-2000] ^= 1
    added.path.write_bytes(broken)
    with pytest.raises(ModelFileError, match="^.*trained_model.tar: sha256 .*, the manifest says "):
        find_model("tiny", project)


def load_with_blank_tokens(root):
    """The same model with zeros for the training's rows, and no LoRA."""
    manifest = root / "weights" / "tiny.model.json"
    kept = manifest.read_bytes()
    rows = {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)}
    save_file(rows, root / "weights" / "blank.safetensors")
    adapters = [{"file": "blank.safetensors", "kind": "embedding"}]
    write_manifest(root, base=base_of(root), adapters=adapters)
    ready = load(root)
    manifest.write_bytes(kept)
    return ready


@pytest.mark.slow
def test_a_trainings_tokens_may_be_called_otherwise_but_not_be_more(project, bench):
    path, _ = training_tar(bench)
    message = "^trained_model.tar: tokens '<a>', expected 2 different ones, one for each row$"
    with pytest.raises(AdapterError, match=message):
        add(str(path), "tiny", Wish(tokens=("<a>",)), root=project)
    add(str(path), "tiny", Wish(tokens=("<a>", "<b>"), file_name="mine.tar"), root=project)
    assert load(project).tokens.installed == ("<a>", "<b>")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "its file", "another name"])
def test_a_peft_folder_is_added_with_its_configuration_under_the_lock(project, folder, form):
    path, truth = folder
    source = path
    if form == "its file":
        source = path / "adapter_model.safetensors"
    elif form == "another name":  # PEFT's names inside tell that there is a configuration
        source = (path / "adapter_model.safetensors").rename(path / "mine.safetensors")
    added = add(str(source), "tiny", root=project)
    config = path / "adapter_config.json"
    assert added.path == project / "weights" / "files" / FILE
    assert added.adapter.file == FILE
    (beside,) = added.adapter.beside
    assert (beside.path, beside.size, beside.sha256) == (config.name, config.stat().st_size, digest(config))
    manifest = project / "weights" / "tiny.model.json"
    before = json.loads(manifest.read_bytes())["adapters"]
    lock("tiny", project)
    assert load_manifest("tiny", project).adapters == (added.adapter,)
    assert json.loads(manifest.read_bytes())["adapters"] == before
    model = find_model("tiny", project)
    assert model.hashes["mine/adapter_config.json"] == beside.sha256
    assert_merged(load(project), truth, 0.7)
    assert add(str(source), "tiny", root=project).change == "unchanged"


@pytest.mark.slow
def test_a_changed_configuration_is_refused_before_loading(project, folder):
    path, truth = folder
    added = add(str(path), "tiny", root=project)
    config = added.path.with_name("adapter_config.json")
    kept = config.read_bytes()
    config.write_bytes(kept.replace(b"12.0", b"13.0"))
    message = f"{config}: sha256 {digest(config)}, the manifest says {hashlib.sha256(kept).hexdigest()}"
    with pytest.raises(ModelFileError) as caught:
        find_model("tiny", project)
    assert str(caught.value) == message
    assert [state.fault for state in verify("tiny", project) if state.fault] == [message]
    config.unlink()
    with pytest.raises(MissingFilesError, match=f"lacks 1 of its files: {config} "):
        find_model("tiny", project)
    config.write_bytes(kept)
    assert_merged(load(project), truth, 0.7)


@pytest.mark.slow
def test_another_configuration_does_not_replace_the_one_here(project, folder):
    path, _ = folder
    added = add(str(path), "tiny", root=project)
    config = path / "adapter_config.json"
    there = added.path.with_name("adapter_config.json")
    kept = there.read_bytes()
    config.write_bytes(config.read_bytes().replace(b"12.0", b"4.0"))
    with pytest.raises(AdapterError) as caught:
        add(str(path), "tiny", root=project)
    assert str(caught.value) == (
        f"{FILE}: adapter_config.json: sha256 {digest(config)}, but {there} has "
        f"{hashlib.sha256(kept).hexdigest()}; --replace puts this one there"
    )
    assert there.read_bytes() == kept
    again = add(str(path), "tiny", Wish(replaces=True), root=project)
    assert (again.change, again.adapter.beside[0].sha256) == ("updated", digest(config))
    find_model("tiny", project)
    other = add(str(path), "tiny", Wish(file_name="other"), root=project)
    assert other.adapter.file == "other/adapter_model.safetensors"


@pytest.mark.slow
def test_a_locked_manifest_written_by_hand_does_not_leave_the_configuration_out(project, folder):
    path, truth = folder
    (project / "weights" / "files").mkdir()
    path.rename(project / "weights" / "files" / "mine")
    place = project / "weights" / "files" / FILE
    entry = {"file": FILE, "kind": "lora", "scale": 1.0}
    locked = entry | {"size": place.stat().st_size, "sha256": digest(place)}
    write_manifest(project, base=base_of(project), adapters=[locked])
    config = place.with_name("adapter_config.json")
    with pytest.raises(ModelFileError) as caught:
        find_model("tiny", project)
    assert str(caught.value) == (
        f"{config}: not in the manifest, but adapter_model.safetensors depends on it; "
        "record it: tilemix weights lock tiny"
    )
    lock("tiny", project)
    (adapter,) = load_manifest("tiny", project).adapters
    assert [(file.path, file.sha256) for file in adapter.beside] == [("adapter_config.json", digest(config))]
    assert_merged(load(project), truth, 1.0)


@pytest.mark.slow
def test_a_peft_folder_comes_from_an_address_and_is_fetched_again(project, folder, server):
    path, truth = folder
    for file in path.iterdir():
        server.routes[f"/owner/{file.name}"] = serve(file.read_bytes())
    url = f"{server.url}/owner/adapter_model.safetensors"
    with pytest.raises(AdapterError, match="^adapter_model.safetensors is every PEFT LoRA's name; name its"):
        add(url, "tiny", root=project, web=server.web())
    added = add(url, "tiny", Wish(file_name="mine"), root=project, web=server.web())
    assert (added.adapter.file, added.adapter.url) == (FILE, url)
    assert_merged(load(project), truth, 0.7)
    places = [added.path, added.path.with_name("adapter_config.json")]
    for place in places:
        place.unlink()
    assert fetch("tiny", project, web=server.web()) == places
    assert_merged(load(project), truth, 0.7)
    places[1].unlink()
    server.routes["/owner/adapter_config.json"] = serve(b'{"lora_alpha": 100}')
    with pytest.raises(WeightsError, match="^.*adapter_config.json: announces 19 bytes, expected "):
        fetch("tiny", project, web=server.web())
    assert not places[1].exists()


def test_a_peft_file_without_its_configuration_is_not_added(project, folder, server):
    path, _ = folder
    config = path / "adapter_config.json"
    config.write_text("<html>")
    with pytest.raises(ModelFileError, match=f"^{config}: cannot be read: Expecting value"):
        add(str(path), "tiny", root=project)
    config.unlink()
    with pytest.raises(
        AdapterError, match=f"^{config}: cannot be read: No such file or directory; PEFT keeps"
    ):
        add(str(path), "tiny", root=project)
    server.routes["/x.safetensors"] = serve((path / "adapter_model.safetensors").read_bytes())
    with pytest.raises(
        AdapterError, match="^x.safetensors: PEFT keeps its strength in adapter_config.json; "
    ):
        add(f"{server.url}/x.safetensors", "tiny", root=project, web=server.web())
    server.routes["/adapter_model.safetensors"] = redirect("/x.safetensors")
    with pytest.raises(WeightsError, match="adapter_config.json: the server answers 404, expected 200$"):
        add(
            f"{server.url}/adapter_model.safetensors",
            "tiny",
            Wish(file_name="a"),
            root=project,
            web=server.web(),
        )
    assert load_manifest("tiny", project).adapters == ()
    assert not [path for path in (project / "weights").rglob("adapter*") if "tiny" not in path.parts]


@pytest.mark.slow
def test_a_text_encoders_peft_folder_keeps_the_name_that_says_which_it_is(project, bench):
    module = "text_encoder_2.text_projection"
    path, truth = peft_folder(
        {"lora_alpha": 4}, lambda _: 1.0, modules=(module,), folder="text_encoder_2",
        spell=lambda name: f"base_model.model.{bare(name)}",
    )(bench)  # fmt: skip
    added = add(str(path), "tiny", Wish(file_name="mine", scale=1.0), root=project)
    assert added.adapter.file == "mine/text_encoder_2/adapter_model.safetensors"
    assert_merged(load(project), truth, 1.0)


@pytest.mark.parametrize("name", ["../x", "a/b", "x.safetensors"])
def test_a_manifest_with_another_place_beside_an_adapter_is_refused(tmp_path, name):
    write_manifest(tmp_path, adapters=[{"file": "x.safetensors", "kind": "lora", "beside": [{"path": name}]}])
    with pytest.raises(ManifestError, match="^tiny.model.json: "):
        load_manifest("tiny", tmp_path)


@pytest.mark.slow
def test_the_names_beside_embeddings_are_under_the_lock_too(project, bench):
    weights = project / "weights"
    tensors = load_file(training_rows(bench))
    save_file(tensors, weights / "embeddings.pti")
    (weights / "special_params.json").write_text('{"TOK": "<a><b>"}')
    write_manifest(project, base=base_of(project), adapters=[{"file": "embeddings.pti", "kind": "embedding"}])
    lock("tiny", project)
    assert load(project).tokens.installed == ("<a>", "<b>")
    (weights / "special_params.json").write_text('{"TOK": "<a><c>"}')
    with pytest.raises(ModelFileError, match="special_params.json: sha256 .*, the manifest says "):
        find_model("tiny", project)


def training_rows(bench):
    training_tar(bench)
    return bench.folder / "e.pti"
