"""The real Cog server round predict.py, with its schema file and without."""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tilemix.pictures.reading import read_record
from tilemix.pictures.record import Record
from tilemix.system.project import ROOT

SERVED = ("predict.py", "cog.yaml", "tilemix", "prompt_templates", "weights")
START_SECONDS = 120  # for a cold disk; here it takes seven
DEADLINE_SECONDS = 60

SMALL = {
    "prompt": "50% red, 30% black, 20% pearl",
    "seed": 7,
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
}
LONG = {**SMALL, "width": 512, "height": 512, "num_inference_steps": 100}  # some thirty seconds


@dataclass
class Server:
    """One running Cog server; `folder` is its working folder."""

    process: subprocess.Popen
    client: httpx.Client
    folder: Path

    def when_free(self) -> httpx.Client:
        """Return the client once nothing runs.

        A server answers a little before it takes the next prediction: sent at once, that one gets a 409.
        """
        wait_until(lambda: self.health() != "BUSY")
        return self.client

    def predict(self, **inputs) -> httpx.Response:
        """Send one prediction and wait for its end."""
        return self.when_free().post("/predictions", json={"input": {**SMALL, **inputs}})

    def health(self) -> str:
        return self.client.get("/health-check").json()["status"]

    def log(self) -> list[dict]:
        """Return the fields of the server's log lines; the one being written is left out."""
        text = (self.folder / "server.log").read_text(encoding="utf-8")
        return [json.loads(line)["fields"] for line in text.split("\n")[:-1] if line.startswith("{")]

    def steps_done(self, prediction_id: str) -> int:
        lines = [line["message"] for line in self.log() if line.get("prediction_id") == prediction_id]
        return sum(line.endswith("denoise") for line in lines)


@contextlib.contextmanager
def serve(folder: Path, *, schema: bool, model: str = "miniature", python: str = sys.executable):
    """Run the server in a folder that has what the image has; give it once its setup has ended."""
    for name in (*SERVED, ".cog") if schema else SERVED:
        (folder / name).symlink_to(ROOT / name)
    (folder / "tmp").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COG_", "TILEMIX_"))
    }
    environment |= {
        # The server starts its worker as `python`, whatever runs the server.
        "PATH": os.pathsep.join([str(Path(python).parent), environment["PATH"]]),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "TILEMIX_MODEL": model,
        "TILEMIX_THREADS": "1",  # the other cores have their own tests
        "TMPDIR": str(folder / "tmp"),
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_SECONDS) as client:
            server = Server(process, client, folder)
            deadline = time.monotonic() + START_SECONDS
            while not is_started(server):
                assert process.poll() is None, "the server has stopped"
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.1)
            yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE_SECONDS)


def is_started(server: Server) -> bool:
    try:
        return server.health() != "STARTING"
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, schema=True) as running:
        assert running.health() == "READY"
        yield running
    wait_until(lambda: not list((folder / "tmp").glob("tilemix-*")))  # it leaves no picture behind


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory):
    """A server that has no schema file and so lets every value through to predict()."""
    with serve(tmp_path_factory.mktemp("bare"), schema=False) as running:
        assert running.health() == "READY"
        assert running.client.get("/openapi.json").status_code == 503
        yield running


@pytest.fixture(scope="module")
def reference(server):
    """The bytes of the small picture, drawn first of all."""
    return picture(server.predict())


@dataclass
class Receiver:
    """A web server that keeps the webhooks it gets."""

    url: str
    deliveries: list[dict] = field(default_factory=list)

    def wait_for(self, status: str) -> dict:
        wait_until(lambda: any(delivery["status"] == status for delivery in self.deliveries))
        return next(delivery for delivery in self.deliveries if delivery["status"] == status)


@pytest.fixture
def receiver():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.deliveries.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        received = Receiver(f"http://127.0.0.1:{listener.server_port}/hook?order=17")
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield received
        listener.shutdown()
        thread.join()


