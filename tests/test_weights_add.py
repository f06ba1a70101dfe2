import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.https_server import answer, redirect, serve
from tests.test_modelfile_header import entry as tensor
from tests.test_modelfile_header import write
from tests.tiny_sdxl import write_manifest
from tilemix import cli
from tilemix.errors import AdapterError, ManifestError, ModelFileError, TilemixError, WeightsError
from tilemix.system.project import ROOT
from tilemix.weights import find_model, load_manifest
from tilemix.weights.add import add, remove, split_tokens
from tilemix.weights.entry import Wish
from tilemix.weights.part import Part

CONVERT = "expected safetensors; `tilemix weights convert` makes one"

# One module of SDXL in each spelling.
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # 640 -> 640
KOHYA = f"lora_unet_{QUERY.replace('.', '_')}"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"  # 768 -> 768
PROCESSOR = f"{QUERY.removesuffix('.to_q')}.processor.to_q_lora"
COMFY = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q"
DOWN, UP = (4, 640), (640, 4)
LORA_KEYS = {
    "kohya": {f"{KOHYA}.lora_down.weight": DOWN, f"{KOHYA}.lora_up.weight": UP, f"{KOHYA}.alpha": (1,)},
    "diffusers": {f"unet.{QUERY}.lora_A.weight": DOWN, f"unet.{QUERY}.lora_B.weight": UP},
    "adapter name": {
        f"unet.{QUERY}.lora_A.default.weight": DOWN,
        f"unet.{QUERY}.lora_B.default.weight": UP,
    },
    "older diffusers": {f"unet.{QUERY}.lora.down.weight": DOWN, f"unet.{QUERY}.lora.up.weight": UP},
    "cog-sdxl": {f"{PROCESSOR}.down.weight": DOWN, f"{PROCESSOR}.up.weight": UP},
    "text encoder": {
        f"{TEXT}.lora_linear_layer.down.weight": (4, 768),
        f"{TEXT}.lora_linear_layer.up.weight": (768, 4),
    },
    "LoHa": {
        f"{KOHYA}.hada_w1_a": UP,
        f"{KOHYA}.hada_w1_b": DOWN,
        f"{KOHYA}.hada_w2_a": UP,
        f"{KOHYA}.hada_w2_b": DOWN,
    },
    "LoKr": {f"{KOHYA}.lokr_w1": (20, 20), f"{KOHYA}.lokr_w2_a": (32, 4), f"{KOHYA}.lokr_w2_b": (4, 32)},
    "comfy": {f"{COMFY}.lora_A.weight": DOWN, f"{COMFY}.lora_B.weight": UP},
}
ADD = """
import sys
from pathlib import Path
from tests.https_server import trust
from tilemix.weights.add import add
from tilemix.weights.web import Web
root, source, host = sys.argv[1:]
web = Web(hosts=frozenset({host}), context=trust(), pause_seconds=0.0)
add(source, "tiny", root=Path(root), web=web)
"""


def write_tensors(path, shapes, *, metadata=None, seed=0):
    """A real safetensors file of F32 tensors with random numbers."""
    generator = np.random.default_rng(seed)
    header, data = {}, b""
    for name, shape in shapes.items():
        numbers = generator.standard_normal(shape, np.float32).tobytes()
        header[name] = tensor(len(data), len(data) + len(numbers), shape=shape)
        data += numbers
    return write(path, ({"__metadata__": metadata} if metadata else {}) | header, data)


def write_lora(path, *, seed=0, spelling="kohya", **options):
    return write_tensors(path, LORA_KEYS[spelling], seed=seed, **options)


def write_embedding(path, rows=2, **options):
    return write_tensors(path, {"clip_g": (rows, 1280), "clip_l": (rows, 768)}, **options)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "prompt_templates").mkdir(parents=True)
    (root / "prompt_templates" / "tiny.json").write_text("{}")
    write_manifest(root)
    (root / "weights" / "tiny").symlink_to(ROOT / "tilemix" / "data" / "sdxl")  # the shapes of the real SDXL
    return root


@pytest.fixture
def lora(tmp_path):
    return write_lora(tmp_path / "my-lora.safetensors")


