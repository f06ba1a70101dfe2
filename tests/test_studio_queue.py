"""The queue before a Cog server's stand-in, and before Replicate's API answered by httpx's mock transport."""

import contextlib
import threading

import pytest
from sqlalchemy.exc import DataError

from tests.quick import first_quick
from tests.studio_parts import Clock, add_prediction, get_prediction
from tilemix.errors import Message, RefusalError, StoreDownError
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.request import GenerationRequest
from tilemix.studio import predictions
from tilemix.studio.cog_backend import CogBackend, cog_client
from tilemix.studio.faults import Faults
from tilemix.studio.queue import Queue

NO_REASON = Message("prediction-failed", {"reason": "no reason"})

TEMPLATE = find_template("rubber_tile")


def make_queue(database, cog, clock=None, **more) -> Queue:
    backend = CogBackend(cog_client(cog.url))
    return Queue(database, backend, deadline_seconds=60, clock=clock or Clock(), **more)


def add(queue: Queue, text: str = "50% red, 50% black", **inputs) -> str:
    return queue.add(GenerationRequest(prompt=text, **inputs), rewrite(text, TEMPLATE))


def in_background(action) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def begin_drawing(queue: Queue, cog) -> tuple[str, threading.Thread]:
    """Add a prediction and let the server draw it until its gate is opened."""
    cog.gate.clear()
    identity = add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    return identity, thread


def test_predictions_run_in_the_order_of_asking_with_exactly_what_was_asked(database, cog):
    queue = make_queue(database, cog)
    first, second = add(queue, seed=7, width=512), add(queue, "30% red, 70% pearl", negative_prompt="")
    assert [queue.step(), queue.step(), queue.step()] == [True, True, False]
    assert [identity.rpartition("-")[0] for identity, _ in cog.asked] == [first, second]
    inputs = [body["input"] for _, body in cog.asked]
    choices = {"granule_size": "medium", "output_format": "png"}
    assert inputs[0] == {"prompt": "50% red, 50% black", "seed": 7, "width": 512, **choices}
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


@pytest.mark.parametrize("health", first_quick(["BUSY", "STARTING", "UNHEALTHY", "SETUP_FAILED"]))
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
    queue = make_queue(database, cog)
    identity, thread = begin_drawing(queue, cog)
    assert queue.cancel(identity)
    thread.join(10)
    assert cog.canceled == [f"{identity}-1"]
    assert get_prediction(database, identity).status == "canceled"


def test_what_is_past_its_deadline_is_ended_here_and_there(database, cog):
    clock = Clock()
    queue = make_queue(database, cog, clock)
    identity, thread = begin_drawing(queue, cog)
    queue.end_late()
    clock.go_on(61)
    queue.end_late()
    thread.join(10)
    assert cog.canceled == [f"{identity}-1"]
    prediction = get_prediction(database, identity)
    line = "the prediction did not end within 60 seconds; its status is starting"
    assert (prediction.status, prediction.error["message"]) == ("failed", line)


def test_waiting_is_not_drawing(database, cog):
    """Of eight pictures of 3 s with a deadline of 10 s, five failed: the wait was counted."""
    clock = Clock()
    queue = make_queue(database, cog, clock)
    waiting = [add(queue) for _ in range(3)]
    for _ in waiting:
        clock.go_on(40)
        queue.end_late()
        assert queue.step()
    assert {get_prediction(database, identity).status for identity in waiting} == {"succeeded"}


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_wall_clock_that_is_set_ends_nothing(database, cog, jump):
    """One hour forward, and whatever waited or ran had failed."""
    cog.gate.clear()
    clock = Clock()
    queue = make_queue(database, cog, clock)
    runs, waits = add(queue), add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    queue.end_late()
    clock.jump(jump)
    queue.end_late()
    clock.go_on(59)
    queue.end_late()
    assert cog.canceled == []
    cog.gate.set()
    thread.join(10)
    assert queue.step()
    assert {get_prediction(database, identity).status for identity in (runs, waits)} == {"succeeded"}


def test_a_deadline_goes_on_after_a_restart_with_what_was_left(database, cog):
    clock = Clock()
    queue = make_queue(database, cog, clock)
    identity, thread = begin_drawing(queue, cog)
    for _ in range(4):
        clock.go_on(10)
        queue.end_late()
    queue.stop()
    thread.join(10)
    assert get_prediction(database, identity).seconds_left == 20
    cog.begun.clear(), cog.gate.clear(), cog.canceled.clear()
    clock = Clock()  # of another process
    again = make_queue(database, cog, clock)
    thread = in_background(again.step)
    assert cog.begun.wait(10)
    clock.go_on(19)
    again.end_late()
    assert cog.canceled == []
    clock.go_on(1)
    again.end_late()
    thread.join(10)
    assert get_prediction(database, identity).error["code"] == "prediction-late"


def test_a_full_queue_says_so_at_once(database, cog):
    queue = make_queue(database, cog, most_waiting=2)
    add(queue), add(queue)
    with pytest.raises(RefusalError, match="^2 predictions are waiting already") as raised:
        add(queue)
    assert raised.value.status == 503
    assert queue.step()
    add(queue)


