import json

from tilemix.inputs import load_inputs
from tilemix.studio.api import OPENAPI
from tools.studio_schema import make_schemas, write_schemas


def test_the_committed_document_has_the_inputs_of_the_table():
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    for name, schema in make_schemas().items():
        assert document["components"]["schemas"][name] == schema, "run `make schema`"


def test_every_kind_of_input_becomes_its_schema():
    inputs = make_schemas()["Inputs"]
    assert inputs["required"] == ["prompt"]
    assert list(inputs["properties"]) == list(load_inputs())
    assert inputs["properties"]["prompt"] == {
        "type": "string",
        "minLength": 1,
        "maxLength": 2000,
        "description": "Color mix, such as 50% red, 30% black, 20% pearl. Words after it are kept.",
    }
    assert inputs["properties"]["width"] == {
        "type": ["integer", "null"],
        "minimum": 256,
        "maximum": 1536,
        "multipleOf": 8,
        "description": "Width in pixels, a multiple of 8. Left out: the model's own.",
    }
    assert inputs["properties"]["guidance_scale"] == {
        "type": ["number", "null"],
        "minimum": 1,
        "maximum": 20,
        "description": "How closely to follow the prompt. Left out: the model's own.",
    }
    assert inputs["properties"]["output_format"] == {
        "type": ["string", "null"],
        "enum": ["png", "webp", "jpeg", None],
        "description": "File format of the picture. Left out: png.",
    }


def test_the_forms_own_name_of_an_input_has_that_inputs_schema():
    form = make_schemas()["Form"]["properties"]
    number, empty = form["lora_alpha"]["anyOf"]
    assert (number["type"], number["maximum"]) == ("number", 1.5)
    assert empty == {"const": ""}  # counts as left out
    assert form["task"]["description"].startswith("Task of weights/tasks.json")


def test_writing_leaves_the_rest_of_the_document_as_it_is(tmp_path):
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    document["components"]["schemas"] |= {"Form": {}, "Inputs": {}}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    write_schemas(path)
    assert path.read_bytes() == OPENAPI.read_bytes()
