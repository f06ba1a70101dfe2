"""What the database says of the queue's attempts: one is claimed, and ends with a result, lost, or queued again.

A database that is full, locked or away is tried again until it takes the result.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from tilemix.errors import Message, StoreDownError
from tilemix.studio import predictions
from tilemix.studio.predictions import CANCELED, FAILED, QUEUED, STARTING, TERMINAL
from tilemix.studio.store.schema import Prediction

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection
    from datetime import datetime

    from sqlalchemy.orm import Session

    from tilemix.studio.backends import Backend
    from tilemix.studio.clock import Clock
    from tilemix.studio.deadlines import Deadlines
    from tilemix.studio.faults import Faults
    from tilemix.studio.predictions import Report
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

PART = "queue"  # its name among the faults
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds, before a write is tried again
MAX_LOSSES = 3  # a prediction that loses the back end this often may be the cause


class Attempts:
    """The rows of what runs at one back end.

    Args:
        database: where the rows are.
        backend: whose predictions these are.
        deadlines: count what is drawn.
        faults: are told what the database refuses.
        clock: the studio's.
        stopping: is set when the studio stops; then no write is tried again.
    """

    def __init__(
        self,
        database: Database,
        backend: Backend,
        deadlines: Deadlines,
        *,
        faults: Faults,
        clock: Clock,
        stopping: threading.Event,
    ) -> None:
        self._database = database
        self._backend = backend
        self._deadlines = deadlines
        self._faults = faults
        self._clock = clock
        self._stopping = stopping
        self._runner = secrets.token_hex(16)

    def claim(self) -> Prediction | None:
        """Begin an attempt of the oldest waiting prediction; None: none waits."""
        with self._database.write() as session:
            prediction = session.scalar(
                select(Prediction)
                .where(Prediction.backend == self._backend.name, Prediction.status == QUEUED)
                .order_by(Prediction.number)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if prediction is None:
                return None
            prediction.status = STARTING
            prediction.runner = self._runner
            prediction.attempts += 1
            prediction.submitted_at = self._clock.now()
            prediction.remote_id = (
                f"{prediction.id}-{prediction.attempts}" if self._backend.is_synchronous else None
            )
            session.flush()
            session.expunge(prediction)
        self._deadlines.begin(prediction.number)
        return prediction

    def recover(self, submitted: Collection[int]) -> None:
        """Queue again what the rows say runs, and does not.

        At a Cog server nothing runs now, since this thread waits for its answers. At Replicate only what was never
        submitted is certain; the reconciler asks about the rest.

        Args:
            submitted: the numbers of the predictions that this process has sent to the back end.
        """
        mine = Prediction.backend == self._backend.name
        running = select(Prediction).where(mine, Prediction.status.not_in([QUEUED, *TERMINAL]))
        if not self._backend.is_synchronous:
            running = running.where(Prediction.runner == self._runner, Prediction.remote_id.is_(None))
        with self._database.write() as session:
            for prediction in session.scalars(running.with_for_update()):
                if prediction.number not in submitted:
                    queue_again(prediction, self._clock.now())
                elif self._backend.is_synchronous:
                    self.lose(prediction, self._clock.now())
            # What an earlier studio left for another back end waits for this one.
            of_another = update(Prediction).where(Prediction.status == QUEUED, ~mine)
            session.execute(of_another.values(backend=self._backend.name))

    def keep(self, claimed: Prediction, report: Report) -> None:
        """Write the back end's report of an attempt.

        Raises:
            StoreDownError: see `change`.
        """

        def keep(session: Session, prediction: Prediction) -> None:
            if prediction.remote_id is None:
                prediction.remote_id = report.remote_id
            now = self._clock.now()
            is_ours = report.status == CANCELED and prediction.cancel_requested_at is None
            if is_ours and self._deadlines.charge(prediction) <= 0:
                predictions.finish(prediction, FAILED, error=self._deadlines.tell_late(prediction), now=now)
            predictions.apply_report(session, prediction, report, now=now)

        try:
            self._insist(claimed, keep)
        except SQLAlchemyError as error:  # the database will never take this result
            logger.exception("prediction %s cannot be kept", claimed.id)
            self.change(claimed, end_with(Message("prediction-failed", {"reason": type(error).__name__})))

    def change(self, claimed: Prediction, change: Callable[[Prediction, datetime], None]) -> None:
        """Change the row of an attempt, unless it has ended.

        Raises:
            StoreDownError: the studio stops meanwhile; the next start draws the prediction again.
        """

        def apply(_: Session, prediction: Prediction) -> None:
            if not predictions.is_terminal(prediction.status):
                change(prediction, self._clock.now())

        self._insist(claimed, apply)

    def _insist(self, claimed: Prediction, write: Callable[[Session, Prediction], None]) -> None:
        """Write about a prediction in one transaction, again and again until the database takes it.

        Raises:
            StoreDownError: the studio stops meanwhile; the next start draws the prediction again.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                with self._database.write() as session:
                    prediction = lock(session, Prediction.number == claimed.number)
                    if prediction is not None:
                        write(session, prediction)
            except StoreDownError as error:
                self._faults.note(PART, error)
                if self._stopping.wait(pause):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return

    def lose(self, prediction: Prediction, now: datetime) -> None:
        """Draw a prediction again that the back end dropped, unless it has done so too often or too late."""
        seconds_left = self._deadlines.charge(prediction)
        prediction.losses += 1
        if prediction.losses >= MAX_LOSSES:
            error = Message("prediction-lost", {"count": prediction.losses})
            predictions.finish(prediction, FAILED, error=error, now=now)
        elif seconds_left <= 0:
            predictions.finish(prediction, FAILED, error=self._deadlines.tell_late(prediction), now=now)
        else:
            queue_again(prediction, now)


def lock(session: Session, where: Any) -> Prediction | None:
    """Return the row that a condition finds, locked for the transaction."""
    found: Prediction | None = session.scalar(select(Prediction).where(where).with_for_update())
    return found


def queue_again(prediction: Prediction, now: datetime) -> None:
    """Put a prediction back into the queue, unless it was canceled; the next attempt gets another id."""
    if prediction.cancel_requested_at is not None:
        predictions.finish(prediction, CANCELED, error=None, now=now)
        return
    prediction.status, prediction.logs, prediction.metrics = QUEUED, "", {}
    prediction.runner = prediction.remote_id = prediction.submitted_at = prediction.started_at = None


def end_with(error: Message) -> Callable[[Prediction, datetime], None]:
    """Return the change that ends a prediction with an error."""

    def end(prediction: Prediction, now: datetime) -> None:
        predictions.finish(prediction, FAILED, error=error, now=now)

    return end