def wait_until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def picture(answer: httpx.Response) -> bytes:
    """Return the bytes of the picture in an answer."""
    assert answer.status_code == 200
    prediction = answer.json()
    assert prediction["status"] == "succeeded", prediction
    kind, _, data = prediction["output"].partition(";base64,")
    assert kind.startswith("data:image/")
    return base64.b64decode(data, validate=True)


def record_of(answer: httpx.Response, folder: Path) -> Record:
    path = folder / "answer"
    path.write_bytes(picture(answer))
    return read_record(path)


@contextlib.contextmanager
def long_prediction(server: Server, receiver: Receiver):
    """Run a long prediction that is in the middle of its steps; give its id, cancel it afterwards."""
    prediction_id = uuid.uuid4().hex
    answer = server.when_free().put(
        f"/predictions/{prediction_id}",
        json={"input": LONG, "webhook": receiver.url, "webhook_events_filter": ["completed"]},
        headers={"Prefer": "respond-async"},
    )
    assert answer.status_code == 202
    wait_until(lambda: server.steps_done(prediction_id) >= 2)
    try:
        yield prediction_id
    finally:
        server.client.post(f"/predictions/{prediction_id}/cancel")
    receiver.wait_for("canceled")
    wait_until(lambda: server.health() == "READY")


@pytest.mark.slow
def test_a_prediction_answers_with_the_picture_its_logs_and_its_metrics(server, tmp_path):
    answer = server.predict()
    prediction = answer.json()
    assert set(prediction) == {"id", "status", "output", "logs", "metrics"}
    assert prediction["output"].startswith("data:image/png;base64,")
    record = record_of(answer, tmp_path)
    assert (record.seed, record.width, record.height, record.num_inference_steps) == (7, 256, 256, 2)
    assert record.mix == {"red": 50, "black": 30, "pearl": 20}
    assert record.model == "miniature"
    logs = prediction["logs"].splitlines()
    assert "Using seed: 7" in logs
    assert [line for line in logs if "%|" in line] == [
        "100%|####################| 1/1 denoise",  # of two steps, from a draft at 0.2
    ]
    metrics = prediction["metrics"]
    assert (metrics["seed"], metrics["width"], metrics["height"]) == (7, 256, 256)
    assert metrics["num_inference_steps"] == 2
    seconds = [metrics[f"seconds_{part}"] for part in ("encode_prompt", "denoise", "decode", "save")]
    assert all(spent > 0 for spent in seconds)
    assert sum(seconds) <= metrics["predict_time"]
    shares = [metrics[f"share_{color}"] for color in ("red", "black", "pearl", "not_asked")]
    assert all(0 <= percent <= 100 for percent in shares)


ANSWER = re.compile(
    r"application/json' \\\n    -d '([^']*)'\n(\{\n.*?\n\})\n", re.DOTALL
)  # in docs/api.md: what is asked and answered
CHANGES = {"id", "output", "predict_time"}
ONCE = "seconds_switch"  # where the prediction before had other LoRA scales; the log also has a line then


@pytest.mark.slow
def test_the_answers_in_the_documentation_are_what_it_sends(server):
    """They had the shares, steps and names of pictures drawn long ago."""
    examples = ANSWER.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert len(examples) == 2
    for asked, shown in ((json.loads(asked), json.loads(shown)) for asked, shown in examples):
        sent = server.when_free().post("/predictions", json=asked).json()
        assert sent.keys() == shown.keys()
        assert {
            name: shown[name] for name in shown.keys() - CHANGES - {"metrics", "logs"}
        }.items() <= sent.items()
        first, _, last = shown["logs"].partition("...")
        logs = re.sub("LoRAs merged.*\n", "", sent["logs"])
        assert logs.startswith(first)
        assert logs.endswith(last)
        metrics = sent["metrics"]
        assert metrics.keys() - {ONCE} == shown["metrics"].keys()
        changes = CHANGES | ({"seed"} - asked["input"].keys())
        fixed = {name for name in shown["metrics"] if not name.startswith("seconds_")} - changes
        for name in fixed:
            value = shown["metrics"][name]
            # Processors differ in the last digits.
            assert metrics[name] == (pytest.approx(value, abs=0.3) if isinstance(value, float) else value), (
                name
            )


