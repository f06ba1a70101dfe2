"""The inbox against a model of it: a dict of deliveries and a dict of predictions.

Hypothesis delivers, singly and several at once, repeats, reorders, forges, sends another body under an old id,
crashes before and after COMMITs and restarts; after every step what the database holds is what the model says.
The crash is an exception here, which rolls back as a killed process does; `tests/soak_crash.py` kills.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, event, select

from tests.studio_parts import OTHER_SECRET, SECRET, Clock, add_prediction, body, sign
from tilemix.errors import DeliveryError
from tilemix.studio.inbox import Arrival, Inbox
from tilemix.studio.settings import Secret
from tilemix.studio.signatures import Keyring, SignedHeaders
from tilemix.studio.store.database import Database
from tilemix.studio.store.schema import Base, Delivery, Output, Prediction

STATUSES = ("starting", "warming_up", "processing", "succeeded", "failed", "canceled", "aborted")
RANK = {"starting": 1, "warming_up": 2, "processing": 3} | dict.fromkeys(STATUSES[3:], 4)
REMOTE_IDS = ("p1", "p2")


class PowerFailure(BaseException):
    """The process ends here."""


class InboxMachine(RuleBasedStateMachine):
    """What may happen to an inbox; `stored`, `statuses` and `logs` are the model."""

    waiting = Bundle("waiting")  # deliveries on their way
    arrived = Bundle("arrived")

    def __init__(self, url: str):
        super().__init__()
        self.url = Secret(url)

    @initialize()
    def start(self):
        self.open()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        self.stored: dict[str, bytes] = {}  # webhook-id -> body, in the order of arrival
        self.repeated: dict[str, tuple[int, int]] = {}  # webhook-id -> repetitions, conflicts
        self.unread: list[tuple] = []
        self.parked: list[tuple] = []  # unread, looked at, and of no prediction that was known then
        self.statuses: dict[str, str] = {}  # of the predictions that are known
        self.logs: dict[str, str] = {}
        self.serial = 0
        self.learn_of_prediction("p1")

    def open(self):
        self.database = Database.open(self.url)
        self.inbox = Inbox(self.database, clock=Clock(), look_again_seconds=0)

    @rule(
        target=waiting,
        remote_id=st.sampled_from(REMOTE_IDS),
        status=st.sampled_from(STATUSES),
        lines=st.integers(0, 3),
    )
    def send(self, remote_id, status, lines):
        self.serial += 1
        more = {"output": "data:image/png;base64,AAAA"} if status == "succeeded" else {}
        return (
            f"m{self.serial}",
            remote_id,
            status,
            "line\n" * lines,
            body(remote_id, status, logs="line\n" * lines, **more),
        )

    @rule(target=arrived, delivery=consumes(waiting))  # from anywhere in the bundle: out of order
    def deliver(self, delivery):
        self.receive(delivery)
        return delivery

    @rule(delivery=arrived)
    def deliver_again(self, delivery):
        self.receive(delivery)

    @rule(target=arrived, deliveries=st.lists(consumes(waiting), min_size=2, max_size=5))
    def deliver_at_once(self, deliveries):
        """They are committed together, in any order among themselves."""
        with ThreadPoolExecutor(len(deliveries)) as senders:
            are_new = list(senders.map(self.store, deliveries))
        assert are_new == [delivery[0] not in self.stored for delivery in deliveries]
        with self.database.read() as session:
            order = list(session.scalars(select(Delivery.delivery_id).order_by(Delivery.number)))
        for delivery in sorted(deliveries, key=lambda delivery: order.index(delivery[0])):
            self.note(delivery)
        return multiple(*deliveries)

    @rule(delivery=arrived)
    def deliver_another_body_under_an_old_id(self, delivery):
        webhook_id, remote_id, *_ = delivery
        other = body(remote_id, "failed", error="another body")
        assert not self.store((webhook_id, remote_id, "failed", "", other))
        repetitions, conflicts = self.repeated[webhook_id]
        self.repeated[webhook_id] = (repetitions, conflicts + 1)

    @rule(delivery=waiting, crime=st.sampled_from(["key", "body", "id", "age"]))
    def forge(self, delivery, crime):
        webhook_id, _, _, _, data = delivery
        headers = sign(
            data,
            webhook_id=webhook_id,
            secret=OTHER_SECRET if crime == "key" else SECRET,
            age=4000 if crime == "age" else 0,
        )
        if crime == "id":
            headers["webhook-id"] += "x"
        with pytest.raises(DeliveryError):
            self.authenticate(headers, data + b" " if crime == "body" else data)

    @rule(remote_id=st.sampled_from(REMOTE_IDS))
    def learn_of_prediction(self, remote_id):
        if remote_id not in self.statuses:
            add_prediction(self.database, backend="replicate", remote_id=remote_id, status="starting")
            self.statuses[remote_id], self.logs[remote_id] = "starting", ""

    @rule()
    def read_one(self):
        expected = self.next_readable()
        assert self.inbox.step(most=1) is (expected is not None)
        if expected is not None:
            self.apply(expected)

    @rule()
    def read_all(self):
        while self.inbox.step(most=1):
            self.apply(self.next_readable())
        assert self.next_readable() is None

    @rule(delivery=consumes(waiting), target=waiting)
    def crash_while_storing(self, delivery):
        """The sender hears no yes, so the delivery is still on its way."""
        with self.power_failure():
            self.store(delivery)
        return delivery

    @rule(delivery=consumes(waiting), target=waiting)
    def crash_before_the_yes_is_heard(self, delivery):
        """Committed, but the sender does not know it: it is still on its way, and a repetition when it comes."""
        assert self.store(delivery) is (delivery[0] not in self.stored)
        self.note(delivery)
        self.restart()
        return delivery

    @rule()
    def crash_while_reading(self):
        if self.next_readable() is not None:
            with self.power_failure():
                self.inbox.step()

    @rule()
    def restart(self):
        self.database.close()
        self.open()

    def authenticate(self, headers, data):
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        Keyring([Secret(SECRET)]).verify(SignedHeaders.parse(raw), data)

    def receive(self, delivery):
        assert self.store(delivery) is (delivery[0] not in self.stored)
        self.note(delivery)

    def store(self, delivery) -> bool:
        webhook_id, _, _, _, data = delivery
        self.authenticate(sign(data, webhook_id=webhook_id), data)
        return self.inbox.store(Arrival(source="replicate", body=data, webhook_id=webhook_id)).result()

    def note(self, delivery):
        """Tell the model that a delivery has come, or has come again."""
        webhook_id, _, _, _, data = delivery
        if webhook_id in self.stored:
            repetitions, conflicts = self.repeated[webhook_id]
            self.repeated[webhook_id] = (repetitions + 1, conflicts)
        else:
            self.stored[webhook_id] = data
            self.repeated[webhook_id] = (0, 0)
            self.unread.append(delivery)

    def power_failure(self):
        """Run a block whose COMMIT never comes, on connections that are then gone."""
        machine = self

        class Failure:
            def __enter__(self):
                event.listen(machine.database.engine, "commit", self.fail)

            def fail(self, connection):
                raise PowerFailure

            def __exit__(self, kind, error, trace):
                assert kind is PowerFailure, "nothing was committed"
                machine.restart()
                return True

        return Failure()

    def next_readable(self):
        """The oldest unread delivery of a prediction that is known, or that has not been looked at yet."""
        new = [one for one in self.unread if one not in self.parked]
        known = [one for one in self.unread if one[1] in self.statuses]
        return next(iter(new + known), None)

    def apply(self, delivery):
        _, remote_id, status, logs, _ = delivery
        if remote_id not in self.statuses:
            self.parked.append(delivery)
            return
        self.unread.remove(delivery)
        present = self.statuses[remote_id]
        if RANK[present] == 4 or RANK[status] < RANK[present]:
            return
        if RANK[status] > RANK[present]:
            self.statuses[remote_id] = status
        self.logs[remote_id] = max(self.logs[remote_id], logs, key=len)

    @invariant()
    def the_database_holds_what_the_model_says(self):
        with self.database.read() as session:
            rows = session.execute(select(Delivery.delivery_id, Delivery.body).order_by(Delivery.number))
            assert [tuple(row) for row in rows] == list(self.stored.items())
            rows = session.execute(select(Delivery.delivery_id, Delivery.repetitions, Delivery.conflicts))
            assert {name: tuple(counts) for name, *counts in rows} == self.repeated
            rows = session.execute(select(Prediction.remote_id, Prediction.status, Prediction.logs))
            found = {remote_id: (status, logs) for remote_id, status, logs in rows}
            assert found == {name: (self.statuses[name], self.logs[name]) for name in self.statuses}
            with_output = session.scalars(
                select(Prediction.remote_id).join(Output, Output.prediction == Prediction.number)
            )
            succeeded = [name for name, status in self.statuses.items() if status == "succeeded"]
            assert sorted(with_output) == sorted(succeeded)

    def teardown(self):
        self.database.close()


def hold_against_the_model(url: str, *, examples: int, steps: int) -> None:
    """Run the machine so often, with up to so many steps each."""
    run_state_machine_as_test(
        lambda: InboxMachine(url),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_the_inbox_does_what_its_model_does(database_url, caplog):
    caplog.set_level(logging.CRITICAL)
    hold_against_the_model(database_url, examples=8, steps=25)
