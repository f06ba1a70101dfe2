"""predict.py as the Cog command line and the Cog server see it: the signature, and what stands beside it."""

import ast
import json
import re
import subprocess
import sys

import msgspec
import pytest
import yaml

from tilemix.errors import PromptError, RequestError
from tilemix.inputs import (
    ChoiceInput,
    IntegerInput,
    NumberInput,
    TextInput,
    describe,
    load_inputs,
)
from tilemix.request import GenerationRequest
from tilemix.system.project import ROOT

SOURCE = (ROOT / "predict.py").read_text(encoding="utf-8")

# ---------------------------------------------------------------------------------------------------
# The lint. The Cog command line parses predict.py with a grammar of its own and runs nothing; what it
# does not take it mostly drops without a word: the limit is gone, the input is suddenly required.

NUMBER = r"-?\d+(\.\d+)?"  # no 1_000 and no 0x10: Go's ParseFloat refuses them
STRING = r"(\"[^\"\\\n]*\"|'[^'\\\n]*')"  # one line, no prefix, no escape: the inside is taken as it stands
LITERAL = rf"(None|True|False|{NUMBER}|{STRING})"
FORMS = {
    "default": re.compile(LITERAL),
    "description": re.compile(STRING),
    "regex": re.compile(STRING),
    "ge": re.compile(NUMBER),
    "le": re.compile(NUMBER),
    "min_length": re.compile(r"\d+"),
    "max_length": re.compile(r"\d+"),
    "choices": re.compile(rf"\[{LITERAL}(,\s*{LITERAL})+,?\s*\]"),
}
ANNOTATION = re.compile(r"(str|int|float|bool|Path)|Optional\[(str|int|float|bool|Path)\]")


def find_traps(source: str) -> list[str]:
    """Return what the Cog command line or an older SDK would misread in a predict.py, one line each."""
    module = ast.parse(source)
    traps = []
    imported = {
        alias.name: node.module
        for node in module.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is None
    }
    if imported.get("annotations") == "__future__":
        traps.append("postponed annotations: cog 0.16 sees strings for types")
    for name, home in {"Input": "cog", "Path": "cog", "Optional": "typing"}.items():
        if imported.get(name) != home:
            traps.append(f"{name} is not imported from {home} by its own name")
    methods = {
        member.name: member
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == "Predictor"
        for member in node.body
        if isinstance(member, ast.FunctionDef)
    }
    setup = methods.get("setup")
    if setup is not None and [argument.arg for argument in setup.args.args] != ["self"]:
        traps.append("setup: cog 0.16 hands the folder weights/ to a parameter")
    predict = methods["predict"]
    parameters = predict.args
    if parameters.posonlyargs:
        traps.append("positional-only parameters: the server passes names")
    if parameters.kwonlyargs:
        traps.append("keyword-only parameters: the SDK refuses them")
    if parameters.vararg or parameters.kwarg:
        traps.append("* or ** parameters are passed over")
    if predict.returns is None:
        traps.append("no return annotation")
    arguments = (parameters.posonlyargs + parameters.args)[1:] + parameters.kwonlyargs
    bare = [None] * (len(parameters.posonlyargs + parameters.args) - 1 - len(parameters.defaults))
    defaults = [*bare, *parameters.defaults, *parameters.kw_defaults]
    for argument, default in zip(arguments, defaults, strict=True):
        traps += [f"{argument.arg}: {trap}" for trap in find_input_traps(source, argument, default)]
    return traps


def find_input_traps(source: str, argument: ast.arg, default: ast.expr | None) -> list[str]:
    """Return the traps of one parameter of `predict()`."""
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    if not ANNOTATION.fullmatch(annotation):
        return [f"annotation {annotation or 'missing'}"]
    if not (isinstance(default, ast.Call) and ast.unparse(default.func) == "Input"):
        return ["not written as Input(...)"]
    traps = []
    if default.args:
        traps.append("a positional default is passed over")
    values = {}
    for keyword in default.keywords:
        if keyword.arg not in FORMS:
            traps.append(f"{ast.unparse(keyword)} is passed over")
            continue
        # The text, not the tree: parentheses and joined strings leave no trace in the tree.
        text = ast.get_source_segment(source, keyword).partition("=")[2].strip()
        if FORMS[keyword.arg].fullmatch(text):
            values[keyword.arg] = ast.literal_eval(text)
        else:
            traps.append(f"{keyword.arg} is no plain literal: {text}")
    optional = annotation.startswith("Optional[")
    if not optional and values.get("default", ...) is None:
        traps.append("default None on a plain type makes the input required")
    if optional and values.get("default", ...) is not None:
        traps.append("an Optional whose default is not None")
    if optional and "choices" in values:
        traps.append("choices on an Optional: cog 0.16 does not start")
    if "choices" in values and {"ge", "le", "min_length", "max_length"} & set(values):
        traps.append("choices and limits exclude each other")
    if not any(keyword.arg == "description" for keyword in default.keywords):
        traps.append("no description")
    return traps


