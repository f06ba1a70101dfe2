import hashlib
import json
import os

import msgspec
import pytest

from tests.tiny_sdxl import write_manifest
from tilemix.errors import ManifestError, MissingFilesError, ModelFileError, WeightsError
from tilemix.samplers import load_samplers
from tilemix.system.project import ROOT
from tilemix.weights import check_files, find_model, list_models, load_manifest, locate_model
from tilemix.weights.calibration import read_calibration
from tilemix.weights.fetch import fetch
from tilemix.weights.lock import lock

SAMPLERS = ", ".join(load_samplers())
REAL = json.loads((ROOT / "weights" / "rubber-tile.model.json").read_text())


@pytest.fixture
def project(tmp_path):
    """A project whose model `tiny` is one file, hello.txt, without a lock."""
    (tmp_path / "weights" / "tiny").mkdir(parents=True)
    (tmp_path / "weights" / "tiny" / "hello.txt").write_bytes(b"hello world")
    (tmp_path / "prompt_templates").mkdir()
    (tmp_path / "prompt_templates" / "tiny.json").write_text("{}")
    write_manifest(tmp_path, base={"folder": "tiny", "files": [{"path": "hello.txt"}]})
    return tmp_path


def base(**changes):
    return {"folder": "tiny", "files": [{"path": "hello.txt", **changes}]}


def test_the_product_names_the_files_it_was_trained_with():
    manifest = load_manifest("rubber-tile")
    sizes = {file.path: file.size for file in manifest.base.files}
    assert manifest.base.repository == "stabilityai/stable-diffusion-xl-base-1.0"
    assert manifest.base.revision == "462165984030d82259a11f4367a4eed129e94a7b"
    assert sizes["unet/diffusion_pytorch_model.fp16.safetensors"] == 5135149760
    assert sizes["text_encoder_2/model.fp16.safetensors"] == 1389382176
    assert sizes["tokenizer_2/vocab.json"] == 1059962
    assert manifest.vae.repository == "madebyollin/sdxl-vae-fp16-fix"
    assert manifest.vae.revision == "207b116dae70ace3637169f1ddd2434b91b3a8cd"
    lora, tokens = manifest.adapters
    assert (lora.file, lora.scale) == ("rubber-tile-lora-v4_sdxl_lora.safetensors", 0.7)
    assert (tokens.file, tokens.tokens) == (
        "rubber-tile-lora-v4_sdxl_embeddings.safetensors",
        ("<s0>", "<s1>"),
    )
    assert (manifest.defaults.width, manifest.defaults.height, manifest.defaults.num_inference_steps) == (
        1024,
        1024,
        25,
    )


