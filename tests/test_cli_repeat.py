"""A picture repeated from its record: what is the same, and what is said to differ."""

import msgspec
import pytest

from tests.test_render import RED, renderer  # noqa: F401  a fixture
from tilemix.cli.repeat import Source
from tilemix.pictures.files import write_image
from tilemix.request import GenerationRequest


@pytest.fixture(scope="module")
def drawn(renderer):  # noqa: F811
    request = GenerationRequest(prompt=f"{RED.prompt}, {{wet|matt}}", seed=3, num_inference_steps=1)
    return renderer.render(request)


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
@pytest.mark.slow
def test_a_picture_comes_out_again(renderer, drawn, tmp_path, output_format):  # noqa: F811
    path = tmp_path / "a"
    write_image(path, drawn.pixels, drawn.record, output_format=output_format)
    source = Source.read(path)
    assert source.model == "tiny"
    inputs, notes = source.settle(renderer, source.repeat("tiny", renderer.ready.model.manifest).inputs)
    assert not notes
    again = renderer.render(GenerationRequest(**inputs))
    assert again.record == drawn.record
    assert source.count_changed(again) == 0
    other = renderer.render(GenerationRequest(**inputs | {"seed": 4}))
    assert source.count_changed(other) > 1000


def test_what_has_changed_since_is_named(renderer, drawn, tmp_path):  # noqa: F811
    changes = {
        "chosen_prompt": f"{RED.prompt}, greased",
        "sent_prompt": drawn.record.sent_prompt.replace("wet", "greased").replace("matt", "greased"),
        "versions": drawn.record.versions | {"torch": "1.0"},
        "files": drawn.record.files | {"lora.safetensors": "0" * 64, "vae/old": None},
        "speed": "fast",
        "threads": drawn.record.threads,
    }
    write_image(
        tmp_path / "a", drawn.pixels, msgspec.structs.replace(drawn.record, **changes), output_format="png"
    )
    source = Source.read(tmp_path / "a")
    inputs, notes = source.settle(renderer, source.repeat("tiny", renderer.ready.model.manifest).inputs)
    assert inputs["prompt"] == f"{RED.prompt}, greased"  # a line of a wildcard may have gone
    torch = drawn.record.versions["torch"]
    assert [str(note) for note in notes] == [
        "speed: fast in the picture, exact here",
        f"versions/torch: 1.0 in the picture, {torch} here",
        "files of the model that are not those of the picture: lora.safetensors",
    ]


def test_it_is_drawn_as_it_was_unless_the_environment_says_otherwise(drawn, tmp_path):
    write_image(tmp_path / "a", drawn.pixels, drawn.record, output_format="png")
    source = Source.read(tmp_path / "a")
    assert source.add_settings({"TILEMIX_SPEED": "fast", "TILEMIX_COMPILE": ""}) == {
        "TILEMIX_SPEED": "fast",
        "TILEMIX_THREADS": str(drawn.record.threads),
        "TILEMIX_COMPILE": "0",
        "TILEMIX_PRECISION": "fp32",
    }