def sample(parameter: str, *, head: str = "", setup: str = "self", returns: str = " -> Path") -> str:
    return (
        f"{head}from typing import Optional\nfrom cog import BasePredictor, Input, Path\n"
        f"class Predictor(BasePredictor):\n"
        f"    def setup({setup}) -> None: ...\n"
        f"    def predict(self, {parameter}){returns}: ...\n"
    )


GOOD = 'a: Optional[int] = Input(description="A", default=None, ge=-1, le=2.5)'


def test_predict_py_holds_no_form_that_the_cog_command_line_drops():
    assert find_traps(SOURCE) == []


def test_the_lint_passes_a_good_sample():
    assert find_traps(sample(GOOD)) == []
    choices = 'b: str = Input(description="B", choices=["x", \'y\'], default="x")'
    text = 'c: str = Input(description="C", min_length=1, max_length=9, regex="[a-z]+")'
    assert find_traps(sample(f"{choices}, {text}")) == []


@pytest.mark.parametrize(
    ("parameter", "trap"),
    [
        ('a: int = Input(5, description="A")', "a: a positional default is passed over"),
        ('a: int = Input(description="A", default=1 + 1)', "a: default is no plain literal: 1 + 1"),
        ('a: int = Input(description="A", default=STEPS)', "a: default is no plain literal: STEPS"),
        ('a: int = Input(description="A", default=(1))', "a: default is no plain literal: (1)"),
        ('a: int = Input(description="A", default=int("1"))', 'a: default is no plain literal: int("1")'),
        ('a: int = Input(description="A", ge=MIN)', "a: ge is no plain literal: MIN"),
        ('a: int = Input(description="A", le=2**32 - 1)', "a: le is no plain literal: 2**32 - 1"),
        ('a: int = Input(description="A", le=4_294_967_295)', "a: le is no plain literal: 4_294_967_295"),
        ('a: int = Input(description="A", le=0xFF)', "a: le is no plain literal: 0xFF"),
        ('a: int = Input(description="A", ge=- 1)', "a: ge is no plain literal: - 1"),
        ('a: str = Input(description="A", min_length=ONE)', "a: min_length is no plain literal: ONE"),
        ('a: str = Input(description="A", max_length=2 * 3)', "a: max_length is no plain literal: 2 * 3"),
        ('a: str = Input(description="A", regex=PATTERN)', "a: regex is no plain literal: PATTERN"),
        ('a: str = Input(description="A", regex=r"\\d")', 'a: regex is no plain literal: r"\\d"'),
        (
            'a: int = Input(description="A", default=None)',
            "a: default None on a plain type makes the input required",
        ),
        ('a: Optional[int] = Input(description="A")', "a: an Optional whose default is not None"),
        ('a: Optional[int] = Input(description="A", default=3)', "a: an Optional whose default is not None"),
        ('a: int = Input(description=f"A {1}")', 'a: description is no plain literal: f"A {1}"'),
        ('a: int = Input(description=("A"))', 'a: description is no plain literal: ("A")'),
        ('a: int = Input(description="A" "B")', 'a: description is no plain literal: "A" "B"'),
        ('a: int = Input(description="A\\tB")', 'a: description is no plain literal: "A\\tB"'),
        ('a: int = Input(description="""A""")', 'a: description is no plain literal: """A"""'),
        ('a: int = Input(description=u"A")', 'a: description is no plain literal: u"A"'),
        ("a: int = Input(description=TEXT)", "a: description is no plain literal: TEXT"),
        ("a: int = Input(default=1)", "a: no description"),
        ('a: int = Input(description="A", **limits)', "a: **limits is passed over"),
        (
            'a: str = Input(description="A", choices=KINDS)',
            "a: choices is no plain literal: KINDS",
        ),
        (
            'a: str = Input(description="A", choices=list(KINDS.keys()))',
            "a: choices is no plain literal: list(KINDS.keys())",
        ),
        (
            'a: str = Input(description="A", choices=("x", "y"))',
            'a: choices is no plain literal: ("x", "y")',
        ),
        ('a: str = Input(description="A", choices=["x"])', 'a: choices is no plain literal: ["x"]'),
        (
            'a: Optional[str] = Input(description="A", choices=["x", "y"], default=None)',
            "a: choices on an Optional: cog 0.16 does not start",
        ),
        (
            'a: int = Input(description="A", choices=[1, 2], ge=1)',
            "a: choices and limits exclude each other",
        ),
        ('a=Input(description="A")', "a: annotation missing"),
        ('a: Literal["x"] = Input(description="A")', "a: annotation Literal['x']"),
        ('a: "int" = Input(description="A")', "a: annotation 'int'"),
        ("a: int = 5", "a: not written as Input(...)"),
        ("a: int", "a: not written as Input(...)"),
        ("a: int = Inputs.a", "a: not written as Input(...)"),
        ('a: int = cog.Input(description="A")', "a: not written as Input(...)"),
        (f"{GOOD}, /", "positional-only parameters: the server passes names"),
        (f"*, {GOOD}", "keyword-only parameters: the SDK refuses them"),
        (f"{GOOD}, *rest", "* or ** parameters are passed over"),
        (f"{GOOD}, **rest", "* or ** parameters are passed over"),
    ],
)
def test_the_lint_finds_every_trap(parameter, trap):
    assert find_traps(sample(parameter)) == [trap]


