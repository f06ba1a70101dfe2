"""Tasks, and the loaded models that they are drawn with."""

import contextlib
import gc
import importlib
import io
import json
import logging
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from starlette.testclient import TestClient

from tests import tiny_flux
from tests.studio_parts import data_uri
from tests.test_pipelines_loading import QUERY, base_of
from tests.test_predict import LEFT_OUT
from tests.tiny_sdxl import TEMPLATE, write_manifest
from tilemix import cli
from tilemix.errors import ManifestError, RequestError, WeightsError
from tilemix.models import ModelManager
from tilemix.pictures.foreign import read_infotext
from tilemix.pictures.reading import open_picture, read_record
from tilemix.pictures.record import parameters_text
from tilemix.pipelines.footprint import estimate_bytes, find_free_bytes
from tilemix.pipelines.settings import Settings
from tilemix.pipelines.speed import Speed
from tilemix.request import GenerationRequest
from tilemix.studio.app import create_app
from tilemix.studio.predictions import Report
from tilemix.studio.service import Studio
from tilemix.studio.settings import Secret
from tilemix.studio.settings import Settings as StudioSettings
from tilemix.system.project import ROOT
from tilemix.weights import find_model
from tilemix.weights.add import add
from tilemix.weights.tasks import find_task, load_tasks

MIX = "60% red, 40% black"
TASKS = {
    "tile": {},
    "host_face": {"model": "tiny", "adapters": {"Host_Person": 0.5}},
    "background": {"model": "tiny", "adapters": {}, "template": "plain"},
    "elsewhere": {"model": "other"},
    "third": {"model": "third"},
}
PLAIN = {
    "name": "plain",
    "text": "a picture of $prompt",
    "trigger_words": [],
    "placeholder_tokens": [],
    "negative_prompt": "ugly",
}


def write_models(root: Path, tiny_project: Path) -> Path:
    """Write the models `tiny`, which has two LoRAs, `other` and `third`, and the tasks above."""
    (root / "weights").mkdir()
    (root / "weights" / "tiny").symlink_to(tiny_project / "weights" / "tiny")
    (root / "prompt_templates").mkdir()
    for template in (TEMPLATE, PLAIN):
        (root / "prompt_templates" / f"{template['name']}.json").write_text(json.dumps(template))
    generator = torch.Generator().manual_seed(1)
    for name in ("tile", "host_person"):
        halves = {
            f"{QUERY}.lora_{half}.weight": torch.randn(shape, generator=generator)
            for half, shape in (("A", (4, 32)), ("B", (32, 4)))
        }
        save_file(halves, root / "weights" / f"{name}.safetensors")
    save_file(
        {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48)}, root / "weights" / "tokens.safetensors"
    )
    write_manifest(root, base=base_of(tiny_project), prompt_template="plain")
    manifest = root / "weights" / "tiny.model.json"
    for name in ("other", "third"):
        (root / "weights" / f"{name}.model.json").write_bytes(manifest.read_bytes())
    adapters = [
        {"file": "tile.safetensors", "kind": "lora", "scale": 0.7},
        {"file": "host_person.safetensors", "kind": "lora", "scale": 0},
        {"file": "tokens.safetensors", "kind": "embedding", "tokens": ["<s0>", "<s1>"]},
    ]
    write_manifest(root, base=base_of(tiny_project), adapters=adapters)
    write_tasks(root, TASKS)
    return root


def write_tasks(root: Path, tasks: object) -> None:
    (root / "weights" / "tasks.json").write_text(json.dumps(tasks))