def files(root):
    folder = root / "weights" / "files"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def refusal(source, root, wish=None, **options):
    """Return the message of the refusal, which must leave everything as it was."""
    manifest = (root / "weights" / "tiny.model.json").read_bytes()
    before = {name: sha256(root / "weights" / "files" / name) for name in files(root)}
    with pytest.raises(TilemixError) as caught:
        add(str(source), "tiny", wish, root=root, **options)
    assert (root / "weights" / "tiny.model.json").read_bytes() == manifest
    assert {name: sha256(root / "weights" / "files" / name) for name in files(root)} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lora_is_copied_locked_and_then_part_of_the_model(project, lora):
    added = add(str(lora), "tiny", root=project)
    assert (added.change, added.path) == ("added", project / "weights" / "files" / "my-lora.safetensors")
    assert added.path.read_bytes() == lora.read_bytes()
    (adapter,) = load_manifest("tiny", project).adapters
    assert (adapter.file, adapter.kind, adapter.scale, adapter.tokens, adapter.url) == (
        "my-lora.safetensors",
        "lora",
        0.7,
        (),
        None,
    )
    assert (adapter.size, adapter.sha256) == (lora.stat().st_size, sha256(lora))
    assert find_model("tiny", project).adapters == (added.path,)
    assert files(project) == ["my-lora.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("spelling", LORA_KEYS)
def test_a_lora_is_known_in_every_spelling(project, tmp_path, spelling):
    added = add(str(write_lora(tmp_path / "x", spelling=spelling)), "tiny", root=project)
    assert added.adapter.kind == "lora"


@pytest.mark.parametrize("names", [("clip_g", "clip_l"), ("text_encoders_1", "text_encoders_0")])
@pytest.mark.slow
def test_an_embedding_gets_a_token_for_each_row(project, tmp_path, names):
    path = write_tensors(tmp_path / "e.pti", {names[0]: (3, 1280), names[1]: (3, 768)})
    adapter = add(str(path), "tiny", root=project).adapter
    assert (adapter.kind, adapter.scale, adapter.tokens) == ("embedding", None, ("<s0>", "<s1>", "<s2>"))
    find_model("tiny", project)


def test_an_embeddings_tokens_come_from_the_wish_or_from_the_training(project, tmp_path):
    path = write_embedding(tmp_path / "e.safetensors")
    (tmp_path / "special_params.json").write_text('{"TOK": "<t4><t5>"}')
    assert add(str(path), "tiny", root=project).adapter.tokens == ("<t4>", "<t5>")
    wish = Wish(tokens=("<a>", "<b>"))
    again = add(str(path), "tiny", wish, root=project)
    assert (again.change, again.adapter.tokens) == ("updated", ("<a>", "<b>"))
    assert add(str(path), "tiny", root=project).change == "unchanged"  # what the manifest has stays
    (tmp_path / "special_params.json").write_text("[]")
    other = write_embedding(tmp_path / "f.safetensors", seed=1)
    assert refusal(other, project).startswith("special_params.json: Expected `object`, got `array`")


@pytest.mark.slow
def test_the_same_file_again_changes_nothing(project, lora):
    add(str(lora), "tiny", Wish(scale=0.9), root=project)
    manifest = project / "weights" / "tiny.model.json"
    before = (manifest.stat().st_mtime_ns, manifest.stat().st_ino)
    again = add(str(lora), "tiny", root=project)
    assert (again.change, again.adapter.scale) == ("unchanged", 0.9)
    assert (manifest.stat().st_mtime_ns, manifest.stat().st_ino) == before
    assert add(str(again.path), "tiny", root=project).change == "unchanged"  # from its own place, too
    scaled = add(str(lora), "tiny", Wish(scale=0.0), root=project)
    assert (scaled.change, scaled.adapter.scale) == ("updated", 0.0)


@pytest.mark.slow
def test_a_copy_that_the_disk_has_no_room_for_leaves_nothing(project, lora, monkeypatch):
    """What was copied stayed as a part that no other try goes on with, and kept the full disk full."""
    written = Part.write

    def write_a_little(part, data):
        written(part, data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Part, "write", write_a_little)
    with pytest.raises(WeightsError) as caught:
        add(str(lora), "tiny", root=project)
    target = project / "weights" / "files" / "my-lora.safetensors"
    assert str(caught.value) == f"{target}: cannot be written: No space left on device"
    assert list(target.parent.iterdir()) == []
    assert load_manifest("tiny", project).adapters == ()


def test_another_file_of_the_same_name_is_refused_unless_it_is_to_replace(project, tmp_path, lora):
    add(str(lora), "tiny", Wish(scale=0.9), root=project)
    (project / "weights" / "files" / "my-lora.safetensors.metadata.json").write_text("{}")
    (tmp_path / "other").mkdir()
    other = write_lora(tmp_path / "other" / "my-lora.safetensors", seed=1)
    there = project / "weights" / "files" / "my-lora.safetensors"
    assert refusal(other, project) == (
        f"my-lora.safetensors: sha256 {sha256(other)}, but {there} has {sha256(lora)}; "
        "--replace puts this one there"
    )
    added = add(str(other), "tiny", Wish(replaces=True), root=project)
    assert (added.change, added.adapter.sha256, added.adapter.scale) == ("updated", sha256(other), 0.9)
    assert files(project) == ["my-lora.safetensors"]  # the old one's sidecar has gone with it
    there.unlink()
    assert refusal(lora, project).startswith(
        f"my-lora.safetensors: sha256 {sha256(lora)}, but the manifest has {sha256(other)}; "
    )
    assert files(project) == []


def test_a_file_that_lies_in_its_place_already_gets_its_entry_without_a_copy(project, lora):
    place = project / "weights" / "my-lora.safetensors"
    place.write_bytes(lora.read_bytes())
    assert add(str(lora), "tiny", root=project).path == place
    assert files(project) == []
    find_model("tiny", project)


def test_an_entry_that_waits_for_its_file_keeps_its_place_and_its_scale(project, tmp_path, lora):
    write_manifest(
        project,
        adapters=[
            {"file": "my-lora.safetensors", "kind": "lora", "scale": 0.5},
            {"file": "e.safetensors", "kind": "embedding", "tokens": ["<s0>", "<s1>"]},
        ],
    )
    add(str(write_embedding(tmp_path / "e.safetensors")), "tiny", root=project)
    add(str(lora), "tiny", root=project)
    first, second = load_manifest("tiny", project).adapters
    assert (first.file, first.scale, first.sha256) == ("my-lora.safetensors", 0.5, sha256(lora))
    assert (second.file, second.tokens) == ("e.safetensors", ("<s0>", "<s1>"))
    assert len(find_model("tiny", project).adapters) == 2


@pytest.mark.parametrize(
    ("kind", "wish", "message"),
    [
        ("lora", Wish(scale=1.6), "x.safetensors: scale 1.6, expected 0 to 1.5"),
        ("lora", Wish(scale=float("nan")), "x.safetensors: scale nan, expected 0 to 1.5"),
        ("lora", Wish(tokens=("<s0>",)), "x.safetensors: a LoRA has no tokens, found '<s0>'"),
        ("embedding", Wish(scale=0.7), "x.safetensors: an embedding has no scale, found 0.7"),
        (
            "embedding",
            Wish(tokens=("<s0>",)),
            "x.safetensors: tokens '<s0>', expected 2 different ones, one for each row",
        ),
        (
            "embedding",
            Wish(tokens=("<s0>", "<s0>")),
            "x.safetensors: tokens '<s0> <s0>', expected 2 different ones, one for each row",
        ),
        (
            "embedding",
            Wish(tokens=("TOK", "<s0>")),
            "x.safetensors: tokens 'TOK <s0>', expected such as '<s0>'",
        ),
        (
            "lora",
            Wish(file_name="../x"),
            "'../x' cannot be a name in weights/files/, which takes letters, digits, '.', '_' and '-'; "
            "give one with --as",
        ),
    ],
)
def test_a_wish_that_does_not_fit_the_file_is_refused(project, tmp_path, kind, wish, message):
    writer = write_lora if kind == "lora" else write_embedding
    assert refusal(writer(tmp_path / "x.safetensors"), project, wish) == message
    assert files(project) == []


def test_tokens_of_another_adapter_are_not_given_twice(project, tmp_path):
    add(str(write_embedding(tmp_path / "a.safetensors")), "tiny", root=project)
    second = write_embedding(tmp_path / "b.safetensors", seed=1)
    assert refusal(second, project) == (
        "b.safetensors: tokens '<s0> <s1>' are already in a.safetensors; name others with --tokens"
    )
    add(str(second), "tiny", Wish(tokens=("<t0>", "<t1>")), root=project)
    assert len(load_manifest("tiny", project).adapters) == 2


def test_one_file_by_two_names_is_refused(project, lora):
    add(str(lora), "tiny", root=project)
    message = refusal(lora, project, Wish(file_name="again.safetensors"))
    assert message == "again.safetensors: the model already has this file, as my-lora.safetensors"


@pytest.mark.slow
def test_an_embedding_does_not_slip_into_the_place_of_a_lora(project, tmp_path):
    write_manifest(project, adapters=[{"file": "x.safetensors", "kind": "lora", "scale": 0.5}])
    path = write_embedding(tmp_path / "x.safetensors")
    assert refusal(path, project) == (
        "x.safetensors: an embedding, but a LoRA in the manifest; --replace puts this one there"
    )
    assert add(str(path), "tiny", Wish(replaces=True), root=project).adapter.kind == "embedding"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"<!DOCTYPE html><html>", ModelFileError, "x.safetensors: an HTML page, expected safetensors"),
        (
            b"PK\x03\x04" + bytes(60),
            ModelFileError,
            "x.safetensors: a zip archive (probably a pickled checkpoint)",
        ),
        (b"", ModelFileError, "x.safetensors: 0 bytes are not a safetensors file"),
    ],
)
def test_a_file_that_is_no_model_is_not_added(project, tmp_path, content, error, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert refusal(path, project).startswith(message)
    with pytest.raises(error):
        add(str(path), "tiny", root=project)


def test_a_model_file_of_another_kind_is_not_added(project, tmp_path):
    vae = write_tensors(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": (2, 2)})
    assert refusal(vae, project) == (
        "vae.safetensors: neither a LoRA nor an SDXL embedding: vae (original names)"
    )
    old = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {f"{old}.lora_down.weight": (4, 768), f"{old}.lora_up.weight": (320, 4)}
    assert refusal(write_tensors(tmp_path / "o", shapes), project) == "o: made for SD 1, expected SDXL"
    uneven = write_tensors(tmp_path / "e", {"clip_l": (2, 768), "clip_g": (3, 1280)})
    assert refusal(uneven, project) == (
        "e: rows of the shapes [(2, 768), (3, 1280)], expected 1 to 75, as many for both text encoders"
    )
    assert refusal(tmp_path / "nowhere", project).endswith(
        "nowhere: cannot be read: No such file or directory"
    )
    with pytest.raises(ManifestError, match="unknown model 'other'; known: tiny"):
        add(str(vae), "other", root=project)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {
                "transformer_blocks.1.attn.to_k.lora_down.weight": (4, 3072),
                "transformer_blocks.1.attn.to_k.lora_up.weight": (3072, 4),
            },
            "x.safetensors: no place in this model for 2 of its tensors: ",
        ),
        (
            {
                "diffusion_model.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048),
                "diffusion_model.transformer_blocks.0.attn2.to_k.lora_B.weight": (2048, 4),
            },
            "x.safetensors: LoRA for a diffusion transformer is not supported",
        ),
        (
            {f"{KOHYA}.lora_down.weight": (4, 320), f"{KOHYA}.lora_up.weight": (320, 4)},
            "x.safetensors: made for another model: unet.down_blocks.1.attentions.0.",
        ),
        (
            LORA_KEYS["kohya"] | {"bundle_emb.tile.clip_l": (1, 32), "bundle_emb.tile.clip_g": (1, 48)},
            "x.safetensors: ",
        ),
        ({"clip_l": (2, 1280), "clip_g": (2, 768)}, "x.safetensors: "),
    ],
    ids=["another transformer", "called SDXL", "another width", "bundle of another base", "exchanged"],
)
@pytest.mark.slow
def test_what_the_models_shapes_do_not_take_is_refused(project, tmp_path, shapes, message):
    """Its hash was written, and only the server's setup failed."""
    found = refusal(write_tensors(tmp_path / "x.safetensors", shapes), project)
    assert found.startswith(message)
    assert files(project) == []


