"""The webhook inbox: a delivery is committed before its sender gets a 2xx, and read afterwards.

Storing does not look at predictions. Reading happens in its own transaction and updates the prediction that the
delivery is about. A delivery for an unknown prediction stays and is read again once the prediction is known, because
a webhook can arrive before the answer to the call that requested it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError

from tilemix.errors import DeliveryError
from tilemix.studio import predictions
from tilemix.studio.clock import SystemClock
from tilemix.studio.store.schema import Delivery, Prediction

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute, Session

    from tilemix.studio.clock import Clock
    from tilemix.studio.settings import BackendName
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**20  # a Cog server is asked for the start and the logs alone, not for the picture
STORED_AT_ONCE = 64  # in one transaction
READ_AT_ONCE = 20  # in one transaction
LOOK_AGAIN_SECONDS = 1.0  # for deliveries whose prediction was unknown
BODIES_KEPT = timedelta(days=1)
# Far longer than the tolerance of 300 seconds: a redelivery is signed anew under its old id.
DELIVERIES_KEPT = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A delivery whose sender has been authenticated."""

    source: BackendName
    body: bytes
    webhook_id: str | None = None  # None: the sender gives none; the body's hash is used
    prediction_id: str | None = None  # our id, from the webhook's URL


class Inbox:
    """Deliveries: `store()` for the endpoint, `step()` for the worker that reads them.

    One thread commits everything that arrived during its last commit as one batch. One by one, a disk that takes
    4 ms for a commit could store 250 deliveries a second and would be busy with nothing else.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock | None = None,
        look_again_seconds: float = LOOK_AGAIN_SECONDS,
    ) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._look_again_seconds = look_again_seconds
        self._next_look = self._clock.monotonic()
        self._waiting: deque[tuple[Arrival, Future[bool]]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="inbox-writer")

    def store(self, arrival: Arrival) -> Future[bool]:
        """Commit a delivery soon; the future tells whether it is new and not a repetition. Thread-safe.

        It raises what the database raises; then nothing is stored, and the sender must try again. A future that is
        canceled before its turn stores nothing.
        """
        stored: Future[bool] = Future()
        self._waiting.append((arrival, stored))
        self._writer.submit(self._store_waiting)
        return stored

    def _store_waiting(self) -> None:
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), STORED_AT_ONCE))]
        batch = [(arrival, stored) for arrival, stored in taken if stored.set_running_or_notify_cancel()]
        if not batch:  # an earlier call has stored it, or its sender waits no longer
            return
        try:
            with self._database.write() as session:
                are_new = [self._insert(session, arrival) for arrival, _ in batch]
        except BaseException as error:  # noqa: BLE001  the waiting callers raise it
            for _, stored in batch:
                stored.set_exception(error)
        else:
            for (_, stored), is_new in zip(batch, are_new, strict=True):
                stored.set_result(is_new)

    def _insert(self, session: Session, arrival: Arrival) -> bool:
        sha256 = hashlib.sha256(arrival.body).hexdigest()
        delivery_id = arrival.webhook_id or sha256
        values = {
            "source": arrival.source,
            "delivery_id": delivery_id,
            "prediction_id": arrival.prediction_id,
            "received_at": self._clock.now(),
            "sha256": sha256,
            "body": arrival.body,
            "repetitions": 0,
            "conflicts": 0,
            "state": "pending",
        }
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        statement = insert(Delivery).values(values).on_conflict_do_nothing().returning(Delivery.number)
        if session.scalar(statement) is not None:
            return True
        stored = and_(Delivery.source == arrival.source, Delivery.delivery_id == delivery_id)
        has_same_body = session.scalar(select(Delivery.sha256).where(stored)) == sha256
        column = Delivery.repetitions if has_same_body else Delivery.conflicts
        session.execute(update(Delivery).where(stored).values({column: column + 1}))
        if not has_same_body:
            logger.error("delivery %s from %s came again with another body", delivery_id, arrival.source)
        return False

    def step(self, most: int = READ_AT_ONCE) -> bool:
        """Read the oldest readable deliveries, at most `most`; return whether there were any."""
        return self._read_oldest(most, Delivery.state == "pending") or self._look_again(most)

    def _look_again(self, most: int) -> bool:
        """Read deliveries whose prediction has become known; the query scans all of them, so it runs rarely."""
        if self._clock.monotonic() < self._next_look:
            return False
        is_known = exists().where(
            Prediction.backend == Delivery.source,
            or_(Prediction.remote_id == Delivery.remote_id, _is_linkable(Delivery.prediction_id)),
        )
        is_readable = and_(Delivery.state == "unmatched", is_known)
        with self._database.read() as session:  # does not block writers
            has_any = session.scalar(select(Delivery.number).where(is_readable).limit(1)) is not None
        if has_any:
            return self._read_oldest(most, is_readable)
        self._next_look = self._clock.monotonic() + self._look_again_seconds
        return False

    def _read_oldest(self, most: int, where: ColumnElement[bool]) -> bool:
        oldest = select(Delivery).where(where).order_by(Delivery.number).limit(most)
        with self._database.write() as session:
            deliveries = session.scalars(oldest.with_for_update(skip_locked=True)).all()
            for delivery in deliveries:
                try:
                    with session.begin_nested():
                        self._read(session, delivery)
                except DataError as error:  # one that this database cannot hold must not block the rest
                    logger.exception("delivery %s cannot be kept as a prediction", delivery.number)
                    delivery.state, delivery.error = "unreadable", type(error.orig).__name__
        return bool(deliveries)

    def purge(self) -> None:
        """Delete the bodies of deliveries a day after they were read, and all deliveries after thirty days."""
        now = self._clock.now()
        is_read = Delivery.state.in_(("applied", "ignored"))
        old = delete(Delivery).where(Delivery.received_at < now - DELIVERIES_KEPT)
        with self._database.write() as session:
            session.execute(
                update(Delivery)
                .where(is_read, Delivery.body.is_not(None), Delivery.received_at < now - BODIES_KEPT)
                .values(body=None)
            )
            session.execute(old.where(Delivery.state != "pending"))

    def _read(self, session: Session, delivery: Delivery) -> None:
        assert delivery.body is not None, "only deliveries that were read lose their bodies"
        try:
            report = predictions.parse_report(delivery.body)
        except DeliveryError as error:
            delivery.state, delivery.error = "unreadable", str(error)
            logger.warning("delivery %s from %s: %s", delivery.delivery_id, delivery.source, error)
            return
        delivery.remote_id = report.remote_id
        prediction = _find_prediction(session, delivery)
        if prediction is None:
            delivery.state = "unmatched"
            return
        prediction.remote_id = report.remote_id
        has_moved = predictions.apply_report(session, prediction, report, now=self._clock.now())
        delivery.state = "applied" if has_moved else "ignored"


def _find_prediction(session: Session, delivery: Delivery) -> Prediction | None:
    """Return the prediction that a delivery is about, locked: by the back end's id, or else by ours."""
    of_source = select(Prediction).where(Prediction.backend == delivery.source).with_for_update()
    named = session.scalar(of_source.where(Prediction.remote_id == delivery.remote_id))
    if named is not None or delivery.prediction_id is None:
        return named
    return session.scalar(of_source.where(_is_linkable(delivery.prediction_id)))


def _is_linkable(prediction_id: InstrumentedAttribute[str | None] | str) -> ColumnElement[bool]:
    """The prediction named in the webhook's URL, if it was submitted and its answer has not arrived."""
    return and_(
        Prediction.id == prediction_id,
        Prediction.remote_id.is_(None),
        Prediction.submitted_at.is_not(None),
    )
