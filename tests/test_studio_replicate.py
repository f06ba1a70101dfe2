"""Replicate: its API answered by httpx's mock transport, the queue and the reconciler before it."""

import json
import logging

import httpx
import pytest

from tests.studio_parts import SECRET, Clock, get_prediction
from tilemix.errors import BackendBusyError, BackendDownError, BackendError, BackendUncertainError
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.request import GenerationRequest
from tilemix.studio.queue import Queue
from tilemix.studio.reconciler import Reconciler
from tilemix.studio.replicate_backend import ReplicateBackend, replicate_client
from tilemix.studio.settings import Secret

TOKEN = "r8_" + 3 * "0123456789"
VERSION = "ab" * 32
URL = "https://replicate.delivery/pbxt/tile.png"


class Replicate:
    """The API's other side."""

    def __init__(self) -> None:
        self.predictions: dict[str, dict] = {}
        self.requests: list[httpx.Request] = []
        self.fault: int | Exception | None = None  # of the next create, after it has been taken
        self.refusal: int | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        path = request.url.path.removeprefix("/v1")
        if self.refusal is not None:
            return httpx.Response(self.refusal, json={"detail": "no"})
        if path == "/webhooks/default/secret":
            return httpx.Response(200, json={"key": SECRET})
        if path == "/predictions" and request.method == "POST":
            return self.create(json.loads(request.content))
        if path == "/predictions":
            return httpx.Response(200, json={"results": list(reversed(self.predictions.values()))})
        identity, _, verb = path.removeprefix("/predictions/").partition("/")
        if identity not in self.predictions:
            return httpx.Response(404, json={"detail": "not found"})
        if verb == "cancel":
            self.predictions[identity]["status"] = "canceled"
        return httpx.Response(200, json=self.predictions[identity])

    def create(self, body: dict) -> httpx.Response:
        if self.fault == 429:
            return httpx.Response(429, json={"detail": "Request was throttled"})
        identity = f"p{len(self.predictions)}"
        self.predictions[identity] = {
            "id": identity,
            "status": "starting",
            "input": body["input"],
            "logs": None,
        }
        fault, self.fault = self.fault, None
        if isinstance(fault, Exception):
            raise fault
        return httpx.Response(fault or 201, json=self.predictions[identity])


def make_backend(replicate: Replicate, *, slots: int = 2) -> ReplicateBackend:
    client = replicate_client(Secret(TOKEN), transport=httpx.MockTransport(replicate))
    return ReplicateBackend(client, version=VERSION, slots=slots)


def make(database, *, slots=2, webhook=None):
    clock, replicate = Clock(), Replicate()
    backend = make_backend(replicate, slots=slots)
    queue = Queue(database, backend, deadline_seconds=600, webhook_url=webhook, clock=clock)
    reconciler = Reconciler(database, backend, has_webhooks=webhook is not None, clock=clock)
    return queue, reconciler, replicate, clock


def add(queue: Queue) -> str:
    prompt = rewrite("red", find_template("rubber_tile"))
    return queue.add(GenerationRequest(prompt="red"), prompt)


def test_a_prediction_is_created_with_version_inputs_webhook_and_deadline(database):
    queue, _, replicate, _ = make(database, webhook="https://tiles.example/webhooks/replicate")
    identity = add(queue)
    assert queue.step()
    (request,) = replicate.requests
    body = json.loads(request.content)
    assert body["version"] == VERSION
    assert body["input"].keys() == {"prompt", "seed", "output_format", "granule_size"}
    assert body["webhook"] == f"https://tiles.example/webhooks/replicate?prediction={identity}"
    assert body["webhook_events_filter"] == ["start", "logs", "completed"]
    assert request.headers["cancel-after"] == "600s"
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.remote_id) == ("starting", "p0")


def test_no_more_run_at_the_same_time_than_there_are_slots(database):
    queue, reconciler, replicate, clock = make(database)
    for _ in range(3):
        add(queue)
    assert [queue.step() for _ in range(4)] == [True, True, False, False]
    assert not reconciler.step()
    replicate.predictions["p0"] |= {"status": "succeeded", "output": URL}
    clock.go_on(4)
    while reconciler.step():
        pass
    assert [queue.step(), queue.step()] == [True, False]


