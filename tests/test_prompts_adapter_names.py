"""What a prompt, a task and a foreign picture may call a model's adapters."""

import json

import pytest

from tilemix.errors import ManifestError, PromptError
from tilemix.pictures.infotext import parse_infotext
from tilemix.pictures.repeating import Here, repeat_infotext
from tilemix.prompts.adapter_names import find_named, name_adapter, tell_apart
from tilemix.prompts.context import PromptContext
from tilemix.prompts.language.tags import LoraTag
from tilemix.weights.tasks import find_task

PEFT_A, PEFT_B = "tile-a/adapter_model.safetensors", "tile-b/adapter_model.safetensors"
FILES = (
    PEFT_A, PEFT_B, "Wet.safetensors", "wet.safetensors", "style.safetensors", "webui/style.safetensors",
    "old/ink.safetensors", "new/ink.safetensors", "trained_model.tar", "rug.v2.safetensors",
    "mat/adapter_model.safetensors", "mat.safetensors",
)  # fmt: skip
NAMES = {
    "tile-a": PEFT_A,
    "Tile-B": PEFT_B,
    "tile-a/adapter_model": PEFT_A,
    "tile-b\\adapter_model.safetensors": PEFT_B,
    "Wet": "Wet.safetensors",
    " wet.safetensors ": "wet.safetensors",
    "style": "style.safetensors",
    "webui/Style": "webui/style.safetensors",
    "new/ink": "new/ink.safetensors",
    "trained_model": "trained_model.tar",
    "rug.v2": "rug.v2.safetensors",
    "mat.safetensors": "mat.safetensors",
    "mat/adapter_model": "mat/adapter_model.safetensors",
}
AMBIGUOUS = {
    "adapter_model": "'tile-a', 'tile-b' or 'mat/adapter_model.safetensors'",
    "WET": "'Wet' or 'wet'",
    "ink": "'old/ink' or 'new/ink'",
    "mat": "'mat/adapter_model.safetensors' or 'mat.safetensors'",
}
UNKNOWN = ("files/tile-a", "old/style", "tile", "", "/", "../wet")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_one_file(name):
    assert find_named(name, FILES) == (NAMES[name],)
    assert find_named(name, FILES[::-1]) == (NAMES[name],)


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_name_of_several_files_is_refused_in_a_prompt(name):
    context = PromptContext(loras=FILES)
    with pytest.raises(PromptError) as caught:
        context.find_loras([LoraTag(name, 1.0, 1.0, 3)])
    assert (
        str(caught.value)
        == f"prompt: {name!r}, at character 3, may mean {AMBIGUOUS[name]}; expected one of them"
    )


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_folder_that_is_typed_counts(name):
    assert find_named(name, FILES) == ()


def test_the_shortest_name_that_tells_a_file_means_it():
    names = tell_apart(FILES, FILES)
    assert [find_named(name, FILES) for name in names] == [(file,) for file in FILES]
    assert names[:6] == ["tile-a", "tile-b", "Wet", "wet", "style", "webui/style"]


def test_embeddings_of_one_name_are_told_apart_by_their_tokens():
    context = PromptContext(
        embeddings={"a/neg.safetensors": "<a>", "b/Neg.safetensors": "<b>", "c/x.pt": "<c>"}
    )
    assert context.put_tokens("x, <a>, neg, Neg.safetensors") == "<c>, <a>, <a>, <b>"
    with pytest.raises(PromptError, match="^several embeddings are called 'NEG'; .*<a> .a/neg.*, <b> "):
        context.put_tokens("red, NEG")


def test_tasks_name_adapters_as_prompts_do(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    manifest = {
        "base": {"folder": "x", "files": []}, "scheduler": {"name": "euler"}, "license": "x",
        "defaults": {"width": 256, "height": 256, "num_inference_steps": 2, "guidance_scale": 1.0},
        "prompt_template": "x", "adapters": [{"file": file, "kind": "lora", "scale": 0} for file in FILES],
    }  # fmt: skip
    (folder / "tiny.model.json").write_text(json.dumps(manifest))

    def find(**scales: float) -> object:
        (folder / "tasks.json").write_text(json.dumps({"t": {"adapters": scales}}))
        return find_task("t", served="tiny", root=tmp_path).lora_scales

    assert find(**{"tile-a": 0.5, "tile-b/adapter_model": 0.7}) == {PEFT_A: 0.5, PEFT_B: 0.7}
    assert find(Wet=0.5, wet=0.6) == {"Wet.safetensors": 0.5, "wet.safetensors": 0.6}
    with pytest.raises(
        ManifestError, match="^tasks.json: task 't': 'ink' may mean several LoRAs of model 'tiny'"
    ):
        find(ink=1)
    with pytest.raises(ManifestError, match="has no LoRA 'tile'; the nearest: tile-"):
        find(tile=1)


def test_a_picture_names_a_peft_adapter_as_it_is_found_again():
    """A record said `<lora:tile-a:1>`, and repeating the picture left the LoRA out."""
    text = f"red <lora:{name_adapter(PEFT_A)}:1> <lora:gone:1>\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, CFG: 1"
    repeated = repeat_infotext(parse_infotext(text), Here("tiny", "euler", FILES))
    assert repeated.inputs["prompt"] == "red <lora:tile-a:1>"