def test_rows_that_are_not_finite_are_refused(project, tmp_path):
    raw = bytearray(write_embedding(tmp_path / "x.safetensors").read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "x.safetensors").write_bytes(raw)
    assert "not finite" in refusal(tmp_path / "x.safetensors", project)


@pytest.mark.slow
def test_without_the_models_shapes_nothing_is_added(project, lora):
    (project / "weights" / "tiny").unlink()
    assert refusal(lora, project).startswith(f"{project}/weights/tiny: nothing here tells the model's shapes")
    write_manifest(
        project,
        base={
            "folder": "tiny",
            "files": [],
            "repository": "stabilityai/stable-diffusion-xl-base-1.0",
            "revision": "0" * 40,
        },
    )
    assert add(str(lora), "tiny", root=project).change == "added"  # a published base is known


def test_a_bundle_gets_the_tokens_that_are_wished(project, tmp_path):
    """`weights add` refused them: a LoRA had no tokens."""
    shapes = LORA_KEYS["kohya"] | {
        "bundle_emb.my tile.clip_l": (2, 768),
        "bundle_emb.my tile.clip_g": (2, 1280),
    }
    path = write_tensors(tmp_path / "x.safetensors", shapes)
    assert add(str(path), "tiny", root=project).adapter.tokens == ("<my_tile_0>", "<my_tile_1>")
    wish = Wish(tokens=("<s0>", "<s1>"))
    assert add(str(path), "tiny", wish, root=project).adapter.tokens == ("<s0>", "<s1>")


