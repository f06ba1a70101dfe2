"""The queue before a Cog server's stand-in, and before Replicate's API answered by httpx's mock transport."""

import threading
from datetime import timedelta

import pytest

from tests.cog_stand_in import run_cog_stand_in
from tests.studio_parts import Clock, get_prediction
from tilemix.errors import Message
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.request import GenerationRequest
from tilemix.studio.cog_backend import CogBackend, cog_client
from tilemix.studio.queue import Queue

NO_REASON = Message("prediction-failed", {"reason": "no reason"})

TEMPLATE = find_template("rubber_tile")


@pytest.fixture
def cog():
    with run_cog_stand_in() as stand_in:
        yield stand_in


def make_queue(database, cog, clock=None) -> Queue:
    return Queue(database, CogBackend(cog_client(cog.url)), deadline_seconds=60, clock=clock or Clock())


def add(queue: Queue, text: str = "50% red, 50% black", **inputs) -> str:
    return queue.add(GenerationRequest(prompt=text, **inputs), rewrite(text, TEMPLATE))


def in_background(action) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_predictions_run_in_the_order_of_asking_with_exactly_what_was_asked(database, cog):
    queue = make_queue(database, cog)
    first, second = add(queue, seed=7, width=512), add(queue, "30% red, 70% pearl", negative_prompt="")
    assert [queue.step(), queue.step(), queue.step()] == [True, True, False]
    assert [identity.rpartition("-")[0] for identity, _ in cog.asked] == [first, second]
    inputs = [body["input"] for _, body in cog.asked]
    assert inputs[0] == {"prompt": "50% red, 50% black", "seed": 7, "width": 512, "output_format": "png"}
    assert inputs[1]["negative_prompt"] == ""
    assert 0 <= inputs[1]["seed"] < 2**32
    prediction = get_prediction(database, second)
    assert (prediction.status, prediction.output.state) == ("succeeded", "pending")
    assert [(share.color, share.percent) for share in prediction.shares] == [("red", 30.0), ("pearl", 70.0)]
    assert prediction.sent_prompt.startswith("ohwx_rubber_tile <s0><s1>, 30% red, 70% pearl, ")


def test_a_failure_of_the_model_is_the_predictions_end(database, cog):
    cog.outcome = {"status": "failed", "error": "Prediction failed: MixError"}
    queue = make_queue(database, cog)
    identity = add(queue)
    assert queue.step()
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.error["message"]) == ("failed", "Prediction failed: MixError")
    assert prediction.output is None


def test_inputs_that_the_server_refuses_fail_at_once(database, cog):
    cog.refusal = {"detail": [{"loc": ["body", "input", "width"], "msg": "1536 is too wide"}]}
    queue = make_queue(database, cog)
    identity = add(queue)
    assert queue.step()
    prediction = get_prediction(database, identity)
    assert prediction.status == "failed"
    assert "refuses the inputs (422)" in prediction.error["message"]
    assert "1536 is too wide" in prediction.error["message"]


@pytest.mark.parametrize("health", ["BUSY", "STARTING", "UNHEALTHY", "SETUP_FAILED"])
def test_nothing_is_submitted_to_a_server_that_is_not_ready(database, cog, health):
    cog.health = health
    queue = make_queue(database, cog)
    identity = add(queue)
    assert not queue.step()
    assert get_prediction(database, identity).status == "queued"
    cog.health = None
    assert queue.step()
    assert get_prediction(database, identity).status == "succeeded"


def test_a_server_that_is_not_there_is_waited_for(database, cog):
    gone = Queue(database, CogBackend(cog_client("http://127.0.0.1:1")), deadline_seconds=60, clock=Clock())
    identity = add(gone)
    assert not gone.step()
    assert get_prediction(database, identity).status == "queued"


def test_a_prediction_whose_server_is_lost_starts_anew_under_another_id_and_three_times_at_most(
    database, cog
):
    cog.hangs_up = True
    queue = make_queue(database, cog)
    identity = add(queue)
    for _ in range(2):
        queue.step()
        assert get_prediction(database, identity).status == "queued"
    queue.step()
    prediction = get_prediction(database, identity)
    assert prediction.status == "failed"
    assert prediction.error["message"] == "the back end was lost 3 times while it drew this"
    ids = [asked for asked, _ in cog.asked]
    assert ids == [f"{identity}-{attempt}" for attempt in (1, 2, 3)]
    assert len({body["input"]["seed"] for _, body in cog.asked}) == 1


@pytest.mark.parametrize("error", ["Worker crashed", "worker write failed: Broken pipe (os error 32)"])
def test_a_dead_worker_is_no_fault_of_the_predictions_which_waits_for_the_next_one(database, cog, error):
    """A worker killed while idle fails the next prediction, and then the server answers 409 for ever."""
    cog.outcome = {"status": "failed", "error": error}
    queue = make_queue(database, cog)
    identity = add(queue)
    assert queue.step()
    cog.health = "UNHEALTHY"
    assert not queue.step()
    assert get_prediction(database, identity).status == "queued"
    cog.health, cog.outcome = None, {"status": "succeeded", "output": "data:,"}
    assert queue.step()
    assert get_prediction(database, identity).status == "succeeded"


