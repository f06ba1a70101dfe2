"""The API and the inbox's endpoints: the whole application over a Cog server's stand-in."""

import contextlib
import dataclasses
import json
import logging
import re
import threading
import time

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from tests.cog_stand_in import run_cog_stand_in
from tests.conftest import DATABASES
from tests.quick import first_quick
from tests.studio_parts import OTHER_SECRET, SECRET, body, data_uri, picture, sign
from tilemix.errors import SettingsError, StoreDownError
from tilemix.request import GenerationRequest
from tilemix.studio import api
from tilemix.studio.app import create_app
from tilemix.studio.inbox import MAX_BODY_BYTES
from tilemix.studio.limits import BURST, RateLimit
from tilemix.studio.log import MaskingFormatter
from tilemix.studio.replicate_backend import ReplicateBackend, replicate_client
from tilemix.studio.service import Studio
from tilemix.studio.settings import Secret, Settings
from tilemix.studio.store.schema import Delivery
from tilemix.studio.web.api_inputs import FORM_INPUTS
from tilemix.system.project import ROOT

MIX = "50% red, 50% black"
BASE = "http://127.0.0.1:8000"


class NoLimit(RateLimit):
    """Takes everything."""

    def take(self, address):
        return True


@contextlib.contextmanager
def run(folder, cog, **changes):
    """A client of a running studio; its webhooks go nowhere, for no port is open."""
    database_url = changes.pop("database_url", f"sqlite:///{folder / 'studio.sqlite3'}")
    settings = Settings(
        folder=folder,
        database_url=Secret(database_url),
        cog_url=cog.url,
        webhook_secrets=(Secret(SECRET),),
        cog_webhook_token=Secret(cog.token),
        deadline_seconds=30,
        port=9,
    )
    rate_limit = changes.pop("rate_limit", None)
    backend, root = changes.pop("studio_backend", None), changes.pop("root", ROOT)
    with (
        Studio(dataclasses.replace(settings, **changes), backend=backend, root=root) as studio,
        TestClient(
            create_app(studio, rate_limit=rate_limit), base_url=BASE, raise_server_exceptions=False
        ) as client,
    ):
        client.studio = studio
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A client for tests that leave nothing behind which another one would see."""
    with (
        run_cog_stand_in() as cog,
        run(tmp_path_factory.mktemp("shared"), cog, rate_limit=NoLimit()) as client,
    ):
        yield client


@pytest.fixture
def client(tmp_path, cog):
    with run(tmp_path, cog) as running:
        yield running


def form(client, accept=None, **fields):
    """Send a multipart form."""
    files = {name: (None, value) for name, value in fields.items()}
    return client.post("/api/generate-image", files=files, headers={"Accept": accept} if accept else {})


def wait_for(client, identity, condition=lambda found: found["is_done"]) -> dict:
    deadline = time.monotonic() + 20
    while not condition(found := client.get(f"/api/predictions/{identity}").json()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("kind", DATABASES)
def test_a_form_gives_a_picture_and_its_record(tmp_path, cog, kind, request):
    changes = {}
    if kind == "postgresql":
        from tests.studio_parts import make_postgres_database

        holder = make_postgres_database(request.getfixturevalue("postgres_url"))
        changes["database_url"] = holder.__enter__()
        request.addfinalizer(lambda: holder.__exit__(None, None, None))
    with run(tmp_path, cog, **changes) as client:
        fields = {"width": "512", "height": "512", "seed": "7", "negative_prompt": "", "lora_alpha": "0.8"}
        answer = form(client, prompt=MIX, task="miniature", use_model_manager="true", **fields)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["status"], found["is_done"], found["mix"]) == (
            "succeeded",
            True,
            {"red": 50, "black": 50},
        )
        ((_, sent),) = cog.asked
        sizes = {"width": 512, "height": 512, "seed": 7, "lora_scale": 0.8}
        given = {"prompt": MIX, "negative_prompt": "", "granule_size": "medium", "output_format": "png"}
        assert sent["input"] == {**given, **sizes}
        assert found["input"] == sent["input"]
        file = client.get(found["url"])
        assert (file.content, file.headers["content-type"]) == (picture(), "image/png")
        assert file.headers["content-disposition"] == f'inline; filename="tile-{found["id"]}.png"'
        assert client.get(f"/api/predictions/{found['id']}").json() == found


@pytest.mark.parametrize(
    ("accept", "media_type"),
    first_quick(
        [
            pytest.param("image/png", "image/png"),
            pytest.param("image/*;q=0.9, application/json;q=0.5", "image/png"),
            pytest.param("image/png;q=0.1, application/json", "application/json"),
            pytest.param("application/json", "application/json"),
            pytest.param("*/*", "application/json"),
            pytest.param("image/png;q=x", "application/json"),
            pytest.param("image/png;q=0", "application/json"),
            pytest.param("", "application/json"),
        ]
    ),
)
def test_the_answer_is_what_accept_asks_for(shared, accept, media_type):
    answer = form(shared, accept, prompt=MIX)
    assert answer.headers["content-type"] == media_type
    assert (answer.content == picture()) is (media_type == "image/png")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "input prompt is missing"),
        ({"prompt": "50% rad, 50% black"}, "unknown color 'rad' at character 5; did you mean 'red'?"),
        ({"prompt": "50% red"}, "shares total 50%, expected 100%: read 50% red"),
        ({"prompt": " "}, "prompt: empty, expected 1 to 2000 characters"),
        ({"prompt": MIX, "seed": "-2"}, "seed -2 is out of range; expected -1 to 4294967295"),
        ({"prompt": MIX, "seed": "7.0"}, "seed '7.0' is not an integer; expected -1 to 4294967295"),
        ({"prompt": MIX, "seed": "٧"}, "seed '٧' is not an integer; expected -1 to 4294967295"),
        ({"prompt": MIX, "width": "257"}, "width 257: expected a multiple of 8 from 256 to 1536"),
        ({"prompt": MIX, "lora_alpha": "nan"}, "lora_alpha 'nan' is not a number; expected 0 to 1.5"),
        ({"prompt": MIX, "lora_alpha": "2"}, "lora_alpha 2.0 is out of range; expected 0 to 1.5"),
        ({"prompt": MIX, "task": "flux"}, "unknown task 'flux'; known: rubber_tile"),
        ({"prompt": MIX, "lora_scale": "1"}, "unknown input 'lora_scale'; did you mean 'lora_alpha'?"),
        ({"prompt": MIX, "negative": "x"}, "unknown input 'negative'; did you mean 'negative_prompt'?"),
        ({"prompt": MIX, "steps": "4"}, f"unknown input 'steps'; known: {', '.join(FORM_INPUTS)}"),
    ],
)
def test_a_form_that_predict_would_refuse_is_refused_before_the_queue(shared, fields, error):
    before = shared.get("/api/predictions").json()
    answer = form(shared, **fields) if fields else shared.post("/api/generate-image", data={"seed": "1"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, error)
    assert shared.get("/api/predictions").json() == before


def test_a_refusal_names_the_code_the_field_and_the_place(shared):
    answer = form(shared, prompt="50% rad, 50% black")
    assert answer.json() == {
        "error": {
            "code": "mix-unknown-color",
            "field": "prompt",
            "message": "unknown color 'rad' at character 5; did you mean 'red'?",
            "values": {"typed": "rad", "position": 5, "words": "red"},
        }
    }


def test_a_body_that_is_no_form_is_refused_by_its_type(shared):
    """JSON was answered with "input prompt is missing", although it was there."""
    answer = shared.post("/api/generate-image", json={"prompt": MIX})
    expected = "the body is application/json; expected multipart/form-data"
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, expected)
    answer = shared.post("/api/generate-image")
    assert (
        answer.json()["error"]["message"] == "the request has no Content-Type; expected multipart/form-data"
    )


def test_a_broken_form_a_file_and_a_field_given_twice_are_refused(shared):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert shared.post("/api/generate-image", content=b"nonsense", headers=headers).status_code in {400, 422}
    for files in ({"prompt": ("a.txt", b"red")}, {"task": ("a.txt", b"miniature"), "prompt": (None, "red")}):
        answer = shared.post("/api/generate-image", files=files)
        expected = f"field {next(iter(files))} is a file; expected text"
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, expected)
    twice = shared.post("/api/generate-image", files=[("prompt", (None, "red")), ("prompt", (None, "blue"))])
    assert twice.json()["error"] == {
        "code": "input-twice",
        "field": "prompt",
        "message": "field prompt is given twice; expected once",
        "values": {},
    }
    assert shared.post("/api/generate-image", content=b"x" * 300_000, headers=headers).status_code == 413


@pytest.mark.parametrize("name", FORM_INPUTS)
def test_every_field_given_twice_or_too_large_is_refused_by_its_name(shared, name):
    twice = [("prompt", (None, MIX)), (name, (None, "1")), (name, (None, "1"))]
    answer = shared.post("/api/generate-image", files=twice)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        422,
        f"field {name} is given twice; expected once",
    )
    large = shared.post("/api/generate-image", files={"prompt": (None, MIX), name: (None, "1" * 70_000)})
    assert (large.status_code, large.json()["error"]["message"]) == (
        400,
        "the form cannot be read: Part exceeded maximum size of 64KB.",
    )


@pytest.mark.parametrize("value", first_quick(["", "true", "false", "anything at all", "x" * 60_000]))
def test_use_model_manager_is_taken_and_means_nothing(shared, value):
    answer = form(shared, prompt=MIX, seed="7", use_model_manager=value)
    assert answer.status_code == 200
    left_out = {"granule_size": "medium", "output_format": "png"}
    assert answer.json()["input"] == {"prompt": MIX, "seed": 7, **left_out}


@pytest.mark.parametrize(
    ("task", "status", "asked"),
    [
        ("", 200, None),
        ("miniature", 200, None),  # the served model
        ("rubber_tile", 200, "rubber_tile"),
        ("Miniature", 422, None),
        ("x" * 60_000, 422, None),
    ],
)
@pytest.mark.slow
def test_a_task_is_passed_on_unless_it_is_the_served_model(shared, task, status, asked):
    answer = form(shared, prompt=MIX, task=task)
    assert answer.status_code == status
    assert status != 200 or answer.json()["input"].get("task") == asked
    assert status == 200 or len(answer.json()["error"]["message"]) < 120


def test_a_urlencoded_form_is_taken_too_and_too_many_fields_are_not(shared):
    assert shared.post("/api/generate-image", data={"prompt": MIX}).status_code == 200
    many = shared.post("/api/generate-image", files=[("prompt", (None, MIX))] * 30)
    assert (many.status_code, many.json()["error"]["message"]) == (
        400,
        "the form cannot be read: Too many fields. Maximum number of fields is 20.",
    )
    many = shared.post("/api/generate-image", data={f"a{number}": "1" for number in range(30)})
    assert many.status_code in {400, 422}
    large = shared.post("/api/generate-image", data={"prompt": "x" * 200_000})
    assert large.status_code in {400, 422}


def test_a_prediction_that_failed_says_why(client, cog):
    cog.outcome = {"status": "failed", "error": "out of memory"}
    answer = form(client, prompt=MIX)
    assert answer.status_code == 502
    assert (answer.json()["status"], answer.json()["error"]["message"]) == ("failed", "out of memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("health", "fault"),
    [("UNHEALTHY", "the Cog server is UNHEALTHY"), ("SETUP_FAILED", "the Cog server is SETUP_FAILED")],
)
def test_a_back_end_that_stays_away_is_a_503_and_the_prediction_is_taken_back(
    client, cog, monkeypatch, health, fault
):
    monkeypatch.setattr(api, "GRACE", 0.5)
    cog.health = health
    answer = form(client, prompt=MIX)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, str(api.RETRY_SECONDS))
    found = answer.json()
    assert (found["status"], found["is_done"], found["error"]["message"]) == ("canceled", True, fault)
    cog.health = None
    assert form(client, prompt=MIX).status_code == 200  # asked again, it is drawn, once
    assert [identity.partition("-")[0] for identity, _ in cog.asked] != [found["id"]]
    assert len(cog.asked) == 1


@pytest.mark.slow
def test_a_back_end_that_comes_back_within_the_grace_draws(client, cog, monkeypatch):
    monkeypatch.setattr(api, "GRACE", 20)
    cog.health = "STARTING"
    threading.Timer(1, setattr, (cog, "health", None)).start()
    assert form(client, prompt=MIX).status_code == 200


def test_what_was_asked_for_without_waiting_is_kept_while_the_back_end_is_away(client, cog, monkeypatch):
    monkeypatch.setattr(api, "GRACE", 0.1)
    cog.health = "UNHEALTHY"
    identity = client.post("/api/predictions", json={"prompt": MIX}).json()["id"]
    assert form(client, prompt=MIX).status_code == 503
    assert client.get(f"/api/predictions/{identity}").json()["status"] == "queued"
    cog.health = None
    assert wait_for(client, identity)["status"] == "succeeded"


@pytest.mark.slow
def test_a_picture_that_is_not_ready_in_time_is_a_202_with_the_place_to_ask(client, cog, monkeypatch):
    monkeypatch.setattr(api, "EXTRA_SECONDS", 0.5 - client.studio.settings.deadline_seconds)
    cog.gate.clear()
    answer = form(client, prompt=MIX)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/predictions/{answer.json()['id']}"
    cog.gate.set()
    assert wait_for(client, answer.json()["id"])["status"] == "succeeded"


def test_a_picture_that_cannot_be_taken_says_why(client, cog):
    cog.outcome = {"status": "succeeded", "output": "data:image/png;base64,AAAA"}
    answer = form(client, prompt=MIX, accept="image/png")
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the output: not a picture; expected a PNG, WebP or JPEG file"
    assert answer.json()["error"]["code"] == "picture-not-one"
    assert client.get(f"/files/{answer.json()['id']}").status_code == 404


def test_json_asks_without_waiting_and_progress_comes_by_webhook(client, cog):
    cog.gate.clear()
    answer = client.post("/api/predictions", json={"prompt": MIX, "seed": 7, "width": None})
    assert answer.status_code == 201
    assert answer.json()["status"] == "queued"
    identity = answer.json()["id"]
    assert answer.headers["location"] == f"/api/predictions/{identity}"
    assert cog.begun.wait(10)
    ((attempt, sent),) = cog.asked
    assert sent["webhook"] == f"http://127.0.0.1:9/webhooks/cog?prediction={identity}"
    logs = "  4%|#| 1/25 denoise\n 48%|##| 12/25 denoise\n"
    headers = {"Authorization": f"Bearer {cog.token}"}
    news = body(attempt, "processing", logs=logs)
    assert client.post("/webhooks/cog", content=news, headers=headers).status_code == 200
    found = wait_for(client, identity, lambda found: found["progress"])
    assert (found["status"], found["progress"]) == ("processing", {"step": 12, "steps": 25})
    cog.gate.set()
    assert wait_for(client, identity)["status"] == "succeeded"


def test_a_running_prediction_is_canceled(client, cog):
    cog.gate.clear()
    identity = client.post("/api/predictions", json={"prompt": MIX}).json()["id"]
    assert cog.begun.wait(10)
    assert client.post(f"/api/predictions/{identity}/cancel").status_code == 200
    assert wait_for(client, identity)["status"] == "canceled"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", "the body is not a JSON object: "),
        (b"[]", "the body is not a JSON object: "),
        (b"{}", "input prompt is missing"),
        (b'{"prompt": 5}', "prompt 5 is not text"),
        (b'{"prompt": "red", "seed": 1.0}', "seed 1.0 is not an integer; expected -1 to 4294967295"),
        (b'{"prompt": "red", "seed": ' + b"9" * 5000 + b"}", f"seed '{'9' * 36}...' is not an integer"),
        (b'{"prompt": "red", "steps": 1}', "unknown input 'steps'; did you mean 'num_inference_steps'?"),
        (b'{"prompt": "red", "CFG-Scale": 1}', "unknown input 'CFG-Scale'; did you mean 'guidance_scale'?"),
        (b'{"prompt": "red", "hieght": 512}', "unknown input 'hieght'; did you mean 'height'?"),
        (b'{"prompt": "red", "lora_alpha": 1}', "unknown input 'lora_alpha'; did you mean 'lora_scale'?"),
        (b'{"prompt": "red", "angle": 1}', "unknown input 'angle'; known: prompt, "),
        (b"[" * 100_000, "the body is not a JSON object: "),
    ],
)
def test_json_that_cannot_be_used_is_refused(shared, content, error):
    answer = shared.post("/api/predictions", content=content)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(error)


def test_predictions_are_found_by_color_and_by_text_a_page_at_a_time(client):
    texts = ["50% red, 50% black", "50% red, 50% pearl, wet_stone", "100% blue", "plain words"]
    ids = [client.post("/api/predictions", json={"prompt": text}).json()["id"] for text in texts]

    def find(**query) -> list[str]:
        found = client.get("/api/predictions", params=query).json()["predictions"]
        return [ids.index(prediction["id"]) for prediction in found]

    assert find() == [3, 2, 1, 0]
    assert find(color="red") == find(color="Red") == [1, 0]
    assert find(color="bright green") == find(color="violet") == []  # nothing of the palette's was drawn yet
    assert find(color="") == find()
    assert find(text="PEARL") == [1]
    assert find(text="t_s") == [1]
    assert find(text="50% b") == [0]
    assert find(text="w_t") == find(text="red%black") == find(text="\\") == find(before="nonsense") == []
    assert find(limit=2) == [3, 2]
    assert find(limit=2, before=ids[2]) == [1, 0]
    for color, near in {"blurple": "blue, ", "olive": "khaki, ", "x" * 200: "", "紫": ""}.items():
        answer = client.get("/api/predictions", params={"color": color})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (422, "studio-unknown-color", "color")
        assert error["values"]["typed"] == color[:40]
        assert error["values"]["near"].startswith(near)
        assert error["values"]["near"].count(",") == 2
    for limit, code in {
        "0": "input-out-of-range",
        "101": "input-out-of-range",
        "-1": "input-out-of-range",
        "x": "input-not-integer",
        f"1{'0' * 6000}": "input-not-integer",
    }.items():
        answer = client.get("/api/predictions", params={"limit": limit})
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert (error["code"], error["field"]) == (code, "limit")
        assert len(str(error["values"]["typed"])) <= 40
    for identity in ids:
        client.post(f"/api/predictions/{identity}/cancel")


def test_an_unexpected_exception_is_an_error_in_json(cog, tmp_path, monkeypatch):
    with run(tmp_path, cog) as client:
        monkeypatch.setattr(client.studio, "ask_for", lambda _: 1 // 0)
        answer = client.post("/api/predictions", json={"prompt": MIX})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "studio-broken"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_method_that_an_address_does_not_have_is_a_405_in_json(shared):
    answer = shared.put("/api/predictions/x")
    assert answer.status_code == 405
    assert answer.headers["allow"]
    assert answer.json()["error"]["values"] == {"method": "PUT"}


@pytest.mark.parametrize(
    "path", ["/api/predictions/x", "/files/x", "/files/..%2f..%2fetc%2fpasswd", "/files/studio.sqlite3", "/x"]
)
def test_what_is_not_there_is_a_404_in_json(shared, path):
    answer = shared.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]
    assert shared.post("/api/predictions/x/cancel").status_code == 404


def test_a_signed_delivery_is_stored_once(client):
    data = body("unknown", "succeeded")
    for _ in range(2):
        answer = client.post("/webhooks/replicate", content=data, headers=sign(data))
        assert (answer.status_code, answer.json()) == (200, {})
    with client.studio.database.read() as session:
        assert session.scalars(select(Delivery.body)).all() == [data]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/webhooks/replicate", {}, 400),
        ("/webhooks/replicate", {"Authorization": "Bearer a-token-of-the-webhooks"}, 400),
        ("/webhooks/replicate", sign(b"{}") | {"webhook-timestamp": "0000000001"}, 401),
        ("/webhooks/cog", {}, 401),
        ("/webhooks/cog", sign(b"{}"), 401),
    ],
)
def test_the_endpoint_decides_how_a_sender_proves_itself(shared, path, headers, status):
    answer = shared.post(path, content=b"{}", headers=headers)
    assert answer.status_code == status
    with shared.studio.database.read() as session:
        assert session.scalars(select(Delivery)).all() == []


def test_a_body_that_is_too_large_is_refused_announced_or_not(shared):
    most = MAX_BODY_BYTES
    announced = shared.post("/webhooks/replicate", content=b"x" * (most + 1), headers=sign(b"x"))
    pieces = (b"x" * 1_000_000 for _ in range(most // 1_000_000 + 1))
    streamed = shared.post("/webhooks/replicate", content=pieces, headers=sign(b"x"))
    assert announced.status_code == streamed.status_code == 413


def test_our_own_fault_is_a_503_so_that_the_sender_tries_again(client, monkeypatch, caplog):
    data = body("a", "succeeded")
    store = client.studio.inbox.store
    for fault in (StoreDownError("studio-database-full"), RuntimeError("a mistake")):
        monkeypatch.setattr(
            client.studio.inbox, "store", lambda arrival, fault=fault: (_ for _ in ()).throw(fault)
        )
        answer = client.post("/webhooks/replicate", content=data, headers=sign(data))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(client.studio.inbox, "store", store)
    assert client.post("/webhooks/replicate", content=data, headers=sign(data)).status_code == 200


def test_every_answer_carries_the_safe_headers(shared):
    for path in ("/health", "/openapi.json", "/x"):
        headers = shared.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
    assert shared.get("/health", headers={"Host": "evil.example"}).headers["x-frame-options"] == "DENY"


def test_another_name_for_this_machine_is_refused(shared):
    assert shared.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert shared.get("/health", headers={"Host": "[::1"}).status_code == 421
    for host in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
        assert shared.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_changes_from_pages_of_another_origin_are_refused(shared, headers):
    answer = shared.post("/api/predictions", json={"prompt": MIX}, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["values"] == {"origin": next(iter(headers.values()))}
    assert shared.get("/api/predictions", headers=headers).status_code == 200


def test_changes_from_its_own_pages_are_taken_under_each_of_its_names(tmp_path, cog):
    public = "https://tiles.example"
    with run(tmp_path, cog, public_url=public) as client:
        for origin, host in ((public, "tiles.example"), (public, "127.0.0.1:8000"), (BASE, "127.0.0.1:8000")):
            headers = {"Origin": origin, "Host": host, "Sec-Fetch-Site": "same-origin"}
            assert client.post("/api/predictions", json={"prompt": MIX}, headers=headers).status_code == 201


def test_a_token_is_asked_for_where_one_is_set(tmp_path, cog):
    token = "a-token-of-the-studio"  # noqa: S105  a test's own
    with run(tmp_path, cog, token=Secret(token), host="0.0.0.0") as client:  # noqa: S104  a value under test
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"bearer {token}"}):
            for path in ("/api/predictions", "/files/x", "/openapi.json", "/x"):
                assert client.get(path, headers=headers).status_code == 401
        assert client.get("/api/predictions", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/health", headers={"Host": "tiles.example"}).status_code == 200
        data = body("a", "failed")
        assert client.post("/webhooks/replicate", content=data, headers=sign(data)).status_code == 200


def test_changes_have_a_rate_and_reading_has_none(tmp_path, cog):
    cog.health = "STARTING"
    with run(tmp_path, cog) as client:
        statuses = [client.post("/api/predictions/x/cancel").status_code for _ in range(BURST + 2)]
        assert statuses[:BURST] == [404] * BURST
        assert statuses[-1] == 429
        assert client.get("/api/predictions").status_code == 200
        data = body("a", "failed")
        assert client.post("/webhooks/replicate", content=data, headers=sign(data)).status_code == 200


def test_a_rate_limit_fills_up_again_for_each_address():
    moments = [0.0]
    limit = RateLimit(clock=lambda: moments[0])
    assert [limit.take("a") for _ in range(BURST + 1)] == [True] * BURST + [False]
    assert limit.take("b")
    moments[0] = 2.0
    assert [limit.take("a") for _ in range(3)] == [True, True, False]


def test_a_rate_limit_keeps_no_more_addresses_than_it_may(monkeypatch):
    monkeypatch.setattr("tilemix.studio.limits.MAX_ADDRESSES", 3)
    moments = [0.0]
    limit = RateLimit(clock=lambda: moments[0])
    assert [limit.take(name) for name in "aabcd"] == [True, True, True, True, False]
    moments[0] = 1.5  # the burst of b and c is whole again, that of a is not
    assert limit.take("d")
    assert limit.take("e")
    assert not limit.take("f")


@pytest.mark.slow
def test_health_says_what_works(client, cog):
    whole = {"status": "ok", "database": "ok", "backend": "cog: ready", "faults": {}}
    assert client.get("/health").json() == whole
    cog.health = "UNHEALTHY"
    assert client.get("/health").json()["backend"] == "cog: not ready"


def test_a_second_studio_in_the_same_folder_is_refused(client, cog, tmp_path):
    with pytest.raises(SettingsError, match=f"^{re.escape(str(tmp_path))}: in use by another studio$"):
        Studio(client.studio.settings)


def test_a_second_studio_on_the_same_database_is_refused(tmp_path, database_url):
    with run_cog_stand_in() as cog, run(tmp_path / "a", cog, database_url=database_url) as client:
        other = dataclasses.replace(client.studio.settings, folder=tmp_path / "b")
        with pytest.raises(SettingsError, match="^the database: in use by another studio$"):
            Studio(other)
    with run_cog_stand_in() as cog, run(tmp_path / "b", cog, database_url=database_url) as client:
        assert client.get("/health").json()["status"] == "ok"


def test_a_restart_keeps_everything_and_goes_on(tmp_path, cog):
    cog.health = "STARTING"
    with run(tmp_path, cog) as client:
        identity = client.post("/api/predictions", json={"prompt": MIX}).json()["id"]
    cog.health = None
    with run(tmp_path, cog) as client:
        found = wait_for(client, identity)
        assert client.get(found["url"]).content == picture()


def test_a_delivered_picture_reaches_the_gallery(client, cog):
    """A prediction of another program that uses the same server, and tells the studio of its end."""
    cog.gate.clear()
    identity = client.post("/api/predictions", json={"prompt": MIX}).json()["id"]
    assert cog.begun.wait(10)
    news = body(f"{identity}-1", "succeeded", output=data_uri(picture((0, 0, 9))))
    headers = {"Authorization": f"Bearer {cog.token}"}
    client.post("/webhooks/cog", content=news, headers=headers)
    found = wait_for(client, identity)
    cog.gate.set()
    assert client.get(found["url"]).content == picture((0, 0, 9))


def test_the_document_describes_the_routes_and_the_inputs(client):
    document = client.get("/openapi.json").json()
    routes = {
        (route.path, method.lower())
        for route in client.app.routes
        for method in route.methods - {"HEAD"}
        if route.include_in_schema
        and not route.path.startswith("/webhooks/")
        and route.path != "/openapi.json"
    }
    assert {(path, verb) for path, verbs in document["paths"].items() for verb in verbs} == routes
    schemas = document["components"]["schemas"]
    assert list(schemas["Form"]["properties"]) == list(FORM_INPUTS)
    assert list(schemas["Inputs"]["properties"]) == list(GenerationRequest.__dataclass_fields__)
    made = client.post("/api/predictions", json={"prompt": MIX}).json()
    assert list(made) == list(schemas["Prediction"]["properties"]) == schemas["Prediction"]["required"]
    assert json.dumps(document).isascii()


def test_no_secret_reaches_the_log_or_an_answer_whatever_fails(tmp_path, cog, caplog, monkeypatch):
    """The loudest logs, every kind of refusal, and a Replicate that repeats the token it was sent."""
    caplog.set_level(logging.DEBUG)
    token, replicate_token = "a-token-of-the-studio", "r8_" + 4 * "01234"
    seen = []

    def refuse(request):
        sent = request.headers["authorization"]
        seen.append(sent)
        return httpx.Response(401, json={"detail": f"the token {sent} is not valid"})

    api = replicate_client(Secret(replicate_token), transport=httpx.MockTransport(refuse))
    backend = ReplicateBackend(api, version="ab" * 32, slots=1)
    changes = {"token": Secret(token), "backend": "replicate", "replicate_token": Secret(replicate_token)}
    answers = []
    with run(tmp_path, cog, studio_backend=backend, **changes) as client:
        ours = {"Authorization": f"Bearer {token}"}
        data = body("a", "succeeded")
        forged = sign(data, secret=OTHER_SECRET)
        for headers in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": token}):
            answers.append(client.get("/api/predictions", headers=headers))
            answers.append(client.post("/webhooks/cog", content=data, headers=headers))
        answers.append(client.post("/webhooks/replicate", content=data, headers=forged))
        answers.append(
            client.post("/webhooks/replicate", content=data, headers={**forged, "webhook-id": "a b"})
        )
        fault = OperationalError("INSERT", {}, Exception(f"no user with the password {SECRET}"))
        with monkeypatch.context() as patch:
            patch.setattr(client.studio.inbox, "store", lambda arrival: (_ for _ in ()).throw(fault))
            answers.append(client.post("/webhooks/replicate", content=data, headers=sign(data)))
        made = client.post("/api/predictions", json={"prompt": MIX}, headers=ours).json()["id"]
        deadline = time.monotonic() + 20
        while not (found := client.get(f"/api/predictions/{made}", headers=ours)).json()["is_done"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        answers.append(found)
    assert "the token Bearer r8_*** is not valid" in found.json()["error"]["message"]
    assert f"Bearer {replicate_token}" in seen
    formatter = MaskingFormatter("%(message)s")
    formatter.secrets = client.studio.settings.secrets
    log = "\n".join(formatter.format(record) for record in caplog.records)
    assert "a delivery could not be stored" in log
    for secret in (token, replicate_token, cog.token, SECRET, OTHER_SECRET):
        assert secret not in log
        assert all(secret not in answer.text and secret not in str(answer.headers) for answer in answers)


def test_no_token_reaches_the_log(tmp_path, cog, caplog):
    caplog.set_level(logging.DEBUG)
    with run(tmp_path, cog, token=Secret("a-token-of-the-studio")) as client:
        headers = {"Authorization": "Bearer a-token-of-the-studio"}
        assert form(client, prompt=MIX).status_code == 401
        client.post("/api/predictions", json={"prompt": MIX}, headers=headers)
        assert cog.begun.wait(10)
    for secret in ("a-token-of-the-studio", cog.token, SECRET):
        assert secret not in caplog.text