@pytest.mark.slow
@pytest.mark.parametrize(("output_format", "start"), [("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")])
def test_the_other_formats_come_with_their_record_too(server, tmp_path, output_format, start):
    answer = server.predict(output_format=output_format)
    assert answer.json()["output"].startswith(f"data:image/{output_format};base64,")
    assert picture(answer).startswith(start)
    assert record_of(answer, tmp_path).seed == 7


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(server, reference):
    assert picture(server.predict(seed=8)) != reference
    assert picture(server.predict()) == reference


@pytest.mark.slow
def test_a_seed_left_out_is_drawn_told_and_recorded(server, tmp_path):
    inputs = {name: value for name, value in SMALL.items() if name != "seed"}
    drawn = set()
    for _ in range(3):
        answer = server.when_free().post("/predictions", json={"input": inputs})
        seed = answer.json()["metrics"]["seed"]
        assert f"Using seed: {seed}\n" in answer.json()["logs"]
        assert record_of(answer, tmp_path).seed == seed
        drawn.add(seed)
    assert len(drawn) == 3


@pytest.mark.slow
def test_an_async_prediction_sends_its_webhooks(server, receiver, reference):
    answer = server.when_free().post(
        "/predictions",
        json={"input": SMALL, "webhook": receiver.url, "webhook_events_filter": ["start", "completed"]},
        headers={"Prefer": "respond-async"},
    )
    assert answer.status_code == 202
    assert set(answer.json()) == {"id", "status"}
    last = receiver.wait_for("succeeded")
    assert {delivery["id"] for delivery in receiver.deliveries} == {answer.json()["id"]}
    assert sorted(delivery["status"] for delivery in receiver.deliveries) == ["processing", "succeeded"]
    assert base64.b64decode(last["output"].partition(",")[2]) == reference
    assert "Using seed: 7" in last["logs"]
    assert last["metrics"]["seed"] == 7


@pytest.mark.slow
def test_put_with_the_id_of_a_running_prediction_starts_no_second_one(server, receiver):
    with long_prediction(server, receiver) as prediction_id:
        again = server.client.put(f"/predictions/{prediction_id}", json={"input": LONG})
        assert again.status_code == 202
        assert again.json()["id"] == prediction_id
        assert again.json()["status"] == "processing"
    starts = [line for line in server.log() if line.get("prediction_id") == prediction_id]
    assert sum(line["message"] == "Starting prediction" for line in starts) == 1
    assert len(receiver.deliveries) == 1


@pytest.mark.slow
def test_put_with_a_new_id_runs_under_that_id(server, reference):
    prediction_id = uuid.uuid4().hex
    answer = server.when_free().put(f"/predictions/{prediction_id}", json={"input": SMALL})
    assert answer.json()["id"] == prediction_id
    assert picture(answer) == reference


@pytest.mark.slow
def test_a_busy_server_says_so_and_takes_no_second_prediction(server, receiver):
    with long_prediction(server, receiver):
        assert server.health() == "BUSY"
        refused = server.client.post("/predictions", json={"input": SMALL})
        assert refused.status_code == 409
        assert "busy" in refused.text


@pytest.mark.slow
def test_cancel_takes_effect_within_one_step_and_the_next_prediction_is_unharmed(server, receiver, reference):
    with long_prediction(server, receiver) as prediction_id:
        before = server.steps_done(prediction_id)
        server.client.post(f"/predictions/{prediction_id}/cancel").raise_for_status()
        receiver.wait_for("canceled")
        # One step may end between the look at the log and the cancellation, one while it arrives.
        assert server.steps_done(prediction_id) - before <= 2
    assert receiver.deliveries[0]["metrics"]["seed"] == 7  # its logs are lost, its metrics are not
    assert picture(server.predict()) == reference