@pytest.mark.parametrize(
    ("changes", "trap"),
    [
        (
            {"head": "from __future__ import annotations\n"},
            "postponed annotations: cog 0.16 sees strings for types",
        ),
        ({"setup": "self, weights"}, "setup: cog 0.16 hands the folder weights/ to a parameter"),
        ({"returns": ""}, "no return annotation"),
    ],
)
def test_the_lint_finds_the_traps_round_the_inputs(changes, trap):
    assert find_traps(sample(GOOD, **changes)) == [trap]


def test_the_lint_finds_a_renamed_input():
    source = sample(GOOD).replace("BasePredictor, Input, Path", "BasePredictor, Input as Field, Path")
    assert find_traps(source) == ["Input is not imported from cog by its own name"]


# ---------------------------------------------------------------------------------------------------
# The contract: the table of the design, the library's own limits, the packaged model's defaults.

TABLE = [
    ("prompt", "str", {"min_length": 1, "max_length": 2000}),
    ("negative_prompt", "Optional[str]", {"default": None, "max_length": 2000}),
    ("seed", "Optional[int]", {"default": None, "ge": -1, "le": 4294967295}),
    ("width", "Optional[int]", {"default": None, "ge": 256, "le": 1536}),
    ("height", "Optional[int]", {"default": None, "ge": 256, "le": 1536}),
    ("num_inference_steps", "Optional[int]", {"default": None, "ge": 1, "le": 100}),
    ("guidance_scale", "Optional[float]", {"default": None, "ge": 1, "le": 20}),
    ("lora_scale", "Optional[float]", {"default": None, "ge": 0, "le": 1.5}),
    ("strength", "Optional[float]", {"default": None, "ge": 0.2, "le": 1}),
    ("granule_size", "str", {"default": "medium", "choices": ["small", "medium", "large"]}),
    ("output_format", "str", {"default": "png", "choices": ["png", "webp", "jpeg"]}),
    ("variation_seed", "Optional[int]", {"default": None, "ge": -1, "le": 4294967295}),
    ("variation_strength", "Optional[float]", {"default": None, "ge": 0, "le": 1}),
    ("clip_skip", "Optional[int]", {"default": None, "ge": 1, "le": 12}),
    ("task", "Optional[str]", {"default": None, "max_length": 64}),
]


def read_inputs() -> dict[str, tuple[str, dict]]:
    """Return name -> (annotation, arguments of Input) for the inputs in predict.py, in their order."""
    predict = next(
        node
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.FunctionDef) and node.name == "predict"
    )
    return {
        argument.arg: (
            ast.unparse(argument.annotation),
            {keyword.arg: ast.literal_eval(keyword.value) for keyword in default.keywords},
        )
        for argument, default in zip(predict.args.args[1:], predict.args.defaults, strict=True)
    }


def test_the_inputs_are_those_of_the_table_in_its_order():
    found = [
        (name, annotation, {key: value for key, value in values.items() if key != "description"})
        for name, (annotation, values) in read_inputs().items()
    ]
    assert found == TABLE


