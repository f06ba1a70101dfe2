"""The webhook inbox, on SQLite and on PostgreSQL."""

import itertools
import json

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DataError

from tests.studio_parts import Clock, add_prediction, body, get_prediction
from tilemix.studio import predictions
from tilemix.studio.inbox import Arrival, Inbox
from tilemix.studio.store.schema import Delivery

DATA = "data:image/png;base64,AAAA"


def make_inbox(database) -> tuple[Inbox, Clock]:
    clock = Clock()
    return Inbox(database, clock=clock, look_again_seconds=0), clock


def deliver(inbox: Inbox, data: bytes, **more) -> bool:
    return inbox.store(Arrival(source=more.pop("source", "cog"), body=data, **more)).result()


def read_all(inbox: Inbox) -> int:
    return sum(1 for _ in iter(lambda: inbox.step(most=1), False))


def deliveries(database) -> list[Delivery]:
    with database.read() as session:
        found = list(session.scalars(select(Delivery).order_by(Delivery.number)))
        session.expunge_all()
        return found


def running(database, remote_id="a", **values) -> str:
    return add_prediction(database, status="starting", remote_id=remote_id, **values)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_news_in_any_order_end_in_the_same_state(database, order):
    inbox, _ = make_inbox(database)
    identity = running(database)
    news = [
        body("a", "processing", logs="1/25 denoise\n"),
        body("a", "processing", logs="1/25 denoise\n2/25 denoise\n"),
        body("a", "succeeded", logs="1/25 denoise\n2/25 denoise\n3", output=DATA, metrics={"seed": 7}),
    ]
    for place in order:
        deliver(inbox, news[place])
        read_all(inbox)
    prediction = get_prediction(database, identity)
    assert prediction.status == "succeeded"
    assert prediction.logs == "1/25 denoise\n2/25 denoise\n3"
    assert prediction.metrics == {"seed": 7}
    assert (prediction.output.state, prediction.output.source) == ("pending", DATA)


def test_the_first_end_is_final(database):
    inbox, _ = make_inbox(database)
    identity = running(database)
    deliver(inbox, body("a", "canceled"))
    deliver(inbox, body("a", "succeeded", output=DATA))
    assert read_all(inbox) == 2
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.output) == ("canceled", None)
    assert [delivery.state for delivery in deliveries(database)] == ["applied", "ignored"]


@pytest.mark.parametrize(("status", "is_end"), [("aborted", True), ("warming_up", False)])
def test_aborted_is_an_end_and_an_unknown_status_is_kept_as_it_is(database, status, is_end):
    inbox, clock = make_inbox(database)
    identity = running(database)
    deliver(inbox, body("a", status))
    read_all(inbox)
    assert get_prediction(database, identity).status == status
    assert (get_prediction(database, identity).completed_at == clock.now()) is is_end
    deliver(inbox, body("a", "processing"))
    read_all(inbox)
    assert get_prediction(database, identity).status == (status if is_end else "processing")


def test_a_repetition_is_one_row(database):
    inbox, _ = make_inbox(database)
    assert deliver(inbox, b"{}", source="replicate", webhook_id="m1")
    assert not deliver(inbox, b"{}", source="replicate", webhook_id="m1")
    assert deliver(inbox, b"{}")  # another sender: another delivery
    assert not deliver(inbox, b"{}")
    assert [(row.source, row.repetitions, row.conflicts) for row in deliveries(database)] == [
        ("replicate", 1, 0),
        ("cog", 1, 0),
    ]


def test_one_id_with_two_bodies_keeps_the_first_and_raises_an_alarm(database, caplog):
    inbox, _ = make_inbox(database)
    deliver(inbox, b"first", source="replicate", webhook_id="m1")
    assert not deliver(inbox, b"second", source="replicate", webhook_id="m1")
    (row,) = deliveries(database)
    assert (row.body, row.repetitions, row.conflicts) == (b"first", 0, 1)
    assert "delivery m1 from replicate came again with another body" in caplog.text


def test_a_webhook_that_beats_the_answer_waits_for_it(database):
    inbox, _ = make_inbox(database)
    deliver(inbox, body("late", "succeeded", output=DATA))
    assert read_all(inbox) == 1
    assert [row.state for row in deliveries(database)] == ["unmatched"]
    assert read_all(inbox) == 0
    identity = running(database, "late")
    assert read_all(inbox) == 1
    assert get_prediction(database, identity).status == "succeeded"


def test_a_webhook_whose_url_names_the_prediction_stands_for_a_lost_answer(database):
    inbox, clock = make_inbox(database)
    here = {"backend": "replicate", "status": "starting"}
    waiting = add_prediction(database, **here, submitted_at=clock.now())
    other = add_prediction(database, **here, submitted_at=clock.now(), remote_id="theirs")
    for identity, webhook_id in ((waiting, "m1"), (other, "m2")):
        arrival = {"source": "replicate", "webhook_id": webhook_id, "prediction_id": identity}
        deliver(inbox, body("mine" if identity == waiting else "not-theirs", "processing"), **arrival)
    read_all(inbox)
    assert get_prediction(database, waiting).remote_id == "mine"
    assert get_prediction(database, waiting).status == "processing"
    assert get_prediction(database, other).status == "starting"