@pytest.mark.slow
def test_a_failed_prediction_leaves_the_next_one_unharmed(server, reference):
    failed = server.predict(prompt="50% red, 20% black").json()
    assert failed["status"] == "failed"
    assert "MixError" in failed["error"]
    assert "\n" not in failed["error"]
    assert failed["metrics"]["seed"] == 7
    assert picture(server.predict()) == reference


@pytest.mark.slow
def test_only_the_last_predictions_folder_is_on_the_disk(server):
    for _ in range(3):
        server.predict(num_inference_steps=1)
    folders = list((server.folder / "tmp").glob("tilemix-*/*"))
    assert len(folders) == 1
    assert [path.name for path in folders[0].iterdir()] == ["tile.png"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{0.class}", "${x}", "$prompt", "%s%n", "<lora x", "{a"])
def test_template_and_format_signs_in_a_prompt_are_plain_text(server, tmp_path, text):
    answer = server.predict(prompt=f"50% red, 50% black, {text}", num_inference_steps=1)
    record = record_of(answer, tmp_path)
    assert text in record.prompt
    assert text in record.sent_prompt


# Input, what the schema's check names (None: it lets the value through), what predict() says.
BAD_INPUTS = [
    ({"width": 257}, None, "RequestError: width 257: expected a multiple of 8 from 256 to 1536"),
    ({"width": 255}, "minimum of 256", "RequestError: width 255: expected a multiple of 8"),
    ({"height": 1544}, "maximum of 1536", "RequestError: height 1544: expected a multiple of 8"),
    ({"seed": -2}, "minimum of -1", "RequestError: seed -2 is out of range; expected -1 to 4294967295"),
    ({"seed": 2**32}, "maximum of 4294967295", "RequestError: seed 4294967296 is out of range"),
    ({"seed": 1.0}, None, "RequestError: seed 1.0 is not an integer; expected -1 to 4294967295"),
    ({"seed": 1.5}, "type", "RequestError: seed 1.5 is not an integer"),
    ({"seed": "1"}, "type", "RequestError: seed '1' is not an integer"),
    ({"seed": True}, "type", "RequestError: seed True is not an integer"),
    ({"num_inference_steps": 0}, "minimum of 1", "RequestError: num_inference_steps 0 is out of range"),
    ({"num_inference_steps": 2.0}, None, "RequestError: num_inference_steps 2.0 is not an integer"),
    ({"guidance_scale": 0.5}, "minimum of 1", "RequestError: guidance_scale 0.5 is out of range"),
    ({"guidance_scale": "7"}, "type", "RequestError: guidance_scale '7' is not a number"),
    ({"lora_scale": 2}, "maximum of 1.5", "RequestError: lora_scale 2 is out of range"),
    ({"output_format": "gif"}, "one of", "RequestError: unknown output_format 'gif'; known: png, webp, jpeg"),
    ({"output_format": ["png"]}, "one of", "RequestError: unknown output_format \"['png']\""),
    ({"prompt": None}, "type", "PromptError: prompt"),
    ({"prompt": 7}, "type", "PromptError: prompt"),
    ({"prompt": ""}, "shorter than 1", "PromptError: prompt"),
    ({"prompt": " \n"}, None, "PromptError: prompt"),
    ({"prompt": "red\u0007"}, None, "PromptError: prompt"),
    ({"prompt": "x" * 2001}, "longer than 2000", "PromptError: prompt"),
    ({"negative_prompt": "x" * 2001}, "longer than 2000", "PromptError: negative_prompt"),
    ({"prompt": "60% red, 60% black"}, None, "MixError"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "bare_server"])
def test_bad_input_is_refused_in_one_line_and_nothing_is_lost(kind, request, reference):
    server = request.getfixturevalue(kind)
    for inputs, edge, message in BAD_INPUTS:
        answer = server.predict(**inputs)
        if kind == "server" and edge is not None:
            assert answer.status_code == 422, inputs
            detail = answer.json()["detail"][0]
            assert detail["loc"] == ["body", "input", *inputs]
            assert edge in detail["msg"], inputs
        else:
            assert answer.status_code == 200, inputs
            failed = answer.json()
            assert failed["status"] == "failed", inputs
            assert message in failed["error"], inputs
            assert len(failed["error"]) < 300, inputs
            assert "\n" not in failed["error"], inputs
    assert picture(server.predict()) == reference


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "bare_server"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"input": {"prompt": "red", "guidance_scale": NaN}}',
        b'{"input": {"prompt": "red \\ud800"}}',
        b'{"input": {"prompt": "red',
        b'{"input": [7]}',
        b"[]",
    ],
)
def test_a_body_that_is_no_prediction_is_refused(kind, body, request):
    server = request.getfixturevalue(kind)
    answer = server.when_free().post(
        "/predictions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in {400, 422} or answer.json()["status"] == "failed"
    wait_until(lambda: server.health() == "READY")


@pytest.mark.slow
def test_a_prompt_of_60_megabytes_is_refused_and_nothing_is_lost(server, bare_server, reference):
    prompt = "50% red, 50% black " * (60_000_000 // 19)
    assert server.predict(prompt=prompt).status_code == 422
    failed = bare_server.predict(prompt=prompt).json()
    assert "PromptError: prompt" in failed["error"]
    assert len(failed["error"]) < 300
    assert picture(server.predict()) == reference
    assert picture(bare_server.predict()) == reference


@pytest.mark.slow
def test_without_a_schema_what_is_missing_or_too_much_is_refused_by_name(bare_server):
    missing = bare_server.when_free().post("/predictions", json={"input": {}}).json()
    assert "PromptError: prompt" in missing["error"]
    too_much = bare_server.predict(num_outputs=4).json()
    assert "unexpected keyword argument 'num_outputs'" in too_much["error"]


@pytest.mark.slow
def test_with_a_schema_what_is_missing_is_named_and_what_is_too_much_is_dropped(server, reference):
    missing = server.when_free().post("/predictions", json={"input": {}})
    assert missing.status_code == 422
    assert missing.json()["detail"] == [
        {"loc": ["body", "input", "prompt"], "msg": "Field required", "type": "value_error.missing"}
    ]
    assert picture(server.predict(num_outputs=4)) == reference


@pytest.mark.slow
def test_the_server_gives_out_the_committed_schema(server):
    committed = json.loads((ROOT / ".cog" / "openapi_schema.json").read_text(encoding="utf-8"))
    assert server.client.get("/openapi.json").json() == committed


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_named_by_the_failed_setup(tmp_path):
    with serve(tmp_path, schema=True, model="no-such-model") as failed:
        health = failed.client.get("/health-check").json()
        assert health["status"] == "SETUP_FAILED"
        assert "ManifestError: unknown model 'no-such-model'; known: " in health["setup"]["logs"]
        assert failed.predict().status_code == 503


@pytest.mark.slow
@pytest.mark.skipif(
    "COG_0_16_PYTHON" not in os.environ, reason="COG_0_16_PYTHON names no Python with cog 0.16.2"
)
def test_the_oldest_sdk_serves_it_too(tmp_path, reference):
    """That SDK is written in Python, makes the schema itself and converts what it can, such as 7.0 to 7."""
    with serve(tmp_path, schema=False, python=os.environ["COG_0_16_PYTHON"]) as old:
        assert old.health() == "READY"
        assert picture(old.predict()) == reference
        assert old.predict(seed=7.0).json()["metrics"]["seed"] == 7
        assert old.predict(width=255).status_code == 422
        assert old.predict(output_format="gif").status_code == 422
        failed = old.predict(width=257).json()
        assert failed["error"] == "width 257: expected a multiple of 8 from 256 to 1536"
        old.when_free().post(
            "/predictions", json={"id": "x", "input": LONG}, headers={"Prefer": "respond-async"}
        )
        wait_until(lambda: "2/100 denoise" in (tmp_path / "server.log").read_text(encoding="utf-8"))
        assert old.health() == "BUSY"
        old.client.post("/predictions/x/cancel").raise_for_status()
        assert picture(old.predict()) == reference
        answer = old.client.get("/openapi.json").json()["components"]["schemas"]
        assert answer["Input"]["required"] == ["prompt"]
