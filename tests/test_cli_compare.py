"""`tilemix compare`: several models side by side."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tilemix import cli
from tilemix.pictures.sheet import LINE, MARGIN

COLORS = {"old": (200, 30, 30), "new": (30, 30, 200)}


class FakeRenderer:
    """Draws one color, by its model, a little darker with each seed."""

    def __init__(self, model):
        self.model = model

    def render(self, request):
        pixels = np.full((64, 64, 3), COLORS[self.model], np.uint8) - np.uint8(request.seed)
        return SimpleNamespace(pixels=pixels, prompt=SimpleNamespace(sent=None), palette=None)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr("tilemix.render.Renderer.load", lambda model, settings: FakeRenderer(model))


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
        (["--models", "old,old"], "models: 'old,old', expected 1 to 8 different ones, separated by commas"),
        (["--models", "old,"], "models: 'old,'"),
        (["--models", "old", "--seed", "x"], "'x'"),
        (["--models", "old", "--seed", ",".join(map(str, range(17)))], "expected 1 to 16 different ones"),
    ],
)
def test_lists_that_make_no_sense_are_refused_before_a_model_is_loaded(options, message, capsys, monkeypatch):
    monkeypatch.setattr("tilemix.render.Renderer.load", lambda *_: pytest.fail("loaded"))
    assert cli.main(["compare", "x", *options]) == 1
    assert message in capsys.readouterr().err
