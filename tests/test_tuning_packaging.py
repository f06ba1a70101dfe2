"""From a folder of pictures to a packaged model: `tilemix train --new`, and --model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.test_tuning import write_folder
from tests.tiny_sdxl import TEMPLATE, write_manifest
from tilemix import cli
from tilemix.errors import TrainingError
from tilemix.system.project import ROOT
from tilemix.tuning import packaging
from tilemix.tuning.config import load_config
from tilemix.tuning.new_config import write_config
from tilemix.tuning.packaging import plan_package, write_package
from tilemix.tuning.plan import make_plan
from tilemix.weights import find_model, load_manifest


@pytest.fixture
def plan(project, tmp_path_factory, tiny_project):
    """The plan of a training on the base of the model `tiny`, in a folder of its own."""
    config = write_folder(tmp_path_factory.mktemp("training"), tiny_project)
    manifest = load_manifest("tiny", project)
    write_manifest(
        project,
        base=json.loads((project / "weights" / "tiny.model.json").read_bytes())["base"],
        adapters=[{"file": "old.safetensors", "kind": "lora", "scale": 0.3}],
        palette="rubber-tile",
    )
    assert manifest.adapters == ()
    return make_plan(config)


def write_files(plan):
    """What the training would write, as far as packaging reads it."""
    plan.output.mkdir()
    for path in plan.files:
        save_file({"x": torch.zeros(len(path.name))}, path)
    return plan.files


def test_a_training_ends_as_a_model_like_that_of_its_base(plan, project):
    package = plan_package(plan, "my-tile", root=project)
    assert not package.path.exists()
    path = write_package(package, *write_files(plan))
    assert path == project / "weights" / "my-tile.model.json"
    made, like = load_manifest("my-tile", project), load_manifest("tiny", project)
    assert (made.base, made.defaults, made.scheduler) == (like.base, like.defaults, like.scheduler)
    assert (made.prompt_template, made.palette) == ("tiny", "rubber-tile")
    lora, tokens = made.adapters
    assert (lora.file, lora.kind, lora.scale) == ("tiny-tile_sdxl_lora.safetensors", "lora", 0.7)
    assert (tokens.file, tokens.tokens) == ("tiny-tile_sdxl_embeddings.safetensors", ("<s0>", "<s1>"))
    find_model("my-tile", project)  # every file is there and has its hash
    again = plan_package(plan, "my-tile", root=project)  # what an earlier run has written gives way
    assert write_package(again, *plan.files) == path


def test_files_below_weights_stay_where_they_are(plan, project):
    package = plan_package(plan, "my-tile", root=project)
    folder = project / "weights" / "files" / "mine"
    folder.mkdir(parents=True)
    files = [path.rename(folder / path.name) for path in write_files(plan)]
    write_package(package, *files)
    assert [adapter.file for adapter in load_manifest("my-tile", project).adapters] == [
        "mine/tiny-tile_sdxl_lora.safetensors",
        "mine/tiny-tile_sdxl_embeddings.safetensors",
    ]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (lambda _: None, "My Tile", "'My Tile' cannot be a model's name"),
        (
            lambda root: (root / "prompt_templates" / "tiny.json").write_text(
                json.dumps(TEMPLATE | {"negative_prompt": "other"})
            ),
            "my-tile",
            "tiny.json: another template of this name is in ",
        ),
        (
            lambda root: (root / "weights" / "my-tile.model.json").write_bytes(
                (root / "weights" / "tiny.model.json").read_bytes()
            ),
            "my-tile",
            "my-tile: there is another model of this name; --replace puts this one there",
        ),
        (lambda root: write_manifest(root), "my-tile", "no packaged model has this base"),
    ],
    ids=["name", "template", "taken", "base"],
)
def test_what_cannot_become_a_model_is_told_before_the_training(plan, project, spoil, name, message):
    if message.startswith("no packaged"):
        (project / "weights" / "tiny").unlink()
    spoil(project)
    with pytest.raises(TrainingError) as caught:
        plan_package(plan, name, root=project)
    assert message in str(caught.value)


def test_another_model_gives_way_where_that_is_asked_for(plan, project):
    taken = project / "weights" / "my-tile.model.json"
    taken.write_bytes((project / "weights" / "tiny.model.json").read_bytes())
    write_package(plan_package(plan, "my-tile", replaces=True, root=project), *write_files(plan))
    assert len(load_manifest("my-tile", project).adapters) == 2


def test_the_command_ends_with_the_line_that_draws(plan, project, monkeypatch, capsys):
    """The training itself is in test_tuning; here it has just ended."""
    lora, embeddings = write_files(plan)
    monkeypatch.setattr("tilemix.tuning.trainer.tune", lambda plan, device: plan)
    monkeypatch.setattr("tilemix.tuning.files.write_adapters", lambda plan: (lora, embeddings, lora))
    monkeypatch.setattr(
        packaging, "plan_package", lambda plan, name, *, replaces: plan_package(plan, name, root=project)
    )
    config = plan.template_path.with_name("config.json")
    assert cli.main(["train", str(config), "--model", "my-tile"]) == 0
    *_, manifest, line = capsys.readouterr().out.splitlines()
    assert manifest == str(project / "weights" / "my-tile.model.json")
    assert line == "tilemix predict '10% red, 90% black' --model my-tile -o my-tile.png"
    capsys.readouterr()
    assert cli.main(["train", str(config), "--model", "no name"]) == 1
    assert "cannot be a model's name" in capsys.readouterr().err


@pytest.fixture
def photographs(tmp_path):
    """Three of them, the smallest 200 pixels high."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, size in enumerate([(300, 200), (256, 256), (1200, 900)]):
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("50% red, 50% black")
    return folder


def test_a_new_configuration_fits_the_base_and_the_pictures(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TILEMIX_MODEL", raising=False)
    assert cli.main(["train", "--new", "my-tile", "photographs"]) == 0
    assert capsys.readouterr().out == "my-tile.json\n"
    plan = make_plan(Path("my-tile.json"))
    assert plan.base.resolve() == ROOT / "weights" / "miniature"
    assert plan.output.resolve() == ROOT / "weights" / "files"
    assert (plan.config.name, plan.config.palette) == ("my-tile", "rubber-tile")
    assert (plan.config.resolution, plan.config.crop) == (192, 128)  # the smallest picture's
    assert len(plan.pictures) == 3
    assert cli.main(["train", "--new", "my-tile", "photographs"]) == 1
    assert (
        capsys.readouterr().err
        == "tilemix train: my-tile.json: already exists; choose another name, or delete it\n"
    )


def test_a_large_base_is_trained_at_its_own_size(photographs, tmp_path):
    for path in photographs.glob("[01].*"):
        path.unlink()
    path = tmp_path / "x.json"
    write_config(path, "x", photographs, "rubber-tile")
    config = load_config(path)
    assert (config.resolution, config.crop, config.gradient_checkpointing) == (896, None, True)
    assert config.palette == "rubber-tile"
    assert config.initial_words == {"<s0>": "rubber", "<s1>": "tile"}


def test_a_base_of_another_family_is_not_trained(photographs, tmp_path):
    line = "^flux1-dev.model.json: Flux.1; `tilemix train` trains SDXL alone$"
    with pytest.raises(TrainingError, match=line):
        write_config(tmp_path / "x.json", "x", photographs, "flux1-dev")