def test_bundles_in_other_scripts_get_latin_tokens_or_those_that_are_wished(project, tmp_path):
    """Both of two Russian names became <_>, and not even --tokens got round that."""

    def write_bundle(*names):
        rows = {
            f"bundle_emb.{name}.{part}": (1, width)
            for name in names
            for part, width in (("clip_l", 768), ("clip_g", 1280))
        }
        return str(
            write_tensors(tmp_path / f"{len(names)}.safetensors", LORA_KEYS["kohya"] | rows, seed=len(names))
        )

    assert add(write_bundle("плитка", "пол"), "tiny", root=project).adapter.tokens == ("<plitka>", "<pol>")
    path = write_bundle("床", "板", "x")
    with pytest.raises(AdapterError, match="expected 3 different ones, one for each row"):
        add(path, "tiny", root=project)
    wish = Wish(tokens=("<x>", "<bed>", "<board>"))
    assert add(path, "tiny", wish, root=project).adapter.tokens == wish.tokens


LAYOUT = """{
  "license": "none",   "prompt_template": "tiny",
  "base": {"folder": "tiny", "files": []},
  "adapters": [
    {"kind": "embedding", "file": "b.safetensors", "tokens": ["<b0>"], "url": null},
    {"file": "c.safetensors", "kind": "lora"}
  ],
  "scheduler": {"name": "euler"},
  "defaults": {"width": 256, "height": 256, "num_inference_steps": 2, "guidance_scale": 5.0}
}
"""


