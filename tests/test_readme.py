"""The README's tables and map are read here and held against the code."""

import re

import pytest

from tests.adapter_formats import render_table
from tests.test_cli import EXAMPLE
from tilemix import request
from tilemix.cli import make_parser
from tilemix.prompts.mix import parse_mix
from tilemix.system.project import ROOT
from tilemix.weights import load_manifest

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table[2:]]
    return [[cell.strip() for cell in row] for row in cells]


@pytest.mark.parametrize("row", rows(section("Color mixes")), ids=lambda row: row[0])
def test_every_mix_of_the_table_is_read_as_it_says(row):
    typed, sent = (cell.strip("`") for cell in row)
    assert parse_mix(typed).text == sent


def test_the_prompt_shown_is_the_prompt_sent():
    assert EXAMPLE in section("Color mixes")


def test_the_inputs_are_the_requests():
    table = {row[0].strip("`"): row[1:] for row in rows(section("Inputs"))}
    assert list(table) == list(request.GenerationRequest.__dataclass_fields__)
    assert table["seed"][1] == f"0 to {request.MAX_SEED}"
    low, high = request.SIZE_RANGE
    assert (
        table["width"][1] == table["height"][1] == f"{low} to {high}, a multiple of {request.SIZE_MULTIPLE}"
    )
    for name, (low, high) in {
        "num_inference_steps": request.STEPS_RANGE,
        "guidance_scale": request.GUIDANCE_RANGE,
        "lora_scale": request.LORA_SCALE_RANGE,
    }.items():
        assert table[name][1].startswith(f"{low:g} to {high:g}"), name
    assert table["output_format"][1:] == [", ".join(request.OUTPUT_FORMATS), "png"]
    product, miniature = (load_manifest(name).defaults for name in ("rubber-tile", "miniature"))
    assert table["width"][2] == str(product.width) == str(miniature.width)
    assert table["height"][2] == str(product.height) == str(miniature.height)
    assert (
        table["num_inference_steps"][2]
        == str(product.num_inference_steps)
        == str(miniature.num_inference_steps)
    )
    expected = f"{product.guidance_scale:g} (miniature: {miniature.guidance_scale:g})"
    assert table["guidance_scale"][2] == expected
    assert table["lora_scale"][2] == f"{load_manifest('rubber-tile').adapters[0].scale:g}"


def test_the_verbs_are_the_command_lines():
    (verbs,) = [action for action in make_parser()._actions if action.dest == "verb"]
    assert [row[0].strip("`").split()[0] for row in rows(section("On the command line"))] == list(
        verbs.choices
    )


def test_the_map_names_every_module_and_no_other():
    named = set(
        re.findall(
            r"^  (\w+(?:/|\b))", section("Where things stand").partition("tilemix/\n")[2], re.MULTILINE
        )
    )
    package = ROOT / "tilemix"
    there = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    there |= {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert named == there


def test_every_picture_and_file_linked_is_there():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_adapter_formats_are_those_that_the_tests_craft():
    assert render_table().strip() in section("Another SDXL LoRA")
