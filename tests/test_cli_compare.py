"""`tilemix compare`: several models side by side."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tilemix import cli
from tilemix.pictures.sheet import LINE, MARGIN

DRAWN = []
COLORS = {"old": (200, 30, 30), "new": (30, 30, 200), "miniature": (30, 200, 30)}


class FakeRenderer:
    """Draws one color, by its model, a little darker with each seed; the LoRA's scale is its green."""

    def __init__(self, model):
        self.model = model

    def of_task(self, task):
        return self

    def with_scheduler(self, name):
        return FakeRenderer({"euler": "old", "ddim": "new"}[name])

    def render(self, request, *, on_step=None):
        DRAWN.append(request)
        pixels = np.full((64, 64, 3), COLORS[self.model], np.uint8) - np.uint8(request.seed)
        if request.lora_scale is not None:
            pixels[..., 1] = 100 * request.lora_scale
        return SimpleNamespace(pixels=pixels, seconds={}, prompt=SimpleNamespace(sent=None), palette=None)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr("tilemix.render.Renderer.load", lambda model, settings, **_: FakeRenderer(model))
    for verb in ("axes", "compare"):  # there are no such models
        monkeypatch.setattr(f"tilemix.cli.{verb}.check_text", lambda *_: None)


def test_each_model_is_a_column_and_each_seed_a_row(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert cli.main(["compare", "a tile", "--models", "old,new", "--seed", "0,7", "-o", str(sheet)]) == 0
    assert capsys.readouterr().out == f"{sheet}\n"
    with Image.open(sheet) as opened:
        pixels = np.asarray(opened)
    top, left = MARGIN + 2 * LINE, pixels.shape[1] - 2 * (384 + MARGIN)
    for row, seed in enumerate((0, 7)):
        for column, model in enumerate(("old", "new")):
            at = (top + row * (384 + MARGIN) + 30, left + column * (384 + MARGIN) + 30)
            assert tuple(pixels[at]) == tuple(level - seed for level in COLORS[model]), (seed, model)


def test_each_scale_of_a_task_is_a_column_and_the_labels_tell_them_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TILEMIX_MODEL", raising=False)
    sheet = tmp_path / "sheet.png"
    command = [
        "compare",
        "a face",
        "--task",
        "rubber_tile",
        "--lora-scale",
        "0,0.5,own",
        "--seed",
        "7",
        "--json",
    ]
    assert cli.main([*command, "-o", str(sheet)]) == 0
    assert list(json.loads(capsys.readouterr().out)["shares"]) == [
        "no LoRA",
        "LoRA 0.5",
        "its own LoRA scale",
    ]
    with Image.open(sheet) as opened:
        pixels = np.asarray(opened)
    top, left = MARGIN + 2 * LINE, pixels.shape[1] - 3 * (384 + MARGIN)
    greens = [pixels[top + 30, left + column * (384 + MARGIN) + 30, 1] for column in range(3)]
    assert greens == [0, 50, 200 - 7]


def test_models_with_and_without_their_loras_are_labeled_by_both(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    command = ["compare", "a tile", "--models", "old,new", "--lora-scale", "0,1", "--json", "-o", str(sheet)]
    assert cli.main(command) == 0
    labels = ["old, no LoRA", "old, LoRA 1", "new, no LoRA", "new, LoRA 1"]
    assert list(json.loads(capsys.readouterr().out)["shares"]) == labels


def test_the_measured_shares_are_told(tmp_path, capsys, monkeypatch):
    shown = SimpleNamespace(shares={"red": 61.0, "black": 39.0})
    monkeypatch.setattr("tilemix.drawing.measure_mix", lambda rendered: shown)
    command = ["compare", "60% red, 40% black", "--models", "old", "-o", str(tmp_path / "a.png"), "--json"]
    assert cli.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["shares"] == {"old": [{"red": 61.0, "black": 39.0}]}
    assert answer["seeds"] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "old,old"], "models: 'old,old', expected 1 to 8 different values, separated by commas"),
        (["--models", "old,"], "models: 'old,'"),
        (["--models", "old", "--seed", "x"], "'x'"),
        (["--task", "tile"], "unknown task 'tile'; known: rubber_tile"),
        (["--lora-scale", "0,0"], "lora_scale: '0,0', expected 1 to 8 different values"),
        (["--lora-scale", "0,2"], "lora_scale 2.0 is out of range; expected 0 to 1.5"),
        (["--lora-scale", "without"], "lora_scale 'without' is not a number"),
        (["--models", "old", "--seed", ",".join(map(str, range(17)))], "expected 1 to 16 different values"),
    ],
)
def test_lists_that_make_no_sense_are_refused_before_a_model_is_loaded(options, message, capsys, monkeypatch):
    monkeypatch.setattr("tilemix.render.Renderer.load", lambda *_, **__: pytest.fail("loaded"))
    assert cli.main(["compare", "x", *options]) == 1
    assert message in capsys.readouterr().err


