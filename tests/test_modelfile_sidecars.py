"""Sidecars of every tool, read leniently: what they say, where it is from, and what is not believed."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model_files import SDXL_LORA, write_model
from tests.pace import assert_quick, processor_seconds
from tilemix.modelfile.inspection import read
from tilemix.modelfile.sidecars import classify_hash, read_sidecars, sidecar_paths

SHA256 = hashlib.sha256(b"tile").hexdigest()
VERSION = {
    "id": 2411703,
    "modelId": 2131974,
    "name": "v4",
    "description": "<p>Granules &amp; binder</p>",
    "baseModel": "Illustrious",
    "trainedWords": ["rubber tile,", "granules", "rubber tile,"],
    "model": {"name": "Rubber Tile", "type": "LORA", "tags": ["tile"]},
    "files": [
        {"name": "other.safetensors", "hashes": {"SHA256": "0" * 64}, "primary": True},
        {"name": "tile.safetensors", "hashes": {"AutoV2": SHA256[:10], "SHA256": SHA256.upper()}},
    ],
    "images": [{"url": "https://image.example/1.jpeg"}],
}
# name of the sidecar -> (content, the fields it gives, the hash, its type)
SIDECARS = {
    "tile.safetensors.metadata.json": (
        {
            "hash": "AUTOV2: 90BFFAFD10",
            "hash_type": "AUTOV2",
            "civitai_model_id": 2131974,
            "civitai_version_id": "2411703",
            "civitai_name": "Rubber Tile",
            "civitai_type": "LORA",
            "base_model": "SDXL 1.0",
            "trigger_words": ["rubber tile"],
            "preview_url": "https://image.example/1.jpeg",
        },
        {
            "name": "Rubber Tile",
            "base_model": "SDXL 1.0",
            "model_type": "LORA",
            "trigger_words": ("rubber tile",),
            "model_id": 2131974,
            "version_id": 2411703,
            "preview_url": "https://image.example/1.jpeg",
        },
        ("90BFFAFD10", "AUTOV2"),
    ),
    "tile.metadata.json": (
        {
            "model_name": "Rubber Tile",
            "sha256": SHA256,
            "base_model": "Pony",
            "trainedWords": ["tile"],
            "modelDescription": "granules",
            "tags": ["a", "b"],
            "notes": "mine",
            "civitai": VERSION | {"trainedWords": []},
        },
        {
            "name": "Rubber Tile",
            "version_name": "v4",
            "base_model": "Pony",
            "model_type": "LORA",
            "trigger_words": ("tile",),
            "description": "granules",
            "notes": "mine",
            "tags": ("a", "b"),
            "model_id": 2131974,
            "version_id": 2411703,
        },
        (SHA256, "SHA256"),
    ),
    "tile.civitai.info": (
        VERSION,
        {
            "name": "Rubber Tile",
            "version_name": "v4",
            "base_model": "Illustrious",
            "model_type": "LORA",
            "trigger_words": ("rubber tile", "granules"),
            "description": "Granules & binder",
            "tags": ("tile",),
            "model_id": 2131974,
            "version_id": 2411703,
        },
        (SHA256.upper(), "SHA256"),
    ),
    "tile.cm-info.json": (
        {
            "ModelId": 7,
            "ModelName": "Rubber Tile",
            "ModelType": "LORA",
            "VersionId": 8,
            "VersionName": "v4",
            "BaseModel": "SDXL 1.0",
            "ModelDescription": "granules",
            "Hashes": {"SHA256": SHA256, "CRC32": "85114A0D", "BLAKE3": None},
            "TrainedWords": ["tile"],
            "Tags": ["a"],
        },
        {
            "name": "Rubber Tile",
            "version_name": "v4",
            "base_model": "SDXL 1.0",
            "model_type": "LORA",
            "trigger_words": ("tile",),
            "description": "granules",
            "tags": ("a",),
            "model_id": 7,
            "version_id": 8,
        },
        (SHA256, "SHA256"),
    ),
    "tile.swarm.json": (
        {
            "modelspec.title": "Rubber Tile",
            "modelspec.trigger_phrase": "tile, granules",
            "modelspec.hash_sha256": "0x" + SHA256,
            "modelspec.description": "granules",
        },
        {"name": "Rubber Tile", "trigger_words": ("tile", "granules"), "description": "granules"},
        (SHA256[:12], "AUTOV3"),
    ),
    "tile.json": (
        {
            "description": "granules",
            "sd version": "SDXL",
            "activation text": "tile, granules",
            "preferred weight": 0.8,
            "negative text": "blurry",
            "sha256": SHA256,
            "modelId": 7,
        },
        {
            "base_model": "SDXL",
            "trigger_words": ("tile", "granules"),
            "description": "granules",
            "preferred_weight": 0.8,
            "negative_text": "blurry",
            "model_id": 7,
        },
        (SHA256, "SHA256"),
    ),
}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tile.safetensors", SDXL_LORA)


@pytest.mark.parametrize("name", SIDECARS)
def test_every_tools_sidecar_is_read(model, name):
    content, fields, (value, kind) = SIDECARS[name]
    model.with_name(name).write_text(json.dumps(content))
    found = read_sidecars(model)
    assert found.fields == fields
    assert (found.hash.value, found.hash.type, found.hash.detected) == (value, kind, kind)
    assert found.notes == ()
    assert set(found.sources.values()) == {name}


def test_sdnexts_whole_model_gives_the_version_with_this_file(model):
    whole = {
        "id": 2131974,
        "name": "Rubber Tile",
        "type": "LORA",
        "modelVersions": [
            {"id": 1, "name": "v1", "files": [{"name": "old.safetensors"}]},
            {key: value for key, value in VERSION.items() if key != "model"},
        ],
    }
    model.with_name("tile.json").write_text(json.dumps(whole))
    found = read_sidecars(model)
    assert found.fields["version_name"] == "v4"
    assert (found.fields["name"], found.fields["model_id"]) == ("Rubber Tile", 2131974)
    assert found.hash.value == SHA256.upper()


def test_the_first_sidecar_wins_field_by_field(model):
    names = [path.name for path in sidecar_paths(model)]
    assert names == list(SIDECARS)
    for name, (content, _, _) in SIDECARS.items():
        model.with_name(name).write_text(json.dumps(content))
    found = read_sidecars(model)
    assert found.fields["base_model"] == "SDXL 1.0"
    assert found.hash.value == "90BFFAFD10"
    assert found.sources["hash"] == found.sources["base_model"] == "tile.safetensors.metadata.json"
    assert (found.fields["notes"], found.sources["notes"]) == ("mine", "tile.metadata.json")
    assert (found.fields["negative_text"], found.sources["negative_text"]) == ("blurry", "tile.json")


@pytest.mark.parametrize(
    ("value", "label", "expected"),
    [
        ("AUTOV2: 90BFFAFD10", "AUTOV2", ("90BFFAFD10", "AUTOV2", "AUTOV2")),
        ("90bffafd10", None, ("90bffafd10", "AUTOV2", "AUTOV2")),
        ("AUTOV2: 90BFFAFD10", None, ("90BFFAFD10", "AUTOV2", "AUTOV2")),
        (f"SHA256: {SHA256}", "any", (SHA256, "ANY", "SHA256")),
        (f"0x{SHA256}", None, (SHA256, "SHA256", "SHA256")),
        (SHA256, "AUTOV2", (SHA256, "AUTOV2", "SHA256")),
        (SHA256, "BLAKE3", (SHA256, "BLAKE3", "BLAKE3")),
        (SHA256[:12], "civitai", (SHA256[:12], "CIVITAI", "AUTOV3")),
        ("85114A0D", None, ("85114A0D", "OTHER", "OTHER")),
        ("85114A0D", "CRC32", ("85114A0D", "CRC32", "CRC32")),
        ("925997e9", "AutoV1", ("925997e9", "AUTOV1", "AUTOV1")),
        ("a" * 40, "AUTOV2", ("a" * 40, "AUTOV2", "OTHER")),
        ("not hex at all", "AUTOV2", ("not hex at all", "AUTOV2", "OTHER")),
        ("civitai: 2131974 @ 2411703", "civitai", ("civitai: 2131974 @ 2411703", "CIVITAI", "OTHER")),
    ],
)
def test_a_hash_is_what_its_digits_say(value, label, expected):
    found = classify_hash(value, label)
    assert (found.value, found.type, found.detected) == expected


@pytest.mark.parametrize(
    "value", [None, 7, "", "  ", "AUTOV2:", "e3b0c44298", "E3B0C442" + "98fc", {}, ["90BFFAFD10"]]
)
def test_no_hash_and_the_hash_of_nothing_are_none(value):
    assert classify_hash(value, "AUTOV2") is None


def test_a_declared_type_that_is_not_the_hashs_is_reported(model):
    model.with_name("tile.safetensors.metadata.json").write_text(
        json.dumps({"hash": SHA256, "hash_type": "AUTOV2"})
    )
    file = read(model)
    assert (file.hash, file.hash_type, file.hash_type_detected) == (SHA256, "AUTOV2", "SHA256")
    assert file.hash_source == "tile.safetensors.metadata.json"


def test_a_hash_of_nothing_is_computed_instead(model):
    model.with_name("tile.json").write_text(
        json.dumps({"sha256": hashlib.sha256().hexdigest(), "notes": "n"})
    )
    file = read(model)
    assert file.hash == hashlib.sha256(model.read_bytes()).hexdigest()[:10].upper()
    assert file.hash_source == "computed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"not JSON", "tile.json: JSON is malformed"),
        (b"[1, 2]", "tile.json: Expected `object`, got `array`"),
        (b"\xff\xfe", "tile.json: JSON is malformed"),
        (b'{"hash": "' + b"x" * 3_000_000 + b'"}', "tile.json: larger than 2097152 bytes, not read"),
        (b'{"a":' * 100_000, "tile.json: maximum recursion depth exceeded"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_a_note_at_once(model, content, note):
    model.with_name("tile.json").write_bytes(content)
    assert_quick(lambda: processor_seconds(lambda: read_sidecars(model)), 0.2)
    found = read_sidecars(model)
    assert found.fields == {}
    assert len(found.notes) == 1
    assert found.notes[0].startswith(note)
    assert read(model).notes == found.notes


def test_a_byte_order_mark_is_read_over(model):
    model.with_name("tile.json").write_bytes(b"\xef\xbb\xbf" + b'{"notes": "n"}')
    assert read_sidecars(model).fields == {"notes": "n"}


def test_a_configuration_of_diffusers_is_no_sidecar(model):
    model.with_name("tile.json").write_text('{"_class_name": "UNet2DConditionModel", "description": "x"}')
    assert read_sidecars(model).fields == {}


def test_words_of_a_sidecar_go_before_the_files_own(model):
    write_model(model, SDXL_LORA, metadata={"modelspec.trigger_phrase": "own", "modelspec.title": "Own"})
    assert (read(model).trigger_words, read(model).name) == (("own",), "Own")
    model.with_name("tile.json").write_text(json.dumps({"activation text": "written beside"}))
    assert (read(model).trigger_words, read(model).name) == (("written beside",), "Own")


def test_a_long_description_is_cut(model):
    model.with_name("tile.json").write_text(json.dumps({"description": "<p>" + "word " * 10_000}))
    assert len(read_sidecars(model).fields["description"]) == 2000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=70),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(VERSION)), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = sorted(
    {key for content, _, _ in SIDECARS.values() for key in content} | {"files", "modelVersions", "id"}
)


@pytest.mark.slow
@given(table=st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_no_sidecar_stops_a_reading(tmp_path_factory, table):
    model = write_model(tmp_path_factory.getbasetemp() / "tile.safetensors", {})
    model.with_name("tile.json").write_text(json.dumps(table))
    found = read_sidecars(model)
    assert set(found.sources) >= set(found.fields)
    assert all(isinstance(word, str) for word in found.fields.get("trigger_words", ()))
