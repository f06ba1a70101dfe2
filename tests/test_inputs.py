import msgspec
import pytest

from tilemix.cli.predict import SUFFIXES
from tilemix.errors import PromptError, RequestError
from tilemix.inputs import (
    ChoiceInput,
    IntegerInput,
    NumberInput,
    TextInput,
    describe,
    find_input,
    load_inputs,
)
from tilemix.pictures.files import FORMATS
from tilemix.request import Defaults, GenerationRequest

DEFAULTS = Defaults(width=512, height=768, num_inference_steps=9, guidance_scale=2.5)
LORAS = {"a.safetensors": 0.7, "b.safetensors": 1.0}


def test_the_table_and_the_request_have_the_same_inputs_and_defaults():
    fields = GenerationRequest.__dataclass_fields__
    assert list(load_inputs()) == list(fields)
    defaults = {name: row.default for name, row in load_inputs().items() if isinstance(row, ChoiceInput)}
    optional = {name: field.default for name, field in fields.items() if not load_inputs()[name].required}
    assert {name: value for name, value in optional.items() if value is not None} == defaults
    assert set(Defaults.__struct_fields__) <= set(fields)


def test_every_limit_of_the_table_is_one():
    for row in load_inputs().values():
        match row:
            case TextInput():
                assert 0 <= row.min_length < row.max_length
            case IntegerInput():
                assert row.minimum < row.maximum
                assert not row.minimum % row.multiple
                assert not row.maximum % row.multiple
            case NumberInput():
                assert row.minimum < row.maximum
            case ChoiceInput():
                assert row.default in row.choices
        assert not row.description.endswith(".")


def test_the_formats_are_those_that_can_be_written_and_the_command_line_has_a_suffix_for_each():
    formats = set(find_input("output_format", ChoiceInput).choices)
    assert formats == set(FORMATS) == set(SUFFIXES.values())


def test_a_row_that_is_not_known_is_refused():
    row = {"type": "integer", "name": "a", "description": "A", "minimum": 0, "maximum": 1}
    assert msgspec.convert(row, IntegerInput).multiple == 1
    with pytest.raises(msgspec.ValidationError, match="unknown field `step`"):
        msgspec.convert(row | {"step": 2}, IntegerInput)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "0", 0),
        ("seed", "-2", -2),  # read; the request refuses it by its limits
        ("lora_scale", "0.35", 0.35),
        ("guidance_scale", "7", 7.0),
        ("negative_prompt", " ", " "),
        ("output_format", "gif", "gif"),
    ],
)
def test_a_text_of_a_form_is_read(name, text, value):
    read = load_inputs()[name].read(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("seed", "", "input-not-integer"),
        ("seed", "7.0", "input-not-integer"),
        ("seed", "٧", "input-not-integer"),
        ("seed", "9" * 21, "input-not-integer"),
        ("width", "1e3", "input-not-integer"),
        ("lora_scale", "nan", "input-not-number"),
        ("lora_scale", "1,5", "input-not-number"),
        ("guidance_scale", "inf", "input-not-number"),
    ],
)
def test_a_text_that_is_not_a_number_is_refused_as_data(name, text, code):
    row = load_inputs()[name]
    with pytest.raises(RequestError) as caught:
        row.read(text)
    assert (caught.value.code, caught.value.field) == (code, name)
    assert caught.value.values == {"typed": text, "low": row.minimum, "high": row.maximum}


@pytest.mark.parametrize(
    ("inputs", "code", "values"),
    [
        ({"seed": -2}, "input-out-of-range", {"typed": -2, "low": -1, "high": 4294967295}),
        (
            {"width": 1001},
            "input-not-multiple",
            {"typed": 1001, "low": 256, "high": 1536, "multiple": 8},
        ),
        ({"lora_scale": float("inf")}, "input-out-of-range", {"typed": "inf", "low": 0, "high": 1.5}),
        (
            {"output_format": "g" * 50},
            "input-unknown-choice",
            {"typed": "g" * 36 + "...", "known": "png, webp, jpeg"},
        ),
        ({"output_format": None}, "input-unknown-choice", {"typed": "None", "known": "png, webp, jpeg"}),
        ({"negative_prompt": [1]}, "input-not-text", {"typed": "[1]"}),
    ],
)
def test_a_refusal_names_its_input_and_carries_only_what_json_can_hold(inputs, code, values):
    with pytest.raises((PromptError, RequestError)) as caught:
        GenerationRequest(**{"prompt": "red", **inputs})
    assert (caught.value.code, caught.value.field) == (code, next(iter(inputs)))
    assert caught.value.values == values


def test_descriptions_say_what_leaving_an_input_out_means():
    width = find_input("width", IntegerInput)
    assert describe(width) == "Width in pixels, a multiple of 8."
    assert describe(width, left_out="1024") == "Width in pixels, a multiple of 8. Left out: 1024."
    assert describe(width, with_limits=True) == "Width in pixels (256 to 1536), a multiple of 8."
    seed = find_input("seed", IntegerInput)
    assert (
        describe(seed, left_out="1024")
        == "Same seed, same picture; -1: a fresh draw. Left out: a fresh draw."
    )
    assert describe(find_input("prompt", TextInput), left_out="x").endswith("Words after it are kept.")
    assert describe(find_input("output_format", ChoiceInput)).endswith("Left out: png.")


def test_a_request_that_leaves_all_out_is_resolved_from_the_model():
    resolved = GenerationRequest(prompt="red").resolve(DEFAULTS, negative_prompt="blurry", lora_scales=LORAS)
    assert (resolved.width, resolved.height) == (512, 768)
    assert (resolved.num_inference_steps, resolved.guidance_scale) == (9, 2.5)
    assert (resolved.prompt, resolved.negative_prompt) == ("red", "blurry")
    assert resolved.lora_scales == LORAS
    assert 0 <= resolved.seed < 2**32


def test_a_seed_of_minus_one_is_drawn_as_one_that_is_left_out():
    request = GenerationRequest(prompt="red", seed=-1)
    assert request == GenerationRequest(prompt="red")
    assert len({request.with_seed().seed for _ in range(4)} - {-1, None}) > 1


def test_what_a_request_says_counts_zero_and_the_empty_text_too():
    request = GenerationRequest(
        prompt="red", negative_prompt="", seed=0, width=256, guidance_scale=1, lora_scale=0
    )
    resolved = request.resolve(DEFAULTS, negative_prompt="blurry", lora_scales=LORAS)
    assert (resolved.seed, resolved.negative_prompt) == (0, "")
    assert (resolved.width, resolved.height, resolved.guidance_scale) == (256, 768, 1)
    assert resolved.lora_scales == {"a.safetensors": 0, "b.safetensors": 0}
    assert request.resolve(DEFAULTS, negative_prompt="", lora_scales={}).lora_scales == {}


def test_defaults_are_held_to_the_limits_of_their_inputs():
    DEFAULTS.check()
    with pytest.raises(RequestError, match="^num_inference_steps 101 is out of range; expected 1 to 100$"):
        msgspec.structs.replace(DEFAULTS, num_inference_steps=101).check()