class Refusing:
    """A database that fails for some writes, each time in the same way."""

    def __init__(self, database, monkeypatch, fault: str) -> None:
        self.left, self.fault, self.failed = 0, fault, threading.Event()
        self.write = database.write
        monkeypatch.setattr(database, "write", self)

    @contextlib.contextmanager
    def __call__(self):
        with self.write() as session:
            if self.fault == "before":
                self.refuse()
            yield session
        if self.fault == "after":  # it was committed, and the connection was lost before the answer came
            self.refuse()

    def refuse(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.failed.set()
            raise StoreDownError("studio-database-away")


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.slow
def test_a_picture_that_cannot_be_kept_is_kept_later_and_the_queue_goes_on(database, cog, fault, monkeypatch):
    """The row stayed `starting` for ever, and the queue stood still until the studio was started again."""
    cog.gate.clear()
    faults = Faults()
    queue = make_queue(database, cog, faults=faults)
    refusing = Refusing(database, monkeypatch, fault)
    first, second = add(queue), add(queue)
    thread = in_background(queue.step)
    assert cog.begun.wait(10)
    refusing.left = 3
    cog.gate.set()
    thread.join(10)
    assert refusing.left == 0
    assert faults.all()["queue"].code == "studio-database-away"
    assert queue.step()
    for identity in (first, second):
        prediction = get_prediction(database, identity)
        assert (prediction.status, prediction.attempts) == ("succeeded", 1)
    assert len(cog.asked) == 2


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_prediction_whose_claim_may_not_have_been_kept_is_drawn_by_the_next_step(
    database, cog, fault, monkeypatch
):
    queue = make_queue(database, cog)
    assert not queue.step()
    identity = add(queue)
    refusing = Refusing(database, monkeypatch, fault)
    refusing.left = 1
    with pytest.raises(StoreDownError):
        queue.step()
    assert queue.step()
    assert get_prediction(database, identity).status == "succeeded"
    assert [asked.partition("-")[0] for asked, _ in cog.asked] == [identity]


def test_a_result_that_the_database_will_never_take_ends_its_prediction(database, cog, monkeypatch):
    def break_it(*_, **__):
        raise DataError("UPDATE", {}, Exception("too long"))

    monkeypatch.setattr(predictions, "apply_report", break_it)
    queue = make_queue(database, cog)
    identity = add(queue)
    assert queue.step()
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.error["message"]) == ("failed", "DataError")


def test_what_waits_for_another_back_end_is_drawn_by_this_one(database, cog):
    identity = add_prediction(database, backend="replicate")
    assert make_queue(database, cog).step()
    assert get_prediction(database, identity).status == "succeeded"


def test_a_server_that_does_not_cancel_is_hung_up_on(database, cog):
    """Its worker was stopped (SIGSTOP): a cancel took the deadline and 60 seconds."""
    cog.is_deaf = True
    clock = Clock()
    queue = make_queue(database, cog, clock)
    identity, thread = begin_drawing(queue, cog)
    queue.cancel(identity)
    clock.go_on(4)
    queue.send_cancels()
    assert queue.is_awaiting
    clock.go_on(1)
    queue.send_cancels()
    thread.join(10)
    assert not queue.is_awaiting
    assert get_prediction(database, identity).status == "canceled"


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
    cog.gate.set()
    assert again.step()
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.attempts, prediction.losses) == ("succeeded", 2, 0)
    assert claimed.remote_id != prediction.remote_id


def test_a_studio_that_stops_lets_go_of_its_prediction_and_the_next_one_takes_it_up(database, cog):
    queue = make_queue(database, cog)
    identity, thread = begin_drawing(queue, cog)
    queue.stop()
    thread.join(10)
    assert not queue.step()
    assert get_prediction(database, identity).status == "starting"
    again = make_queue(database, cog)
    assert again.step()
    assert get_prediction(database, identity).status == "succeeded"


def test_a_prediction_that_is_to_be_canceled_is_not_begun_anew(database, cog):
    cog.hangs_up = True
    queue = make_queue(database, cog)
    identity, thread = begin_drawing(queue, cog)
    queue.cancel(identity)
    thread.join(10)
    assert get_prediction(database, identity).status == "canceled"


def test_a_fault_is_told_when_it_lasts_and_forgotten_when_nothing_waits(database, cog):
    clock = Clock()
    queue = make_queue(database, cog, clock)
    identity = add(queue)
    cog.health = "UNHEALTHY"
    assert queue.find_fault(lasting=0) is None  # nobody has looked yet
    assert not queue.step()
    assert queue.find_fault(lasting=10) is None
    clock.go_on(10)
    assert not queue.step()
    assert queue.find_fault(lasting=10) == Message("backend-unhealthy", {"health": "UNHEALTHY"})
    cog.health = "BUSY"  # with another program's prediction: that is no fault
    assert not queue.step()
    assert queue.find_fault(lasting=0) is None
    cog.health = "STARTING"
    assert not queue.step()
    assert queue.find_fault(lasting=0) == Message("backend-unhealthy", {"health": "STARTING"})
    queue.cancel(identity)
    assert not queue.step()
    assert queue.find_fault(lasting=0) is None


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