def test_a_manifest_keeps_its_order_and_its_layout(project, tmp_path, lora):
    manifest = project / "weights" / "tiny.model.json"
    manifest.write_text(LAYOUT)
    embedding = write_embedding(tmp_path / "b.safetensors", rows=1)
    add(str(embedding), "tiny", root=project)
    size, digits = embedding.stat().st_size, sha256(embedding)
    locked = LAYOUT.replace('"url": null}', f'"url": null, "size": {size}, "sha256": "{digits}"}}')
    assert manifest.read_text() == locked
    add(str(lora), "tiny", root=project)
    size, digits = lora.stat().st_size, sha256(lora)
    entry = {"file": lora.name, "kind": "lora", "scale": 0.7, "size": size, "sha256": digits}
    last = '{"file": "c.safetensors", "kind": "lora"}'
    assert manifest.read_text() == locked.replace(last, f"{last},\n    {json.dumps(entry)}")
    assert remove("tiny", lora.name, root=project) == project / "weights" / "files" / lora.name
    assert manifest.read_text() == locked
    remove("tiny", "b.safetensors", root=project)
    remove("tiny", "c.safetensors", root=project)
    assert load_manifest("tiny", project).adapters == ()
    add(str(lora), "tiny", root=project)
    assert load_manifest("tiny", project).adapters[0].sha256 == digits
    with pytest.raises(AdapterError, match=r"^tiny has no adapter 'x'; it has: my-lora\.safetensors$"):
        remove("tiny", "x", root=project)


@pytest.mark.slow
def test_fifty_at_once_leave_fifty_entries(project, tmp_path):
    """Of six at once, three were lost, and all said "added"."""
    paths = [write_lora(tmp_path / f"l{place}.safetensors", seed=place) for place in range(50)]
    add(str(paths[0]), "tiny", root=project)
    running = []
    for group in range(5):
        if (process := os.fork()) == 0:
            for path in paths[group * 10 : group * 10 + 10]:
                add(str(path), "tiny", root=project)
            os._exit(0)
        running.append(process)
    assert [os.waitpid(process, 0)[1] for process in running] == [0] * 5
    assert {adapter.file for adapter in load_manifest("tiny", project).adapters} == {p.name for p in paths}
    find_model("tiny", project)