COG_TYPES = {TextInput: "str", IntegerInput: "int", NumberInput: "float", ChoiceInput: "str"}
COG_LIMITS = {"minimum": "ge", "maximum": "le", "max_length": "max_length"}


def write_input(row, left_out):
    """The annotation and the arguments of Input() that a row of data/inputs.json asks for."""
    fields = msgspec.structs.asdict(row)
    values = {"description": describe(row, left_out=left_out)}
    values |= {COG_LIMITS[name]: value for name, value in fields.items() if name in COG_LIMITS}
    if fields.get("min_length"):
        values["min_length"] = row.min_length
    if isinstance(row, ChoiceInput):
        values["description"] = f"{row.description}."  # the form shows the default beside the choices
        return "str", values | {"choices": list(row.choices), "default": row.default}
    if row.required:
        return COG_TYPES[type(row)], values
    return f"Optional[{COG_TYPES[type(row)]}]", values | {"default": None}


def test_the_literals_are_those_of_the_table_of_inputs():
    """With what the packaged model gets where the manifest decides."""
    manifest = json.loads((ROOT / "weights" / "rubber-tile.model.json").read_text(encoding="utf-8"))
    scales = [adapter["scale"] for adapter in manifest["adapters"] if adapter["kind"] == "lora"]
    defaults = {**manifest["defaults"], "lora_scale": scales[0]}
    expected = {
        name: write_input(row, f"{defaults[name]:g}" if name in defaults else None)
        for name, row in load_inputs().items()
    }
    assert read_inputs() == expected
    assert list(read_inputs()) == list(expected)


def test_the_limits_are_the_requests_own():
    inputs = {name: values for name, (_, values) in read_inputs().items()}
    assert list(inputs) == [field.name for field in GenerationRequest.__dataclass_fields__.values()]
    for name, values in inputs.items():
        for limit, step in (("ge", -1), ("le", 1)):
            if limit in values:
                inside = {"prompt": "red", name: values[limit]}
                # A seed of -1 asks for a fresh one, as one that is left out does.
                kept = None if name in ("seed", "variation_seed") and values[limit] == -1 else values[limit]
                assert getattr(GenerationRequest(**inside), name) == kept
                with pytest.raises(
                    RequestError, match=f"^{name} .*( is out of range|: expected a multiple of )"
                ):
                    GenerationRequest(**inside | {name: values[limit] + step})
    for name in ("width", "height"):
        assert "multiple of 8" in inputs[name]["description"]
        with pytest.raises(RequestError, match="a multiple of 8 "):
            GenerationRequest(**{"prompt": "red", name: 516})
    for choice in inputs["output_format"]["choices"]:
        assert GenerationRequest(prompt="red", output_format=choice).output_format == choice
    longest = inputs["prompt"]["max_length"]
    assert GenerationRequest(prompt="x" * longest, negative_prompt="x" * longest).prompt
    with pytest.raises(PromptError):
        GenerationRequest(prompt="x" * (longest + 1))
    with pytest.raises(PromptError):
        GenerationRequest(prompt="x", negative_prompt="x" * (inputs["negative_prompt"]["max_length"] + 1))


def test_predict_py_is_under_150_lines():
    assert len(SOURCE.splitlines()) < 150


def test_importing_predict_py_loads_no_heavy_library():
    code = (
        "import sys, predict; print([n for n in ('torch', 'numpy', 'diffusers', 'PIL') if n in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "[]\n"


def test_cog_yaml_says_what_the_image_needs():
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    assert config == {
        "build": {
            "gpu": True,
            "cuda": "12.4",
            "python_version": "3.11",
            "system_packages": ["libgl1-mesa-glx", "libglib2.0-0"],
            "python_requirements": "requirements.txt",
            "sdk_version": "0.23.1",
        },
        # At the top: below `build` it would be known while building only.
        "environment": ["TILEMIX_MODEL=rubber-tile"],
        "predict": "predict.py:Predictor",
    }
    file, _, name = config["predict"].partition(":")
    classes = [
        node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.ClassDef)
    ]
    assert classes == [name]
    assert (ROOT / "weights" / "rubber-tile.model.json").is_file()


def test_the_sdk_comes_from_cog_yaml_alone_and_is_the_workstations():
    image = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"^cog\b", image, re.MULTILINE)
    assert "\ntorch==2.6.0\n" in image  # the last one built for CUDA 12.4
    workstation = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    assert f"\ncog=={config['build']['sdk_version']}\n" in workstation
