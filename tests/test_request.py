import dataclasses

import pytest

from tilemix.errors import PromptError, RequestError
from tilemix.request import GenerationRequest


def test_only_the_prompt_is_needed():
    request = GenerationRequest(prompt="50% red, 50% black")
    others = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    assert others.pop("prompt") == "50% red, 50% black"
    assert (others.pop("granule_size"), others.pop("output_format")) == ("medium", "png")
    assert set(others.values()) == {None}


@pytest.mark.parametrize(
    "good",
    [
        {"seed": 0},
        {"seed": 4294967295},
        {"width": 256, "height": 1536},
        {"width": 1032},
        {"num_inference_steps": 1},
        {"num_inference_steps": 100},
        {"guidance_scale": 1},
        {"guidance_scale": 20.0},
        {"lora_scale": 0.0},
        {"lora_scale": 1.5},
        {"negative_prompt": ""},
        {"output_format": "webp"},
    ],
)
def test_the_ends_of_every_range_are_inside(good):
    (name,) = list(good)[:1]
    assert getattr(GenerationRequest(prompt="red", **good), name) == good[name]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -2}, "seed -2 is out of range; expected -1 to 4294967295"),
        ({"seed": 2**32}, "seed 4294967296 is out of range; expected -1 to 4294967295"),
        ({"seed": 1.0}, "seed 1.0 is not an integer; expected -1 to 4294967295"),
        ({"seed": True}, "seed True is not an integer; expected -1 to 4294967295"),
        ({"seed": "1"}, "seed '1' is not an integer; expected -1 to 4294967295"),
        (
            {"seed": 10**5000},
            "seed '100000000000000000000000000000000000...' is out of range; expected -1 to 4294967295",
        ),
        ({"width": 1023}, "width 1023: expected a multiple of 8 from 256 to 1536"),
        ({"width": 248}, "width 248: expected a multiple of 8 from 256 to 1536"),
        ({"height": 1544}, "height 1544: expected a multiple of 8 from 256 to 1536"),
        ({"height": 512.0}, "height 512.0 is not an integer; expected 256 to 1536"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 is out of range; expected 1 to 100"),
        ({"num_inference_steps": 101}, "num_inference_steps 101 is out of range; expected 1 to 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale 'nan' is out of range; expected 1 to 20"),
        ({"guidance_scale": float("inf")}, "guidance_scale 'inf' is out of range; expected 1 to 20"),
        ({"guidance_scale": 0.5}, "guidance_scale 0.5 is out of range; expected 1 to 20"),
        ({"guidance_scale": "7"}, "guidance_scale '7' is not a number; expected 1 to 20"),
        ({"lora_scale": -0.1}, "lora_scale -0.1 is out of range; expected 0 to 1.5"),
        ({"lora_scale": True}, "lora_scale True is not a number; expected 0 to 1.5"),
        ({"output_format": "gif"}, "unknown output_format 'gif'; known: png, webp, jpeg"),
        ({"output_format": None}, "unknown output_format 'None'; known: png, webp, jpeg"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_the_rule(bad, message):
    with pytest.raises(RequestError) as caught:
        GenerationRequest(prompt="red", **bad)
    assert str(caught.value) == message


@pytest.mark.parametrize("prompt", ["", "   ", "a\x00b", "\ud800", "x" * 2001, 7, None])
def test_a_bad_prompt_is_refused(prompt):
    with pytest.raises(PromptError) as caught:
        GenerationRequest(prompt=prompt)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "x" * 2001, 7])
def test_a_bad_negative_prompt_is_refused(text):
    with pytest.raises(PromptError, match="^negative_prompt"):
        GenerationRequest(prompt="red", negative_prompt=text)


def test_a_seed_is_drawn_once_and_zero_is_a_seed():
    assert GenerationRequest(prompt="red", seed=0).with_seed().seed == 0
    seeds = {GenerationRequest(prompt="red").with_seed().seed for _ in range(50)}
    assert len(seeds) == 50  # a 16-bit draw would repeat: two in a hundred million would not
    assert max(seeds) > 2**24
    assert all(0 <= seed < 2**32 for seed in seeds)
