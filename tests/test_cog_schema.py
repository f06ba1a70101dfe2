import json
import subprocess
import sys
import warnings

import pytest

from tilemix.errors import TilemixError
from tilemix.system.project import ROOT
from tools.cog_schema import PREDICTOR, SCHEMA, make_schema, write_schema

SOURCE = """
class Predictor(BasePredictor):
    def predict(
        self,
        prompt: str = Input(description="Text", min_length=1, max_length=9, regex="a+"),
        count: int = Input(default=3, ge=1, le=4),
        scale: Optional[float] = Input(default=None, ge=-1.5, le=2),
        kind: str = Input(default="a", choices=["a", "b"]),
        level: int = Input(choices=[1, 2]),
        tiled: bool = Input(default=False),
        image: Optional[Path] = Input(default=None),
        seed: int = Input(default=None),
    ) -> Path:
        pass
"""


def schemas(document: dict) -> dict:
    return document["components"]["schemas"]


def test_every_kind_of_input_becomes_what_the_cog_command_line_makes_of_it():
    made = schemas(make_schema(SOURCE))
    assert made["Input"] == {
        "title": "Input",
        "type": "object",
        # None on a plain type is no default: such an input is required.
        "required": ["prompt", "level", "seed"],
        "properties": {
            "prompt": {
                "x-order": 0,
                "title": "Prompt",
                "type": "string",
                "description": "Text",
                "minLength": 1,
                "maxLength": 9,
                "pattern": "a+",
            },
            "count": {
                "x-order": 1,
                "title": "Count",
                "type": "integer",
                "default": 3,
                "minimum": 1,
                "maximum": 4,
            },
            "scale": {
                "x-order": 2,
                "title": "Scale",
                "type": "number",
                "default": None,
                "nullable": True,
                "minimum": -1.5,
                "maximum": 2,
            },
            "kind": {"x-order": 3, "allOf": [{"$ref": "#/components/schemas/kind"}], "default": "a"},
            "level": {"x-order": 4, "allOf": [{"$ref": "#/components/schemas/level"}]},
            "tiled": {"x-order": 5, "title": "Tiled", "type": "boolean", "default": False},
            "image": {
                "x-order": 6,
                "title": "Image",
                "type": "string",
                "format": "uri",
                "default": None,
                "nullable": True,
            },
            "seed": {"x-order": 7, "title": "Seed", "type": "integer"},
        },
    }
    assert made["kind"] == {
        "title": "kind",
        "description": "An enumeration.",
        "enum": ["a", "b"],
        "type": "string",
    }
    assert made["level"]["type"] == "integer"
    assert made["Output"] == {"title": "Output", "type": "string", "format": "uri"}


def test_the_document_has_the_whole_shape_and_every_reference_in_it_leads_somewhere():
    document = make_schema(PREDICTOR.read_text(encoding="utf-8"))
    assert document["openapi"] == "3.0.2"
    assert list(document["paths"]) == [
        "/",
        "/health-check",
        "/predictions",
        "/predictions/{prediction_id}/cancel",
    ]
    assert set(schemas(document)) == {
        "Input",
        "Output",
        "granule_size",
        "output_format",
        "PredictionRequest",
        "PredictionResponse",
        "Status",
        "HTTPValidationError",
        "ValidationError",
    }

    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                # OpenAPI 3.0 knows no siblings of a reference.
                assert list(node) == ["$ref"]
                yield node["$ref"]
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    found = set(references(document))
    assert found
    assert {name.removeprefix("#/components/schemas/") for name in found} <= set(schemas(document))


def test_the_committed_file_means_what_predict_py_says():
    """The Cog command line rewrites the file in a layout of its own, so only the meaning is compared."""
    committed = schemas(json.loads(SCHEMA.read_text(encoding="utf-8")))
    made = schemas(make_schema(PREDICTOR.read_text(encoding="utf-8")))
    for name in ("Input", "Output", "output_format"):
        assert committed[name] == made[name], "run `make schema`"


