import hashlib

import pytest

from tests.model_files import SDXL_LORA, write_model
from tilemix.errors import MissingFilesError, ModelFileError
from tilemix.model_index import find, metadata


@pytest.fixture
def project(tmp_path):
    (tmp_path / "weights" / "files").mkdir(parents=True)
    write_model(
        tmp_path / "weights" / "files" / "tile_lora.safetensors", SDXL_LORA, metadata={"ss_v2": "False"}
    )
    write_model(tmp_path / "weights" / "tokens.pti", {"clip_l": (2, 768), "clip_g": (2, 1280)})
    return tmp_path


@pytest.mark.parametrize("name", ["tile_lora", "tile_lora.safetensors"])
def test_a_model_is_found_by_its_name_and_told_with_its_hash(project, name):
    path = project / "weights" / "files" / "tile_lora.safetensors"
    found = metadata(name, project)
    assert found["hash"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10].upper()
    assert (found["hash_type"], found["kind"], found["base_model"], found["rank"]) == (
        "AUTOV2",
        "lora",
        "SDXL",
        8,
    )
    assert found["metadata"] == {"ss_v2": "False"}


def test_a_diffusers_folder_is_found_too(tiny_project):
    assert metadata("tiny", tiny_project)["kind"] == "diffusers"


def test_a_file_under_weights_files_goes_before_one_of_the_same_name(project):
    write_model(project / "weights" / "tile_lora.safetensors", {})
    assert find("tile_lora.safetensors", project).parent.name == "files"


@pytest.mark.parametrize("name", ["nowhere", "../weights/tokens.pti", "files/tile_lora", "", "files"])
def test_an_unknown_name_is_refused_with_the_known_ones(project, name):
    with pytest.raises(MissingFilesError) as caught:
        metadata(name, project)
    assert str(caught.value) == (
        f"no model file {name!r} in weights/files or weights; there: tile_lora.safetensors, tokens.pti"
    )


def test_two_files_of_one_stem_need_their_extensions(project):
    write_model(project / "weights" / "tokens.safetensors", {})
    with pytest.raises(
        ModelFileError, match=r"'tokens' names tokens\.pti, tokens\.safetensors; add the extension"
    ):
        metadata("tokens", project)
    assert metadata("tokens.pti", project)["kind"] == "embedding"


def test_a_project_without_weights_has_no_models(tmp_path):
    with pytest.raises(MissingFilesError, match="there: none"):
        metadata("x", tmp_path)