@pytest.fixture(scope="module")
def root(tiny_project, tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), tiny_project)


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Leave this process its allocator, and thaw afterward what was frozen."""
    monkeypatch.setattr("tilemix.render.keep_freed_memory", lambda: True)
    yield
    gc.unfreeze()


def manage(root, **changes) -> ModelManager:
    settings = Settings(threads=torch.get_num_threads(), speed=Speed.EXACT, **changes)
    return ModelManager("tiny", settings, root=root)


def ask(task=None, **changes) -> GenerationRequest:
    return GenerationRequest(**{"prompt": MIX, "seed": 7, "num_inference_steps": 1, "task": task} | changes)


@pytest.fixture(scope="module")
def models(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tilemix.render.keep_freed_memory", lambda: True)
        made = manage(root)
        made.load()
    return made


@pytest.mark.slow
def test_each_task_draws_with_its_loras_and_template_and_leaves_nothing_behind(models, caplog):
    caplog.set_level(logging.INFO)
    before = models.render(ask())
    assert before.record.lora_scales == {"tile.safetensors": 0.7, "host_person.safetensors": 0}
    assert "Loaded LoRA" not in caplog.text

    face = models.render(ask("host_face"))
    assert "Loaded LoRA: host_person.safetensors (scale=0.5)" in caplog.messages
    assert (face.record.task, face.record.lora_scales) == ("host_face", {"host_person.safetensors": 0.5})
    assert list(face.record.lora_hashes) == ["host_person.safetensors"]
    assert 'Lora hashes: "host_person: ' in parameters_text(face.record)
    assert face.record.sent_prompt.startswith("ohwx_rubber_tile <s0><s1>, ")
    assert 0 < face.seconds["switch"] < 60
    assert not np.array_equal(face.pixels, before.pixels)

    caplog.clear()
    bare = models.render(ask("background"))
    assert "No LoRA" in caplog.messages
    assert "Loaded LoRA" not in caplog.text
    assert (bare.record.sent_prompt, bare.record.sent_negative_prompt) == (f"a picture of {MIX}", "ugly")
    assert bare.record.lora_scales == bare.record.lora_hashes == {}
    assert np.array_equal(bare.pixels, models.render(ask("elsewhere")).pixels), "the same base without LoRAs"

    tile = models.render(ask("tile"))
    assert np.array_equal(tile.pixels, before.pixels)
    again = models.render(ask())
    assert np.array_equal(again.pixels, before.pixels)
    assert "switch" not in again.seconds, "the task before had the same LoRAs"
    assert "task" not in json.loads(parameters_json(again))
    assert list(models.loaded) == ["tiny", "other"], "tasks of one model share it"


def parameters_json(rendered) -> str:
    from tilemix.pictures.record import record_json

    return record_json(rendered.record)


def test_a_picture_comes_back_for_a_task_and_a_scale(models, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    inputs = {"seed": 7, "num_inference_steps": 1, "width": 256, "height": 264}
    picture = models.generate(MIX, task="host_face", lora_alpha=0, **inputs)
    assert (picture.mode, picture.size) == ("RGB", (256, 264))
    assert "No LoRA" in caplog.messages
    full = models.generate(MIX, task="host_face", lora_alpha=1, **inputs)
    assert "Loaded LoRA: host_person.safetensors (scale=1)" in caplog.messages
    assert full.tobytes() != picture.tobytes()
    for name in ("full.png", "full.webp", "full.jpg"):
        full.save(tmp_path / name)
        record = read_record(tmp_path / name)
        assert (record.prompt, record.task, record.lora_scale, record.seed) == (MIX, "host_face", 1, 7)
        assert read_infotext(open_picture(tmp_path / name)).parameters["Seed"] == "7"


@pytest.mark.parametrize(
    ("tasks", "asked", "message"),
    [
        (TASKS, "host", "unknown task 'host'; known: tile, host_face, background, elsewhere, third"),
        (
            TASKS,
            "x" * 9000,
            f"unknown task '{'x' * 40}'; known: tile, host_face, background, elsewhere, third",
        ),
        ({}, "tile", "unknown task 'tile'; known: none"),
        (
            {"a": {"model": "tinny"}},
            "a",
            "tasks.json: task 'a': there is no model 'tinny'; the nearest: tiny, third, other",
        ),
        (
            {"a": {"adapters": {"host_persons": 1}}},
            "a",
            "tasks.json: task 'a': model 'tiny' has no LoRA 'host_persons'; the nearest: host_person, tile",
        ),
        (
            {"a": {"model": "other", "adapters": {"tile": 1}}},
            "a",
            "tasks.json: task 'a': model 'other' has no LoRA 'tile'; the nearest: none",
        ),
        (
            {"a": {"adapters": {"tokens": 1}}},
            "a",
            "tasks.json: task 'a': model 'tiny' has no LoRA 'tokens'; the nearest: tile, host_person",
        ),
        ({"a": {"adapters": {"tile": 1.6}}}, "a", "'tile' has the scale 1.6, expected 0 to 1.5"),
        (
            {"a": {"adapters": {"tile": "1"}}},
            "a",
            "task 'a': 'adapters.tile' is \"1\", expected a JSON number",
        ),
        ({"a": {"adapters": {"tile": True}}}, "a", "'adapters.tile' is true, expected a JSON number"),
        ({"a": {"adapters": ["tile"]}}, "a", "'adapters' is [\"tile\"], expected a JSON object"),
        (
            {"tile": {}, "a": {"model": 5}},
            "tile",
            "tasks.json: task 'a': 'model' is 5, expected a JSON string",
        ),
        ({"a": "tiny"}, "a", "tasks.json: task 'a': 'value' is \"tiny\", expected a JSON object"),
        ({"a": {"adaptors": {}}}, "a", "task 'a': unknown key 'adaptors'; known: model, adapters, template"),
        ({"a": {"model": "../tiny"}}, "a", "task 'a': model '../tiny' is not a name"),
        ({"a": {"model": ""}}, "a", "task 'a': model '' is not a name"),
        ({"a": {"template": "/etc/passwd"}}, "a", "task 'a': template '/etc/passwd' is not a name"),
        (
            {"a": {"template": "plane"}},
            "a",
            "tasks.json: task 'a': there is no prompt template 'plane'; the nearest: none",
        ),
        (
            {"a": {"adapters": {"tile": 1, "Tile.safetensors": 0.5}}},
            "a",
            "tasks.json: the key 'a.adapters.Tile.safetensors' stands twice, expected once",
        ),
        ({"A b": {}}, "A b", "task 'A b': key 'A b' is not a name"),
        ([], "a", "Expected `object`, got `array`"),
    ],
)
def test_a_task_that_cannot_be_done_is_one_line(tasks, asked, message, root, tmp_path):
    (tmp_path / "weights").mkdir()
    for file in (root / "weights").glob("*.model.json"):
        (tmp_path / "weights" / file.name).symlink_to(file)
    write_tasks(tmp_path, tasks)
    with pytest.raises((RequestError, ManifestError)) as caught:
        find_task(asked, served="tiny", root=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"model": "x", "model": "y"}}', "tasks.json: the key 'a.model' stands twice, expected once"),
        ('{"a": {}, "a": {}}', "tasks.json: the key 'a' stands twice, expected once"),
        ("\ufeff{}", "tasks.json: begins with a byte order mark, expected UTF-8 without one"),
        ('{"a": {"adapters": {"tile": 1e999}}}', "tasks.json: "),
        ("[" * 100_000, "tasks.json: "),
    ],
)
def test_a_file_of_tasks_that_is_not_plain_json_is_one_line(text, message, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tasks.json").write_text(text, "utf-8")
    with pytest.raises(ManifestError) as caught:
        load_tasks(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_file_there_are_no_tasks_and_the_committed_ones_can_be_done(tmp_path):
    assert load_tasks(tmp_path) == {}
    for name in load_tasks():
        assert find_task(name, served="miniature").lora_scales is None


def test_a_model_that_is_loaded_alone_refuses_a_task(models):
    alone = models.load()
    with pytest.raises(RequestError, match="task 'tile' cannot be asked for here"):
        alone.plan(ask("tile"))


def test_the_command_line_refuses_an_unknown_task_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tilemix.render.Renderer.load", lambda *_, **__: pytest.fail("loaded"))
    assert cli.main(["predict", MIX, "--task", "tail", "-o", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err == "tilemix predict: unknown task 'tail'; known: rubber_tile\n"


class FakeRenderer:
    """A loaded model that draws nothing."""

    busy = threading.Lock()

    def __init__(self, model):
        self.model = model

    def of_task(self, task):
        return self

    def render(self, request, *, on_step=None):
        assert self.busy.acquire(blocking=False), "two at once"
        time.sleep(0.01)
        self.busy.release()
        return SimpleNamespace(seconds={}, model=self.model)


@pytest.fixture
def sizes(monkeypatch):
    """Load fakes, of these sizes in bytes."""
    found = dict.fromkeys(("tiny", "other", "third"), 10**9)

    def load(model, settings, *, root, admit, merges):
        admit(SimpleNamespace(name=model), torch.device("cpu"), torch.float32)
        return FakeRenderer(model)

    monkeypatch.setattr("gc.collect", lambda: 0)  # takes half a second in a process with these libraries
    monkeypatch.setattr("tilemix.models.Renderer.load", load)
    monkeypatch.setattr("tilemix.models.estimate_bytes", lambda model, *_: found[model.name])
    return found


def test_the_model_that_was_used_the_longest_ago_leaves_first(root, sizes, caplog):
    caplog.set_level(logging.INFO)
    models = manage(root, memory=int(2.5e9))
    for task, loaded in (
        (None, ["tiny"]),
        ("elsewhere", ["tiny", "other"]),
        ("tile", ["tiny", "other"]),
        ("third", ["tiny", "third"]),
        ("elsewhere", ["third", "other"]),
    ):
        models.load(task)
        assert list(models.loaded) == loaded
    assert "unloading other to make room for third" in caplog.messages
    assert any(message.startswith("switched to model third in ") for message in caplog.messages)
    sizes["tiny"] = int(2.2e9)
    models.load()
    assert models.loaded == {"tiny": int(2.2e9)}


def test_a_model_that_exceeds_the_budget_is_refused_and_the_next_request_works(root, sizes):
    sizes["other"] = 10**10
    models = manage(root, memory=4 * 10**9)
    models.load()
    with pytest.raises(WeightsError) as caught:
        models.render(ask("elsewhere"))
    expected = "model 'other' takes 10000 MB, and loaded models may take 4000 MB; see TILEMIX_MEMORY"
    assert str(caught.value) == expected
    assert models.render(ask("tile")).model == "tiny"
    with pytest.raises(WeightsError, match="model 'tiny' takes 1000 MB, and loaded models may take 999 MB"):
        manage(root, memory=999 * 10**6).load()


def test_without_a_setting_the_budget_is_a_part_of_what_is_free_and_the_served_model_always_fits(
    root, sizes, monkeypatch
):
    monkeypatch.setattr("tilemix.models.find_free_bytes", lambda _: 10**9)
    served = manage(root)
    served.load()
    assert served.loaded == {"tiny": 10**9}
    with pytest.raises(WeightsError, match="model 'other' takes 1000 MB, and loaded models may take 800 MB"):
        manage(root).load("elsewhere")


def test_requests_that_want_two_models_at_once_are_drawn_in_turn(root, sizes):
    models, drawn = manage(root, memory=10**9), []

    def draw(task):
        drawn.append((task, models.render(ask(task)).model))

    threads = [threading.Thread(target=draw, args=(task,)) for task in ("tile", "elsewhere") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == 3 * [("elsewhere", "other")] + 3 * [("tile", "tiny")]
    assert len(models.loaded) == 1


def test_the_size_is_what_the_weights_take(root, models):
    tiny = models.load().ready.base.pipeline
    parts = (tiny.unet, tiny.vae, tiny.text_encoder, tiny.text_encoder_2)
    taken = sum(
        tensor.nbytes
        for part in parts
        for name, tensor in part.state_dict().items()
        if "position_ids" not in name
    )
    # The two learned tokens come on top.
    assert taken - models.loaded["tiny"] == 2 * (32 + 48) * 4
    located = find_model("tiny", root)
    half = estimate_bytes(located, torch.device("cuda"), torch.float16)
    assert 2 * half == models.loaded["tiny"]


class Canceled(BaseException):
    """As Cog's is not an `Exception`."""