def test_every_packaged_model_can_be_read_and_the_miniature_is_locked_and_whole():
    assert list_models() == ["flux1-dev", "flux1-schnell", "miniature", "rubber-tile"]
    assert all(sha256 is not None for sha256 in find_model("miniature").hashes.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": 1}, "tiny.model.json: Object contains unknown field `lora`"),
        ({"family": "sd9"}, "tiny.model.json: unknown family 'sd9'; known: sdxl, sd1, flux1"),
        ({"defaults": {}}, "tiny.model.json: Object missing required field `width` - at `$.defaults`"),
        (
            {"base": {"folder": "tiny", "files": [{"path": "../hello.txt"}]}},
            "tiny.model.json: file '../hello.txt' is not a name below weights/",
        ),
        (
            {"base": {"folder": "tiny", "files": [{"path": "/etc/passwd"}]}},
            "tiny.model.json: file '/etc/passwd' is not a name below weights/",
        ),
        (
            {"base": {"folder": "..", "files": []}},
            "tiny.model.json: folder '..' is not a name below weights/",
        ),
        (
            {"base": {"folder": "a/../..", "files": []}},
            "tiny.model.json: folder 'a/../..' is not a name below weights/",
        ),
        ({"base": base(size=0)}, "tiny.model.json: hello.txt has size 0, expected at least 1 byte"),
        (
            {"base": base(sha256="ABC")},
            "tiny.model.json: hello.txt has sha256 'ABC', expected 64 lower-case hex digits",
        ),
        (
            {"base": {**base(), "repository": "a/b", "revision": "main"}},
            "tiny.model.json: revision 'main', expected a commit of 40 hex digits",
        ),
        (
            {"base": {**base(), "repository": "https://example.com", "revision": "0" * 40}},
            "tiny.model.json: repository 'https://example.com', expected owner/name",
        ),
        (
            {"adapters": [{"file": "x", "kind": "lora", "scale": 2}]},
            "tiny.model.json: x is a LoRA: expected a scale of 0 to 1.5",
        ),
        (
            {"adapters": [{"file": "x", "kind": "lora", "scale": s} for s in (0.7, 0.2)]},
            "tiny.model.json: 'x' is listed twice, expected once",
        ),
        (
            {"adapters": [{"file": "x", "kind": "embedding", "tokens": ["<a>", "<a>"]}]},
            "tiny.model.json: '<a>' is listed twice, expected once",
        ),
        (
            {"base": {"folder": "x", "files": [{"path": "a", "size": 1}, {"path": "a", "size": 2}]}},
            "tiny.model.json: 'a' is listed twice, expected once",
        ),
        ({"scheduler": {"name": "eular"}}, f"tiny.model.json: unknown scheduler 'eular'; known: {SAMPLERS}"),
        (
            {"family": "flux1", "scheduler": {"name": "ddim"}},
            "tiny.model.json: unknown scheduler 'ddim'; known: euler",
        ),
        (
            {"trial_templates": ["../x"]},
            "tiny.model.json: trial_templates '../x' is not a valid template name",
        ),
        (
            {"adapters": [{"file": "x", "kind": "embedding", "scale": 1}]},
            "tiny.model.json: x is of the kind 'embedding', which has no scale",
        ),
        (
            {"adapters": [{"file": "x", "kind": "embedding", "tokens": ["TOK"]}]},
            "tiny.model.json: x has the token 'TOK', expected one such as '<s0>'",
        ),
        (
            {"adapters": [{"file": "x", "kind": "checkpoint"}]},
            "tiny.model.json: Invalid enum value 'checkpoint' - at `$.adapters[0].kind`",
        ),
        ({"prompt_template": "../x"}, "tiny.model.json: prompt_template '../x' is not a valid template name"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_fault(tmp_path, changes, message):
    write_manifest(tmp_path, **changes)
    with pytest.raises(ManifestError) as caught:
        load_manifest("tiny", tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path, raw):
    write_manifest(tmp_path)
    (tmp_path / "weights" / "tiny.model.json").write_bytes(raw)
    with pytest.raises(ManifestError, match="^tiny.model.json: "):
        load_manifest("tiny", tmp_path)


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    """A pipe in a manifest's place kept `weights list` waiting forever."""
    folder = tmp_path / "weights"
    folder.mkdir()
    os.mkfifo(folder / "tiny.model.json")
    with pytest.raises(ManifestError, match="^tiny.model.json: not a regular file$"):
        load_manifest("tiny", tmp_path)
    os.mkfifo(folder / "tiny.calibration.json")
    with pytest.raises(ManifestError, match="^tiny.calibration.json: not a regular file$"):
        read_calibration("tiny", folder / "tiny.calibration.json", {})
    (folder / "gone.model.json").symlink_to("nowhere")
    with pytest.raises(ManifestError, match="^gone.model.json: cannot be read: No such file or directory$"):
        load_manifest("gone", tmp_path)
    (folder / "big.model.json").symlink_to("/dev/zero")
    with pytest.raises(ManifestError, match="^big.model.json: not a regular file$"):
        load_manifest("big", tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "../tiny", "", "TINY", "a/b"])
def test_an_unknown_model_lists_the_known_ones(project, name):
    with pytest.raises(ManifestError, match="known: tiny$"):
        load_manifest(name, project)


def test_missing_files_are_named_with_their_places_and_the_command(project):
    source = {
        "folder": "files/sdxl",
        "repository": "a/b",
        "revision": "0" * 40,
        "files": [{"path": "unet/x.json"}],
    }
    write_manifest(project, base=source, adapters=[{"file": "rubber.safetensors", "kind": "lora"}])
    with pytest.raises(MissingFilesError) as caught:
        find_model("tiny", project)
    weights = project / "weights"
    assert str(caught.value) == (
        f"model 'tiny' lacks 1 of its files: {weights}/files/sdxl/unet/x.json "
        "(run tilemix weights fetch tiny), and 1 more: "
        f"{weights}/files/rubber.safetensors | {weights}/rubber.safetensors "
        "(the owner's: add them with tilemix weights add)"
    )


def test_of_many_missing_files_the_first_are_named_and_the_others_counted(project):
    """A fresh clone's one line named all 20 files of the product with their folders: 3,000 characters."""
    files = [{"path": f"unet/{place}.json"} for place in range(12)]
    source = {"folder": "files/sdxl", "repository": "a/b", "revision": "0" * 40, "files": files}
    write_manifest(project, base=source)
    with pytest.raises(MissingFilesError) as caught:
        find_model("tiny", project)
    named = ", ".join(f"{project}/weights/files/sdxl/unet/{place}.json" for place in range(5))
    assert str(caught.value) == (
        f"model 'tiny' lacks 12 of its files: {named} (run tilemix weights fetch tiny)"
    )


@pytest.mark.parametrize("folder", ["weights/files", "weights"])
def test_an_adapter_is_found_in_either_place(project, folder):
    (project / folder).mkdir(exist_ok=True)
    (project / folder / "rubber.safetensors").write_bytes(b"x")
    write_manifest(project, base=base(), adapters=[{"file": "rubber.safetensors", "kind": "lora"}])
    assert find_model("tiny", project).adapters == (project / folder / "rubber.safetensors",)


def test_another_size_or_hash_than_the_lock_is_refused(project):
    digest = hashlib.sha256(b"hello world").hexdigest()
    path = project / "weights" / "tiny" / "hello.txt"
    write_manifest(project, base=base(size=12))
    with pytest.raises(ModelFileError, match=f"^{path}: 11 bytes, the manifest says 12$"):
        find_model("tiny", project)
    write_manifest(project, base=base(size=11, sha256="0" * 64))
    with pytest.raises(ModelFileError, match=f"^{path}: sha256 {digest}, the manifest says {'0' * 64}$"):
        find_model("tiny", project)
    write_manifest(project, base=base(size=11, sha256=digest))
    assert find_model("tiny", project).hashes == {"hello.txt": digest}


def test_a_model_is_found_whatever_stands_in_its_files_and_checked_apart(project):
    write_manifest(project, base=base(size=12))
    model = locate_model("tiny", project)
    assert [path for _, path in model.files] == [project / "weights" / "tiny" / "hello.txt"]
    with pytest.raises(ModelFileError, match="11 bytes, the manifest says 12$"):
        check_files(model)


def test_checking_asks_for_every_byte_ahead_and_leaves_the_unreadable_to_its_reader(project, monkeypatch):
    path = project / "weights" / "tiny" / "hello.txt"
    path.write_bytes(bytes(3 * 128 * 1024 + 1))
    asked = []
    monkeypatch.setattr("os.posix_fadvise", lambda _, *what: asked.append(what))
    check_files(locate_model("tiny", project))
    step = 128 * 1024
    assert asked == [(place * step, step, os.POSIX_FADV_WILLNEED) for place in range(4)]
    model = locate_model("tiny", project)
    path.unlink()
    with pytest.raises(ModelFileError, match=f"^{path}: no such file or folder$"):
        check_files(model)


def test_lock_writes_sizes_and_hashes_and_keeps_the_rest(project):
    (project / "weights" / "rubber.safetensors").write_bytes(b"abc")
    write_manifest(
        project, base=base(), adapters=[{"file": "rubber.safetensors", "kind": "lora", "scale": 0.7}]
    )
    before = load_manifest("tiny", project)
    path = lock("tiny", project)
    after = load_manifest("tiny", project)
    assert after.base.files[0].sha256 == hashlib.sha256(b"hello world").hexdigest()
    assert (after.adapters[0].size, after.adapters[0].sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert msgspec.structs.replace(after, base=before.base, adapters=before.adapters) == before
    assert path.read_text().count("\n") > 20  # laid out for people
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    find_model("tiny", project)
    (project / "weights" / "rubber.safetensors").unlink()
    raw = path.read_bytes()
    with pytest.raises(MissingFilesError):
        lock("tiny", project)
    assert path.read_bytes() == raw


def test_fetch_says_so_when_the_hub_is_out_of_reach(project):
    """HF_HUB_OFFLINE is set for all tests, so this needs no network and makes no request."""
    source = {
        "folder": "files/sdxl",
        "repository": "a/b",
        "revision": "0" * 40,
        "files": [{"path": "x.json"}],
    }
    write_manifest(project, base=source)
    with pytest.raises(WeightsError, match="^a/b: x.json cannot be fetched: "):
        fetch("tiny", project)


def test_a_file_that_came_with_another_size_is_not_kept(project, monkeypatch):
    source = {"folder": "files/sdxl", "repository": "a/b", "revision": "0" * 40}
    write_manifest(project, base=source | {"files": [{"path": "unet/x.json", "size": 10}]})
    path = project / "weights" / "files" / "sdxl" / "unet" / "x.json"

    def download(repository, name, *, revision, local_dir, tqdm_class):
        assert (repository, name, revision) == ("a/b", "unet/x.json", "0" * 40)
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(bytes(sizes.pop()))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    sizes = [10, 5]
    with pytest.raises(ModelFileError, match=f"^{path}: 5 bytes, the manifest says 10$"):
        fetch("tiny", project)
    assert fetch("tiny", project) == [path]
    path.write_bytes(b"short")
    with pytest.raises(ModelFileError, match="5 bytes, the manifest says 10"):
        fetch("tiny", project)


def test_fetch_leaves_what_only_the_owner_has_with_a_warning(project, caplog):
    write_manifest(project, base=base(), adapters=[{"file": "rubber.safetensors", "kind": "lora"}])
    assert fetch("tiny", project) == []
    assert "rubber.safetensors (the owner's: add them with tilemix weights add)" in caplog.text


def test_fetch_has_nothing_to_do_when_all_is_here(project):
    write_manifest(project, base=base())
    assert fetch("tiny", project) == []
