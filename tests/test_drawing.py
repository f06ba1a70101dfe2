import re

import pytest

from tests.test_predict import FakeRenderer
from tilemix.drawing import draw_to_file
from tilemix.errors import ImageFileError
from tilemix.pictures.metrics import share_metrics
from tilemix.pictures.reading import read_record
from tilemix.request import GenerationRequest


def draw(path, prompt, **inputs):
    request = GenerationRequest(prompt=prompt, seed=3, num_inference_steps=2, **inputs)
    return draw_to_file(FakeRenderer(), path, request, on_step=lambda done, total: None)


def test_the_picture_is_in_its_file_and_its_mix_is_measured(tmp_path):
    path = tmp_path / "tile.webp"
    drawing = draw(path, "60% black, 40% red", output_format="webp")
    assert path.read_bytes()[8:12] == b"WEBP"
    assert drawing.size == path.stat().st_size
    assert read_record(path) == drawing.rendered.record
    assert drawing.save_seconds > 0
    assert list(drawing.measured.shares) == ["black", "red"]
    assert drawing.measured.shares["black"] > 99  # the fake picture is black all over
    assert share_metrics(drawing.measured) == {
        "share_black": 100.0,
        "share_red": 0.0,
        "share_not_asked": 0.0,
        "color_error_black": pytest.approx(5.5, abs=0.2),  # of #000000 to the chart's black as seen
        "lightness_error_black": pytest.approx(-8.0, abs=8.0),
    }


@pytest.mark.parametrize("prompt", ["a wet tile", "100% zebra"])
def test_without_a_color_of_the_chart_nothing_is_measured(tmp_path, prompt):
    assert draw(tmp_path / "tile.png", prompt).measured is None


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "nowhere" / "tile.png"
    with pytest.raises(ImageFileError, match=f"^{re.escape(str(path))}: cannot be written: "):
        draw(path, "red")