@pytest.mark.slow
def test_a_cancellation_in_the_middle_of_a_switch_leaves_a_usable_manager(root, models, monkeypatch):
    tight = manage(root, memory=models.loaded["tiny"])
    before = tight.render(ask())
    unet = weakref.ref(tight.load().ready.base.pipeline.unet)
    with monkeypatch.context() as patch:
        patch.setattr("tilemix.render.load_pipeline", cancel)
        with pytest.raises(Canceled):
            tight.render(ask("elsewhere"))
    assert tight.loaded == {}
    assert unet() is None, "its memory is free"
    assert np.array_equal(tight.render(ask()).pixels, before.pixels)


def cancel(*_, **__):
    raise Canceled


def test_a_cancellation_while_loras_are_merged_leaves_a_usable_manager(models, monkeypatch):
    before = models.render(ask("host_face"))
    with monkeypatch.context() as patch:
        patch.setattr("tilemix.adapters.merging.merge", cancel)
        with pytest.raises(Canceled):
            models.render(ask("background"))
    assert np.array_equal(models.render(ask("host_face")).pixels, before.pixels)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 7812 * 1024), ("4096000", 4_096_000 - 3_000_000 + 500_000), (None, 7812 * 1024)],
)
def test_free_memory_is_what_the_system_and_the_control_group_have_left(tmp_path, limit, expected):
    facts = tmp_path / "meminfo"
    facts.write_text("MemTotal: 9999 kB\nMemAvailable:    7812 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("3000000\n")
        (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert find_free_bytes(torch.device("cpu"), facts, tmp_path) == expected
    assert find_free_bytes(torch.device("cpu"), tmp_path / "none", tmp_path / "none") > 0


def test_is_healthy_asks_the_loaded_models(models, monkeypatch):
    assert models.is_healthy()
    monkeypatch.setattr("tilemix.render.Renderer.is_healthy", lambda _: False)
    assert not models.is_healthy()


class PredictorBackend:
    """A back end that calls predict() in this process, as a Cog server does in its own."""

    name = "cog"
    slots = 1
    is_synchronous = True

    def __init__(self, predictor):
        self.predictor = predictor

    def is_ready(self):
        return True

    def find_fault(self):
        return None

    def submit(self, attempt_id, inputs, *, webhook, seconds):
        path = self.predictor.predict(**{**LEFT_OUT, **inputs})
        return Report(remote_id=attempt_id, status="succeeded", output=data_uri(path.read_bytes()))

    def close(self):
        pass


# curl -F prompt=... -F use_model_manager=true -F task=host_face -F width=1024 -F height=1024
SIZES = {"width": "1024", "height": "1024"}
ASKED = {"prompt": "a man at a desk", "use_model_manager": "true", "task": "host_face", **SIZES}
FORM = {name: (None, value) for name, value in ASKED.items()}


@contextlib.contextmanager
def run_studio(root, models, tmp_path, monkeypatch):
    """Run the studio over predict() with these models; give a client."""
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("predict")
    predictor = module.Predictor()
    predictor.models, predictor.folder = models, module.Path(tmp_path / "predictions")
    settings = StudioSettings(
        folder=tmp_path,
        database_url=Secret(f"sqlite:///{tmp_path / 'studio.sqlite3'}"),
        model="tiny",
        deadline_seconds=300,
        port=9,
    )
    with (
        Studio(settings, backend=PredictorBackend(predictor), root=root) as studio,
        TestClient(create_app(studio), base_url="http://127.0.0.1:8000") as client,
    ):
        yield client


def read_answer(answer) -> dict:
    """Return the record of a picture that the form answered with."""
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (1024, 1024)
        return json.loads(picture.text["tilemix"])


@pytest.mark.slow
def test_the_studios_form_draws_a_task_with_flux_beside_the_served_sdxl(
    tiny_project, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    root = tiny_flux.write_project(tmp_path / "project")
    (root / "weights" / "tiny.model.json").rename(root / "weights" / "flux1-dev.model.json")
    (root / "weights" / "sdxl").symlink_to(tiny_project / "weights" / "tiny")
    write_manifest(root, base=base_of(tiny_project) | {"folder": "sdxl"})
    module = "transformer.transformer_blocks.0.attn.to_q"
    lora = {f"{module}.lora_A.weight": torch.ones(4, 32), f"{module}.lora_B.weight": torch.ones(32, 4)}
    save_file(lora, tmp_path / "host_person.safetensors")
    add(str(tmp_path / "host_person.safetensors"), "flux1-dev", root=root)
    write_tasks(
        root, {"host_face": {"model": "flux1-dev", "adapters": {"host_person": 0.7}}, "rubber_tile": {}}
    )
    with run_studio(root, manage(root), tmp_path, monkeypatch) as client:
        record = read_answer(client.post("/api/generate-image", files=FORM, headers={"Accept": "image/png"}))
        assert (record["task"], record["model"]) == ("host_face", "flux1-dev")
        assert record["lora_scales"] == {"host_person.safetensors": 0.7}
        assert "Loaded LoRA: host_person.safetensors (scale=0.7)" in caplog.messages
        tile = FORM | {"task": (None, "rubber_tile"), "prompt": (None, MIX)}
        record = read_answer(client.post("/api/generate-image", files=tile, headers={"Accept": "image/png"}))
        assert (record["task"], record["model"]) == ("rubber_tile", "tiny")


@pytest.mark.slow
def test_the_studios_form_draws_a_task_of_the_served_models(root, models, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with run_studio(root, models, tmp_path, monkeypatch) as client:
        record = read_answer(client.post("/api/generate-image", files=FORM, headers={"Accept": "image/png"}))
        assert (record["task"], record["model"]) == ("host_face", "tiny")
        assert record["lora_scales"] == {"host_person.safetensors": 0.5}
        assert "Loaded LoRA: host_person.safetensors (scale=0.5)" in caplog.messages

        (found,) = client.get("/api/predictions").json()["predictions"]
        assert found["input"]["task"] == "host_face"
        page = client.get("/").text
        assert all(f"<option>{task}</option>" in page for task in TASKS)
        refused = client.post("/api/predictions", json={"prompt": MIX, "task": "host"})
        assert refused.status_code == 422
        assert refused.json()["error"]["values"] == {"typed": "host", "known": ", ".join(TASKS)}
        write_tasks(root, {"host_face": {"model": "flux1-dev"}})
        broken = client.post("/api/generate-image", files=FORM)
        write_tasks(root, TASKS)
        assert (broken.status_code, broken.json()["error"]["message"]) == (
            422,
            "tasks.json: task 'host_face': there is no model 'flux1-dev'; the nearest: third, other, tiny",
        )