@pytest.mark.slow
def test_twenty_kills_at_random_leave_a_whole_manifest(project, tmp_path):
    """kill -9 anywhere in an add; the entries that are there have their files, and the next add goes on."""
    paths = [write_lora(tmp_path / f"l{place}.safetensors", seed=place) for place in range(40)]
    add(str(paths[0]), "tiny", root=project)
    began = time.monotonic()
    add(str(paths[1]), "tiny", root=project)
    usual = time.monotonic() - began
    random, killed = np.random.default_rng(3), 0
    for number in range(20):
        if (process := os.fork()) == 0:
            for path in paths[2 + number :]:
                add(str(path), "tiny", root=project)
            os._exit(0)
        time.sleep(usual * random.uniform(0, 1.5))
        os.kill(process, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        find_model("tiny", project)  # the manifest is whole, and every file of it has its hash
    assert killed >= 15
    for path in paths:
        add(str(path), "tiny", root=project)
    assert len(load_manifest("tiny", project).adapters) == 40
    names = [path.name for path in (project / "weights").rglob(".*")]
    assert not [name for name in names if name.endswith(".part")], names


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.slow
def test_what_is_no_regular_file_is_refused_at_once(project, tmp_path, kind):
    """A pipe was read forever, /dev/zero until the memory was full."""

    def put(name):
        path = tmp_path / name
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        return path

    path = put("x.safetensors")
    assert refusal(path, project) == f"{path}: not a regular file"
    peft = tmp_path / "mine"
    peft.mkdir()
    name = "base_model.model." + QUERY
    shapes = {f"{name}.lora_A.weight": DOWN, f"{name}.lora_B.weight": UP}
    write_tensors(peft / "adapter_model.safetensors", shapes)
    (peft / "adapter_config.json").symlink_to(path)
    assert refusal(peft, project) == f"{peft}/adapter_config.json: not a regular file"
    put("special_params.json")
    embedding = write_embedding(tmp_path / "e.safetensors")
    add(str(embedding), "tiny", root=project)  # no file: the rows are numbered


def test_tokens_are_read_from_one_text():
    assert split_tokens("<s0><s1>") == split_tokens("<s0>, <s1>") == ("<s0>", "<s1>")
    for text in ("", "TOK", "<s0>TOK"):
        with pytest.raises(AdapterError, match="expected such as '<s0><s1>'"):
            split_tokens(text)


# --- from the net ---


@pytest.fixture
def remote(server, tmp_path):
    """A LoRA at the server's /files/web-lora.safetensors, and what its Civitai and its hub say about it."""
    path = write_lora(
        tmp_path / "remote",
        seed=7,
        metadata={
            "modelspec.trigger_phrase": "ohwx tile, granules",
            "ss_base_model_version": "sdxl_base_v1-0",
        },
    )
    body = path.read_bytes()
    server.routes["/files/web-lora.safetensors"] = serve(body)
    return body


def civitai_version(server, body, **changes):
    usual = {
        "id": 2514310,
        "name": "weights.safetensors",
        "type": "Model",
        "sizeKB": len(body) / 1024,
        "metadata": {"format": "SafeTensor", "size": None, "fp": "fp16"},
        "hashes": {"SHA256": hashlib.sha256(body).hexdigest().upper(), "AutoV2": "WRONG"},
        "downloadUrl": f"{server.url}/api/download/models/2514310",
        "primary": True,
    }
    return {
        "id": 2514310,
        "modelId": 827184,
        "name": "v16.0",
        "baseModel": "SDXL 1.0",
        "trainedWords": ["rubber", "granules"],
        "model": {"name": "Rubber", "type": "LORA", "nsfw": False},
        "files": [usual | changes],
        "stats": {"downloadCount": 1},
    }


def publish(server, version):
    server.routes["/api/v1/model-versions/2514310"] = answer(
        json.dumps(version).encode(), content_type="application/json"
    )


def sidecar(root, name):
    return json.loads((root / "weights" / "files" / f"{name}.metadata.json").read_text())


@pytest.mark.slow
def test_a_file_by_its_address_comes_with_its_sidecar(project, server, remote):
    url = f"{server.url}/files/web-lora.safetensors"
    added = add(url, "tiny", root=project, web=server.web())
    assert added.path.read_bytes() == remote
    assert files(project) == ["web-lora.safetensors", "web-lora.safetensors.metadata.json"]
    assert (added.adapter.url, added.adapter.sha256) == (url, hashlib.sha256(remote).hexdigest())
    digest = hashlib.sha256(remote).hexdigest().upper()
    written = sidecar(project, "web-lora.safetensors")
    assert written.pop("last_updated")[:2] == "20"
    assert written == {
        "hash": f"AUTOV2: {digest[:10]}",
        "hash_type": "AUTOV2",
        "hash_autov2": digest[:10],
        "hash_sha256": digest.lower(),
        "model_type": "lora",
        "base_model": "SDXL",
        "trigger_words": ["ohwx tile", "granules"],
        "source": url,
    }
    assert add(url, "tiny", root=project, web=server.web()).change == "unchanged"
    assert files(project) == ["web-lora.safetensors", "web-lora.safetensors.metadata.json"]
    find_model("tiny", project)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "/models/827184?modelVersionId=2514310",
        "/models/827184/rubber-tile?modelVersionId=2514310",
        "/models/827184",
        "/api/download/models/2514310",
        "/api/download/models/2514310?type=Model&format=SafeTensor",
        "/api/download/models/2514310?fileId=2514310",
    ],
)
def test_a_civitai_link_brings_what_civitai_says(project, server, remote, page):
    publish(server, civitai_version(server, remote))
    server.routes["/api/v1/models/827184"] = answer(
        b'{"id": 827184, "modelVersions": [{"id": 2514310}, {"id": 1}]}'
    )
    server.routes["/api/download/models/2514310"] = redirect(
        f"https://{server.other_host}/files/web-lora.safetensors?X-Amz-Signature=abc", status=307
    )
    web = server.web(
        hosts=frozenset({server.host, server.other_host}),
        tokens={server.host: "secret-1"},
        civitai=server.url,
    )
    added = add(f"{server.url}{page}", "tiny", root=project, web=web)
    assert added.path.name == "weights.safetensors"
    assert added.adapter.url == f"{server.url}/api/download/models/2514310"
    written = sidecar(project, "weights.safetensors")
    assert {key: written[key] for key in written if key.startswith("civitai_")} == {
        "civitai_model_id": 827184,
        "civitai_version_id": 2514310,
        "civitai_name": "Rubber",
        "civitai_type": "LORA",
    }
    assert (written["base_model"], written["trigger_words"]) == ("SDXL 1.0", ["rubber", "granules"])
    assert written["hash_sha256"] == hashlib.sha256(remote).hexdigest()
    to_store = [headers for _, path, headers in server.requests if "X-Amz-Signature" in path]
    assert len(to_store) == 1
    assert "Authorization" not in to_store[0]
    kept = (project / "weights" / "tiny.model.json").read_text() + json.dumps(written)
    assert "secret-1" not in kept
    assert "Signature" not in kept
    asked = [path for _, path, _ in server.requests if "download" in path]
    assert add(f"{server.url}{page}", "tiny", root=project, web=web).change == "unchanged"
    assert [path for _, path, _ in server.requests if "download" in path] == asked  # its hash was enough