def test_a_delivery_of_one_back_end_does_not_move_a_prediction_of_another(database):
    inbox, _ = make_inbox(database)
    identity = running(database, "same", backend="replicate")
    deliver(inbox, body("same", "failed"))
    read_all(inbox)
    assert get_prediction(database, identity).status == "starting"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"id": 5, "status": "succeeded"}',
        b'{"id": "a"}',
        b'{"id": "a b", "status": "succeeded"}',
        b'{"id": "a", "status": ""}',
        b'{"id": "a", "status": "<b>"}',
        b'{"id": "a", "status": "processing", "logs": ["x"]}',
        b'{"id": "a", "status": "succeeded", "output": "\xed\xa0\x80"}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_prediction_is_kept_and_passed_over(database, data):
    inbox, _ = make_inbox(database)
    identity = running(database)
    deliver(inbox, data)
    deliver(inbox, body("a", "processing"))
    assert read_all(inbox) == 2
    bad, good = deliveries(database)
    assert (bad.state, bad.body, good.state) == ("unreadable", data, "applied")
    assert bad.error
    assert get_prediction(database, identity).status == "processing"


def test_values_that_a_database_cannot_hold_are_mended_and_the_news_count(database):
    inbox, _ = make_inbox(database)
    identity = running(database)
    metrics = {"big": 2**80, "nul": "a\0b", "\0": 1, "deep": {"a": 1}}
    data = body("a", "failed", logs="l\0g", error={"why": "\0"}, metrics=metrics)
    deliver(inbox, data)
    assert read_all(inbox) == 1
    prediction = get_prediction(database, identity)
    assert (prediction.status, prediction.logs) == ("failed", "l�g")
    assert prediction.metrics["big"] in (2**80, float(2**80))
    assert prediction.metrics["nul"] == "a�b"
    assert "deep" not in prediction.metrics


def test_many_are_read_at_once_and_one_that_the_database_refuses_is_set_aside(database, monkeypatch):
    inbox, _ = make_inbox(database)
    identity = running(database)
    for lines in range(5):
        deliver(inbox, body("a", "processing", logs="x" * lines))
    apply_report = predictions.apply_report

    def refuse_third(session, prediction, report, *, now):
        if len(report.logs) == 3:
            prediction.error = {"code": "half-done"}
            session.flush()
            raise DataError("UPDATE", {}, ValueError("a value out of range"))
        return apply_report(session, prediction, report, now=now)

    monkeypatch.setattr(predictions, "apply_report", refuse_third)
    assert [inbox.step(), inbox.step()] == [True, False]
    assert [row.state for row in deliveries(database)] == [*["applied"] * 3, "unreadable", "applied"]
    assert deliveries(database)[3].error == "ValueError"
    prediction = get_prediction(database, identity)
    assert (prediction.logs, prediction.error) == ("xxxx", None)


def test_the_output_of_a_success_is_one_uri(database):
    inbox, _ = make_inbox(database)
    for number, (output, state) in enumerate(
        [(DATA, "pending"), ([DATA], "pending"), ([DATA] * 2, "failed"), (None, "failed"), (5, "failed")]
    ):
        identity = running(database, f"r{number}")
        deliver(inbox, body(f"r{number}", "succeeded", output=output))
        read_all(inbox)
        assert get_prediction(database, identity).output.state == state


def test_bodies_go_after_a_day_and_rows_after_thirty_but_nothing_unread_goes(database):
    inbox, clock = make_inbox(database)
    running(database)
    deliver(inbox, body("a", "processing"))
    read_all(inbox)
    deliver(inbox, b"unread")
    inbox.purge()
    assert [row.body is None for row in deliveries(database)] == [False, False]
    clock.go_on(86_400 + 1)
    inbox.purge()
    assert [row.body is None for row in deliveries(database)] == [True, False]
    assert not deliver(inbox, body("a", "processing"))  # still known as a repetition
    clock.go_on(30 * 86_400)
    inbox.purge()
    assert [row.body for row in deliveries(database)] == [b"unread"]


def test_a_prediction_object_with_every_key_of_replicates_is_read(database):
    inbox, _ = make_inbox(database)
    identity = running(database, "gm3qorzdhgbfurvjtvhg6dckhu", backend="replicate")
    sent = {
        "id": "gm3qorzdhgbfurvjtvhg6dckhu",
        "model": "owner/rubber-tile",
        "version": "0" * 64,
        "input": {"prompt": "red"},
        "logs": "Using seed: 7\n",
        "output": "https://replicate.delivery/pbxt/tile.png",
        "data_removed": False,
        "error": None,
        "status": "succeeded",
        "created_at": "2026-03-01T12:00:00.000Z",
        "started_at": "2026-03-01T12:00:01.000Z",
        "completed_at": "2026-03-01T12:00:09.000Z",
        "urls": {"cancel": "https://api.replicate.com/v1/predictions/x/cancel"},
        "metrics": {"predict_time": 8.0},
    }
    deliver(inbox, json.dumps(sent).encode(), source="replicate", webhook_id="m")
    read_all(inbox)
    prediction = get_prediction(database, identity)
    assert prediction.output.source == "https://replicate.delivery/pbxt/tile.png"
    assert prediction.metrics == {"predict_time": 8.0}