@pytest.mark.slow
def test_the_sdk_reads_the_same_inputs_out_of_the_running_class(monkeypatch):
    """Cog's inspector imports predict.py and looks at the signature: another way to the same facts."""
    from cog._inspector import create_predictor

    monkeypatch.syspath_prepend(ROOT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the names predict() and BasePredictor
        seen = create_predictor("predict", "Predictor")
    made = schemas(make_schema(PREDICTOR.read_text(encoding="utf-8")))
    properties = made["Input"]["properties"]
    assert list(seen.inputs) == list(properties)
    for name, field in seen.inputs.items():
        stated = properties[name]
        assert stated["x-order"] == field.order
        assert stated.get("default") == field.default
        assert stated.get("description") == field.description
        assert stated.get("minimum") == field.ge
        assert stated.get("maximum") == field.le
        assert stated.get("minLength") == field.min_length
        assert stated.get("maxLength") == field.max_length
        assert stated.get("nullable", False) == (field.type.repetition.name == "OPTIONAL")
        if field.choices is None:
            assert stated["type"] == field.type.json_type()["type"]
        else:
            assert made[name]["enum"] == field.choices
    assert made["Output"] == seen.output.json_type()


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (
            "a: int = Input(default=2**3)",
            "predict.py: found `a = Input(default=2 ** 3)`, expected default=1, 'a', ['a', 'b'], ...",
        ),
        ("a: int = Input(5)", "predict.py: found `a = Input(5)`, expected Input(name=value, ...)"),
        ("a: int = 5", "predict.py: found `a = 5`, expected Input(name=value, ...)"),
        ("a: int", "predict.py: found `a = ?`, expected Input(name=value, ...)"),
        (
            "a: list[int] = Input()",
            "predict.py: found `a: list[int]`, expected str, int, float, bool, Path, Optional[...]",
        ),
        (
            "a: Optional[Optional[int]] = Input()",
            "predict.py: found `a: Optional[Optional[int]]`, expected str, int, float, bool, Path, Optional[...]",
        ),
        (
            "a=Input()",
            "predict.py: found `a: ?`, expected str, int, float, bool, Path, Optional[...]",
        ),
        (
            "a: int = Input(**limits)",
            "predict.py: found `a = Input(**limits)`, "
            "expected default, description, choices, ge, le, min_length, max_length, regex",
        ),
        (
            "a: int = Input(default=1), *, b: int = Input()",
            "predict.py: found `predict(self, a: int=Input(default=1), *, b: int=Input())`, "
            "expected predict(self, name, ...)",
        ),
    ],
)
def test_a_signature_that_is_not_known_is_an_error(parameter, message):
    source = f"class Predictor:\n    def predict(self, {parameter}) -> Path:\n        pass\n"
    with pytest.raises(TilemixError) as caught:
        make_schema(source)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def predict() -> Path: ...", "no method predict() in a class Predictor at the top level"),
        ("class Predictor:\n    def predict(self): ...", "predict.py: found `predict() -> ?`, expected Path"),
        (
            "class Predictor:\n    def predict(self) -> str: ...",
            "predict.py: found `predict() -> str`, expected Path",
        ),
    ],
)
def test_a_file_without_the_expected_method_is_an_error(source, message):
    with pytest.raises(TilemixError) as caught:
        make_schema(source)
    assert str(caught.value) == message


def test_the_file_is_written_whole_and_leaves_nothing_else(tmp_path):
    predictor = tmp_path / "predict.py"
    predictor.write_text(SOURCE, encoding="utf-8")
    schema = tmp_path / ".cog" / "openapi_schema.json"
    write_schema(predictor, schema)
    write_schema(predictor, schema)
    assert json.loads(schema.read_text(encoding="utf-8")) == make_schema(SOURCE)
    assert [path.name for path in schema.parent.iterdir()] == ["openapi_schema.json"]


@pytest.mark.slow
def test_making_the_schema_runs_neither_predict_py_nor_a_heavy_library():
    code = (
        "import sys, tools.cog_schema as s; s.make_schema(s.PREDICTOR.read_text());"
        "print([name for name in ('predict', 'cog', 'torch', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "[]\n"