@pytest.mark.parametrize(
    ("page", "changes", "message"),
    [
        ("/models/827184?modelVersionId=x", {}, "neither a model's page nor a download at Civitai"),
        ("/user/827184", {}, "neither a model's page nor a download at Civitai"),
        (
            "/api/download/models/2514310",
            {"metadata": {"format": "PickleTensor"}},
            "PickleTensor there, expected a file of the format SafeTensor",
        ),
        (
            "/api/download/models/2514310?format=GGUF",
            {},
            "no such file there, expected one of the format SafeTensor",
        ),
        (
            "/api/download/models/2514310",
            {"downloadUrl": "https://evil.example/x"},
            "the address has the host 'evil.example', expected one of ",
        ),
        (
            "/api/download/models/2514310",
            {"name": "a b/c.safetensors"},
            "'a b/c.safetensors' cannot be a name in weights/files/",
        ),
        ("/api/download/models/2514310", {"hashes": {"SHA256": "0" * 64}}, f"expected {'0' * 64}"),
    ],
)
def test_a_civitai_link_that_leads_to_no_safetensors_is_refused(
    project, server, remote, page, changes, message
):
    publish(server, civitai_version(server, remote, **changes))
    server.routes["/api/download/models/2514310"] = serve(remote)
    web = server.web(civitai=server.url)
    assert message in refusal(f"{server.url}{page}", project, web=web)
    assert files(project) == []


def test_a_civitai_version_with_several_files_wants_one_named(project, server, remote):
    version = civitai_version(server, remote, primary=False)
    version["files"].append(version["files"][0] | {"id": 2, "name": "b.safetensors"})
    publish(server, version)
    server.routes["/api/download/models/2514310"] = serve(remote)
    web = server.web(civitai=server.url)
    url = f"{server.url}/api/download/models/2514310"
    assert refusal(url, project, web=web) == (
        f"{url}: 2 files there, name one by fileId: weights.safetensors (fileId=2514310), b.safetensors (fileId=2)"
    )
    assert add(f"{url}?fileId=2", "tiny", root=project, web=web).path.name == "b.safetensors"


def test_a_hub_link_is_fixed_to_its_commit(project, server, remote):
    commit, digest = "0123456789abcdef" * 2 + "01234567", hashlib.sha256(remote).hexdigest()
    server.routes["/owner/name/resolve/main/loras/web-lora.safetensors"] = answer(
        status=302,
        location="https://cdn.example/x",
        x_repo_commit=commit,
        x_linked_etag=f'"{digest}"',
        x_linked_size=str(len(remote)),
    )
    pinned = f"/owner/name/resolve/{commit}/loras/web-lora.safetensors"
    server.routes[pinned] = redirect("/files/web-lora.safetensors")
    web = server.web(hub=server.url)
    link = f"{server.url}/owner/name/blob/main/loras/web-lora.safetensors"
    added = add(link, "tiny", root=project, web=web)
    assert (added.path.read_bytes(), added.adapter.url) == (remote, f"{server.url}{pinned}")
    assert server.requests[0][0] == "HEAD"
    assert refusal(f"{server.url}/owner/name", project, web=web) == (
        f"{server.url}/owner/name: not a file of a hub repository; expected .../blob/REVISION/PATH"
    )
    server.routes["/owner/name/resolve/main/x"] = answer(b"")
    assert refusal(f"{server.url}/owner/name/blob/main/x", project, web=web) == (
        f"{server.url}/owner/name/blob/main/x: the hub names no commit for it"
    )


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (answer(b"<html>Log in</html>", content_type="text/html"), "an HTML page, expected the file itself"),
        (answer(b"\x80\x02}q\x00X\x05\x00\x00\x00"), f"web-lora.safetensors: a pickle, {CONVERT}"),
        (answer(b"x" * 50), "web-lora.safetensors: starts with b'xxxxxxxx', expected safetensors"),
        (answer(status=404), "the server answers 404, expected 200"),
    ],
)
def test_an_address_that_gives_no_adapter_leaves_nothing(project, server, route, message):
    server.routes["/files/web-lora.safetensors"] = route
    found = refusal(f"{server.url}/files/web-lora.safetensors", project, web=server.web())
    assert message in found
    assert ".part" not in found
    assert files(project) == []


def test_another_file_at_an_address_does_not_replace_the_one_here(project, server, remote):
    url = f"{server.url}/files/web-lora.safetensors"
    before = add(url, "tiny", root=project, web=server.web()).path.read_bytes()
    other = remote[:-1] + b"@"
    server.routes["/files/web-lora.safetensors"] = serve(other)
    assert "--replace puts this one there" in refusal(url, project, web=server.web())
    assert (project / "weights" / "files" / "web-lora.safetensors").read_bytes() == before
    add(url, "tiny", Wish(replaces=True), root=project, web=server.web())
    assert (project / "weights" / "files" / "web-lora.safetensors").read_bytes() == other
    assert sidecar(project, "web-lora.safetensors")["hash_sha256"] == hashlib.sha256(other).hexdigest()