def test_one_that_waits_is_canceled_without_the_server(database, cog):
    queue = make_queue(database, cog)
    identity = add(queue)
    assert queue.cancel(identity)
    assert queue.cancel(identity)
    assert not queue.cancel("0" * 32)
    assert not queue.step()
    assert get_prediction(database, identity).status == "canceled"
    assert cog.asked == []


def test_one_that_runs_is_canceled_at_the_server(database, cog):
    cog.gate.clear()
    queue = make_queue(database, cog)
    identity = add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    assert queue.cancel(identity)
    thread.join(10)
    assert cog.canceled == [f"{identity}-1"]
    assert get_prediction(database, identity).status == "canceled"


def test_what_is_past_its_deadline_is_ended_here_and_there(database, cog):
    cog.gate.clear()
    clock = Clock()
    queue = make_queue(database, cog, clock)
    runs, waits = add(queue), add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    clock.go_on(61)
    queue.end_late()
    thread.join(10)
    assert cog.canceled == [f"{runs}-1"]
    for identity, status in ((runs, "starting"), (waits, "queued")):
        prediction = get_prediction(database, identity)
        assert prediction.status in {"failed", "canceled"}
        if prediction.status == "failed":
            line = f"the prediction did not end within 60 seconds; its status is {status}"
            assert prediction.error["message"] == line


def test_a_studio_that_was_killed_takes_its_prediction_up_again(database, cog):
    """The row says `starting`; nobody waits for the server's answer any more."""
    cog.gate.clear()

    class Killed(CogBackend):
        def submit(self, *_, **__):
            raise SystemExit

    killed = Queue(database, Killed(cog_client(cog.url)), deadline_seconds=60, clock=Clock())
    identity = add(killed, seed=7)
    with pytest.raises(SystemExit):
        killed.step()
    claimed = get_prediction(database, identity)
    assert claimed.status == "starting"
    again = make_queue(database, cog)
    assert not again.step()  # the slot is taken
    again.recover()
    cog.gate.set()
    assert again.step()
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.attempts, prediction.losses) == ("succeeded", 2, 0)
    assert claimed.remote_id != prediction.remote_id


def test_a_studio_that_stops_lets_go_of_its_prediction_and_the_next_one_takes_it_up(database, cog):
    cog.gate.clear()
    queue = make_queue(database, cog)
    identity = add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    queue.stop()
    thread.join(10)
    assert not queue.step()
    assert get_prediction(database, identity).status == "starting"
    again = make_queue(database, cog)
    again.recover()
    assert again.step()
    assert get_prediction(database, identity).status == "succeeded"


def test_a_prediction_that_is_to_be_canceled_is_not_begun_anew(database, cog):
    cog.hangs_up = True
    cog.gate.clear()
    queue = make_queue(database, cog)
    identity = add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    queue.cancel(identity)
    thread.join(10)
    assert get_prediction(database, identity).status == "canceled"


def test_a_fault_is_told_when_it_lasts_and_forgotten_when_nothing_waits(database, cog):
    clock = Clock()
    queue = make_queue(database, cog, clock)
    identity = add(queue)
    cog.health = "UNHEALTHY"
    assert queue.find_fault(lasting=timedelta(0)) is None  # nobody has looked yet
    assert not queue.step()
    assert queue.find_fault(lasting=timedelta(seconds=10)) is None
    clock.go_on(10)
    assert not queue.step()
    assert queue.find_fault(lasting=timedelta(seconds=10)) == Message(
        "backend-unhealthy", {"health": "UNHEALTHY"}
    )
    cog.health = "BUSY"  # with another program's prediction: that is no fault
    assert not queue.step()
    assert queue.find_fault(lasting=timedelta(0)) is None
    cog.health = "STARTING"
    assert not queue.step()
    assert queue.find_fault(lasting=timedelta(0)) == Message("backend-unhealthy", {"health": "STARTING"})
    queue.cancel(identity)
    assert not queue.step()
    assert queue.find_fault(lasting=timedelta(0)) is None


def test_only_a_prediction_that_has_not_begun_is_taken_back(database, cog):
    queue = make_queue(database, cog)
    drawn, waiting = add(queue), add(queue)
    assert queue.step()
    assert [queue.withdraw(identity, NO_REASON) for identity in (drawn, waiting, waiting, "nobody")] == [
        False,
        True,
        False,
        False,
    ]
    assert not queue.step()
    prediction = get_prediction(database, waiting)
    assert (prediction.status, prediction.error) == ("canceled", NO_REASON.describe())
    assert get_prediction(database, drawn).status == "succeeded"