def test_each_value_of_an_axis_is_a_column_or_a_row(tmp_path, capsys):
    DRAWN.clear()
    sheet = tmp_path / "sheet.png"
    command = [
        "compare",
        "a tile",
        "--models",
        "old",
        "--x",
        "lora_scale=0.7,0",
        "--y",
        "prompt=tile,(wall:1.2)",
    ]
    options = ["--set", "seed=9", "--set", "num-inference-steps=4", "--json", "-o", str(sheet)]
    assert cli.main([*command, *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["x"] == {"name": "lora_scale", "values": [0.7, 0.0]}
    assert answer["y"] == {"name": "prompt", "values": ["tile", "(wall:1.2)"]}
    assert answer["shares"] == [[{}, {}], [{}, {}]]
    drawn = [(request.lora_scale, request.prompt) for request in DRAWN]
    # Pictures of one scale come together, so that it is merged once.
    assert drawn == [(0, "a tile"), (0, "a (wall:1.2)"), (0.7, "a tile"), (0.7, "a (wall:1.2)")]
    assert {(request.seed, request.num_inference_steps) for request in DRAWN} == {(9, 4)}
    with Image.open(sheet) as opened:
        assert 2 * 64 < min(opened.size) < 2 * 64 + 8 * LINE


def test_schedulers_are_an_axis(tmp_path):
    sheet = tmp_path / "sheet.png"  # a small picture has a small place
    command = ["compare", "a tile", "--models", "old", "--x", "scheduler=ddim,euler", "-o", str(sheet)]
    assert cli.main(command) == 0
    with Image.open(sheet) as opened:
        pixels = np.asarray(opened)
    at = MARGIN + 2 * LINE + 30
    assert tuple(pixels[at, MARGIN + 30]) == COLORS["new"]
    assert tuple(pixels[at, MARGIN + 64 + MARGIN + 30]) == COLORS["old"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--x", "hue=1"],
            "unknown input 'hue'; expected NAME=VALUE,VALUE,... with one of prompt, negative_prompt",
        ),
        (["--x", "seed"], "seed: '', expected 1 to 16 different values, separated by commas"),
        (["--x", "seed=1,1"], "seed: '1,1', expected 1 to 16"),
        (["--x", "seed=1,x"], "seed 'x' is not an integer"),
        (["--x", "lora_scale=9"], "lora_scale 9.0 is out of range"),
        (["--x", "scheduler=fast"], "scheduler 'fast'"),
        (["--x", "seed=1", "--y", "seed=2"], "both axes are 'seed'; expected two different inputs"),
        (
            ["--x", "prompt=red,blue"],
            "'red' is not a part of the prompt; the first value of the axis 'prompt'",
        ),
        (["--x", "seed=1", "--set", "width=512,640"], "width: 'width=512,640', expected 1 to 1"),
        (
            ["--x", "seed=1", "--models", "old,new"],
            "at one LoRA scale, not with 2 (old,new); a list goes into",
        ),
        (["--set", "width=256", "--lora-scale", "0,own"], "not with 2 (0,own); a list goes into an axis"),
    ],
)
def test_an_axis_that_cannot_be_used_is_named(options, message, tmp_path, capsys):
    assert cli.main(["compare", "a tile", *options, "-o", str(tmp_path / "sheet.png")]) == 1
    assert message in capsys.readouterr().err