def test_stopped_between_the_file_and_its_sidecar_the_next_run_writes_it(
    project, server, remote, monkeypatch
):
    url = f"{server.url}/files/web-lora.safetensors"
    add(url, "tiny", root=project, web=server.web())
    other = remote[:-1] + b"@"
    server.routes["/files/web-lora.safetensors"] = serve(other)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["tilemix.weights.add"], "write_sidecar", stop)
        with pytest.raises(KeyboardInterrupt):
            add(url, "tiny", Wish(replaces=True), root=project, web=server.web())
    assert files(project) == ["web-lora.safetensors"]  # no sidecar rather than one of another file
    with pytest.raises(ModelFileError, match="the manifest says"):
        find_model("tiny", project)
    add(url, "tiny", Wish(replaces=True), root=project, web=server.web())
    assert sidecar(project, "web-lora.safetensors")["hash_sha256"] == hashlib.sha256(other).hexdigest()
    find_model("tiny", project)


def test_a_copy_that_was_stopped_is_no_part_of_a_later_download(project, server, lora, remote, monkeypatch):
    """The copy lay in the part of a download that broke off, whose notes said that it could be gone on with."""
    url = f"{server.url}/files/my-lora.safetensors"
    server.routes["/files/my-lora.safetensors"] = serve(remote, drops=[100, 0])
    with pytest.raises(WeightsError, match="the download stopped after 100 bytes"):
        add(url, "tiny", root=project, web=server.web(attempts=2))
    assert files(project) == [".my-lora.safetensors.part", ".my-lora.safetensors.part.json"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tilemix.weights.part.Part.place", stop)
        with pytest.raises(KeyboardInterrupt):
            add(str(lora), "tiny", root=project)
    assert add(url, "tiny", root=project, web=server.web()).path.read_bytes() == remote


@pytest.mark.parametrize(
    "url", ["http://civitai.com/models/1", "https://example.com/x.safetensors", "file:///etc/passwd"]
)
def test_an_address_that_is_not_allowed_is_refused_at_once(project, url):
    assert refusal(url, project).startswith(f"{url}: the address has the ")


@pytest.mark.slow
def test_killed_at_any_moment_add_leaves_no_file_or_the_right_one(project, tmp_path, server):
    """kill -9 between the first byte and beyond the last; then one run without a kill completes the work."""
    body = write_tensors(tmp_path / "big", LORA_KEYS["kohya"]).read_bytes()
    server.routes["/a.safetensors"] = serve(body, pause=0.02, piece=16384)
    manifest = project / "weights" / "tiny.model.json"
    before = manifest.read_bytes()
    target = project / "weights" / "files" / "a.safetensors"
    command = [sys.executable, "-c", ADD, str(project), f"{server.url}/a.safetensors", server.host]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills = 0
    for wait in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        asked = len(server.requests)
        with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
            while len(server.requests) == asked and process.poll() is None:
                time.sleep(0.005)
            time.sleep(wait)
            process.kill()
        kills += process.returncode == -signal.SIGKILL
        assert not target.exists() or target.read_bytes() == body
        if manifest.read_bytes() != before:
            find_model("tiny", project)
    assert kills >= 3
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    assert files(project) == ["a.safetensors", "a.safetensors.metadata.json"]
    find_model("tiny", project)


def test_the_command_line_adds_to_the_model_that_every_verb_means(monkeypatch, tmp_path, capsys):
    calls = []

    def record(source, name, wish, *, web):
        calls.append((source, name, wish, web.tokens, "my.example" in web.hosts))
        raise WeightsError("weights-part-taken", file="x.safetensors")

    monkeypatch.setattr("tilemix.weights.add.add", record)
    monkeypatch.delenv("TILEMIX_MODEL", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("CIVITAI_TOKEN", "secret-2")
    assert cli.main(["weights", "add", "x.safetensors"]) == 1
    assert (
        capsys.readouterr().err
        == "tilemix weights: x.safetensors: another process is getting this file now\n"
    )
    monkeypatch.setenv("TILEMIX_MODEL", "tiny")
    cli.main(
        ["weights", "add", "x", "--scale", "0.5", "--as", "y", "--replace", "--allow-host", "my.example"]
    )
    cli.main(["weights", "add", "x", "--model", "other", "--tokens", "<a><b>"])
    tokens = {"civitai.com": "secret-2"}
    assert calls == [
        ("x.safetensors", "miniature", Wish(), tokens, False),
        ("x", "tiny", Wish(scale=0.5, file_name="y", replaces=True), tokens, True),
        ("x", "other", Wish(tokens=("<a>", "<b>")), tokens, False),
    ]


@pytest.mark.slow
def test_the_command_line_says_what_was_done(monkeypatch, project, lora, capsys, caplog):
    real = add

    def there(source, name, wish, *, web):
        return real(source, name, wish, root=project, web=web)

    monkeypatch.setattr("tilemix.weights.add.add", there)
    assert cli.main(["weights", "add", str(lora), "--model", "tiny"]) == 0
    assert capsys.readouterr().out == f"{project}/weights/files/my-lora.safetensors\n"
    assert caplog.messages[-1] == "tiny: added the lora, scale 0.7"
    assert cli.main(["weights", "add", str(lora), "--model", "tiny"]) == 0
    assert caplog.messages[-1] == "tiny: the file is in its place and in the manifest already"
