"""Prompt templates: what loads, what is refused, and that user text is never a template."""

import json
from pathlib import Path

import msgspec
import pytest

from tilemix.errors import TemplateError
from tilemix.prompts.template import PromptTemplate, find_template, load_template

FOLDER = Path(__file__).resolve().parents[1] / "prompt_templates"

CORRECT = {
    "name": "tile",
    "text": "trigger <s0><s1>, $prompt, high quality",
    "trigger_words": ["trigger"],
    "placeholder_tokens": ["<s0>", "<s1>"],
    "negative_prompt": "blurry",
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "tile.json"
    path.write_text(json.dumps(CORRECT | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_template_of_the_project_loads(path):
    template = load_template(path)
    assert template.name == path.stem
    assert find_template(path.stem) == template


def test_the_rubber_tile_template_is_the_one_its_adapter_was_trained_with():
    template = load_template(FOLDER / "rubber_tile.json")
    assert template.text == (
        "ohwx_rubber_tile <s0><s1>, $prompt, photorealistic rubber tile, high quality, detailed texture"
    )
    assert template.trigger_words == ["ohwx_rubber_tile"]
    assert template.placeholder_tokens == ["<s0>", "<s1>"]
    assert "blurry" in template.negative_prompt


def test_the_miniature_template_differs_from_the_products_in_the_negative_prompt_alone():
    """The miniature's base knows no words such as "watermark": they would only push it about."""
    template, product = (load_template(FOLDER / f"{name}.json") for name in ("miniature", "rubber_tile"))
    assert template == msgspec.structs.replace(product, name="miniature", negative_prompt="")


def test_a_correct_template_loads_with_every_field(tmp_path):
    assert load_template(write(tmp_path)) == PromptTemplate(**CORRECT)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "other"}, "name 'other', expected 'tile', the file's name"),
        ({"text": "trigger <s0><s1>"}, "text 'trigger <s0><s1>': expected $prompt once and no other $"),
        ({"text": "$prompt, $prompt"}, "text '$prompt, $prompt': expected $prompt once and no other $"),
        ({"text": "$prompt, ${prompt}"}, "text '$prompt, ${prompt}': expected $prompt once and no other $"),
        ({"text": "${prompt}"}, "text '${prompt}': expected $prompt once and no other $"),
        ({"text": "$prompt $color"}, "text '$prompt $color': expected $prompt once and no other $"),
        ({"text": "$prompts"}, "text '$prompts': expected $prompt once and no other $"),
        ({"text": "$prompt for 5 $"}, "text '$prompt for 5 $': expected $prompt once and no other $"),
        ({"text": "$prompt for $$5"}, "text '$prompt for $$5': expected $prompt once and no other $"),
        ({"trigger_words": ["ohwx"]}, "trigger word 'ohwx', expected a word of the text"),
        ({"trigger_words": [" "]}, "trigger word ' ', expected a word of the text"),
        (
            {"placeholder_tokens": ["<s2>"]},
            "placeholder token '<s2>', expected one such as '<s0>' that is in the text",
        ),
        (
            {"placeholder_tokens": ["trigger"]},
            "placeholder token 'trigger', expected one such as '<s0>' that is in the text",
        ),
        (
            {"negative_prompt": "a\u0000b"},
            "negative_prompt: a control character, U+0000, at character 2; expected plain text",
        ),
        ({"negative_prompt": "x" * 2001}, "negative_prompt: 2001 characters, expected 2000 at most"),
        ({"negative_prompt": None}, "Expected `str`, got `null` - at `$.negative_prompt`"),
        ({"trigger_words": "trigger"}, "Expected `array`, got `str` - at `$.trigger_words`"),
        ({"sampler": "euler"}, "Object contains unknown field `sampler`"),
    ],
)
def test_a_wrong_template_is_refused_with_its_path_and_the_rule(tmp_path, changes, problem):
    path = write(tmp_path, **changes)
    with pytest.raises(TemplateError) as caught:
        load_template(path)
    assert str(caught.value) == f"{path}: {problem}"


def test_a_missing_field_is_an_error(tmp_path):
    path = tmp_path / "tile.json"
    path.write_text(json.dumps({key: value for key, value in CORRECT.items() if key != "text"}))
    with pytest.raises(TemplateError, match="missing required field `text`$"):
        load_template(path)


def test_what_is_no_json_or_no_file_is_an_error(tmp_path):
    path = tmp_path / "tile.json"
    with pytest.raises(TemplateError, match="tile.json: cannot be read: No such file or directory$"):
        load_template(path)
    with pytest.raises(TemplateError, match="not a regular file$"):
        load_template(tmp_path)
    path.write_bytes(b'{"name": "tile"')
    with pytest.raises(TemplateError, match=r"tile\.json: Input data was truncated$"):
        load_template(path)
    path.write_bytes(b'{"name": "\xff\xfe"}')
    with pytest.raises(TemplateError, match=r"tile\.json: 'utf-8' codec can't decode byte 0xff"):
        load_template(path)
    path.write_bytes(b'{"trigger_words": ' + b"[" * 60_000)
    with pytest.raises(TemplateError, match=r"tile\.json: "):
        load_template(path)
    path.write_bytes(b" " * 10**6)
    with pytest.raises(TemplateError, match="more than 65536 bytes$"):
        load_template(path)


def test_an_unknown_name_shows_the_known_ones():
    with pytest.raises(
        TemplateError,
        match=r"^unknown prompt template 'rubber_tiles'; known: miniature, plain, rubber_tile, rubber_tile_bare$",
    ):
        find_template("rubber_tiles")


def test_a_name_is_never_a_path(tmp_path):
    write(tmp_path)
    with pytest.raises(TemplateError, match="unknown prompt template"):
        find_template(f"../{tmp_path.name}/tile", tmp_path)


@pytest.mark.parametrize(
    "words", ["$prompt", "${prompt}", "$$", "$", "{0.__class__}", "%(prompt)s %s%n", "\\1 \\g<0>", ""]
)
def test_user_text_is_put_in_as_it_is(words):
    template = PromptTemplate(**CORRECT)
    assert template.fill(words) == f"trigger <s0><s1>, {words}, high quality"


@pytest.mark.parametrize(
    ("prompt", "marker"),
    [
        ("trigger, red", "trigger"),
        ("a TRIGGER.", "trigger"),
        ("triggers", None),
        ("my_trigger", None),
        ("red <s1>", "<s1>"),
        ("red<s0>black", "<s0>"),
        ("red <S0>", None),
        ("red <s2>", None),
        ("", None),
    ],
)
def test_markers_are_whole_trigger_words_and_exact_tokens(prompt, marker):
    assert PromptTemplate(**CORRECT).find_marker(prompt) == marker


def test_a_template_without_markers_finds_none():
    template = PromptTemplate("plain", "$prompt, a tile", [], [], "")
    assert template.find_marker("ohwx_rubber_tile <s0><s1> trigger") is None