def test_a_silent_prediction_is_asked_about_until_its_end(database):
    queue, reconciler, replicate, clock = make(database)
    identity = add(queue)
    queue.step()
    assert not reconciler.step()  # not silent yet
    clock.go_on(4)
    replicate.predictions["p0"] |= {"status": "processing", "logs": " 50%|##--| 12/25 denoise\n"}
    assert [reconciler.step(), reconciler.step()] == [True, False]
    assert get_prediction(database, identity).status == "processing"
    clock.go_on(4)
    replicate.predictions["p0"] |= {"status": "succeeded", "output": URL}
    assert reconciler.step()
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.output.source) == ("succeeded", URL)
    clock.go_on(4)
    assert not reconciler.step()


def test_with_webhooks_it_is_asked_less_often(database):
    queue, reconciler, _, clock = make(database, webhook="https://tiles.example/webhooks/replicate")
    add(queue)
    queue.step()
    assert not reconciler.step()
    clock.go_on(29)
    assert not reconciler.step()
    clock.go_on(2)
    assert reconciler.step()


def test_a_lost_answer_is_looked_for_and_nothing_is_created_twice(database):
    queue, reconciler, replicate, clock = make(database)
    identity = add(queue)
    replicate.fault = httpx.ReadTimeout("no answer")
    queue.step()
    assert get_prediction(database, identity).remote_id is None
    assert not reconciler.step()
    clock.go_on(7)
    assert not queue.step()
    assert not reconciler.step()
    clock.go_on(1)
    assert reconciler.step()
    assert get_prediction(database, identity).remote_id == "p0"
    assert len(replicate.predictions) == 1


def test_one_that_never_arrived_is_created_again(database):
    queue, reconciler, replicate, clock = make(database)
    identity = add(queue)
    replicate.fault = httpx.ReadError("lost")
    queue.step()
    replicate.predictions.clear()
    assert not reconciler.step()
    clock.go_on(8)
    assert reconciler.step()
    assert get_prediction(database, identity).status == "queued"
    assert queue.step()
    assert get_prediction(database, identity).remote_id == "p0"


def test_a_prediction_that_replicate_has_forgotten_ends(database):
    queue, reconciler, replicate, clock = make(database)
    identity = add(queue)
    queue.step()
    replicate.predictions.clear()
    assert not reconciler.step()
    clock.go_on(4)
    reconciler.step()
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.error["message"]) == (
        "failed",
        "Replicate does not know the prediction (404)",
    )


def test_an_outage_ends_nothing(database):
    queue, reconciler, replicate, clock = make(database)
    identity = add(queue)
    queue.step()
    replicate.refusal = 502
    assert not reconciler.step()
    clock.go_on(4)
    assert reconciler.step()
    assert get_prediction(database, identity).status == "starting"


def test_cancel_and_deadline_reach_replicate(database):
    queue, reconciler, replicate, clock = make(database)
    canceled, late = add(queue), add(queue)
    queue.step(), queue.step()
    queue.cancel(canceled)
    assert replicate.predictions["p0"]["status"] == "canceled"
    assert not reconciler.step()
    clock.go_on(4)
    reconciler.step()
    assert get_prediction(database, canceled).status == "canceled"
    clock.go_on(600)
    queue.end_late()
    assert replicate.predictions["p1"]["status"] == "canceled"
    assert (
        get_prediction(database, late).error["message"]
        == "the prediction did not end within 600 seconds; its status is starting"
    )


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (429, BackendBusyError),
        (500, BackendUncertainError),
        (503, BackendDownError),
        (httpx.ConnectError("x"), BackendDownError),
        (httpx.ReadTimeout("x"), BackendUncertainError),
    ],
)
def test_what_went_wrong_with_a_create_is_told_apart(fault, error, caplog):
    caplog.set_level(logging.DEBUG)
    replicate = Replicate()
    backend = make_backend(replicate)
    replicate.fault = fault
    with pytest.raises(error) as caught:
        backend.submit("a", {"prompt": "red"}, webhook=None, seconds=60)
    assert TOKEN not in str(caught.value) + caplog.text + repr(vars(backend))


def test_the_signing_secret_is_had_and_an_answer_without_one_shows_nothing():
    replicate = Replicate()
    backend = make_backend(replicate)
    assert backend.fetch_signing_secret().reveal() == SECRET
    replicate.refusal = 401
    with pytest.raises(BackendError, match=r"^Replicate gives no signing secret \(401\)$"):
        backend.fetch_signing_secret()


def test_a_replicate_that_cannot_be_had_is_a_fault_until_it_takes_one(database):
    queue, _, replicate, clock = make(database)
    add(queue)
    replicate.refusal = 503
    assert not queue.step()
    clock.go_on(10)
    assert not queue.step()
    assert queue.find_fault(lasting=10).values == {"backend": "Replicate", "status": 503}
    replicate.refusal = None
    assert queue.step()
    assert queue.find_fault(lasting=0) is None
