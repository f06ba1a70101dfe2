"""The queue: predictions wait in the database and run as the back end has free slots.

A prediction is in the database before it runs, so a studio that was killed finds it again. A Cog server drops a
prediction whose caller is gone, so it is drawn again with the same seed. At Replicate it goes on, and the reconciler
asks for it. A lost answer never makes it run twice at Replicate: it is searched for there before it is submitted
again.
"""

from __future__ import annotations

import logging
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from tilemix.errors import (
    BackendBusyError,
    BackendDownError,
    BackendError,
    BackendRefusedError,
    BackendUncertainError,
    Message,
)
from tilemix.studio import predictions
from tilemix.studio.predictions import CANCELED, FAILED, QUEUED, STARTING, TERMINAL
from tilemix.studio.store.database import utc_now
from tilemix.studio.store.schema import Prediction, Share

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy.orm import Session

    from tilemix.prompts.rewrite import Prompt
    from tilemix.request import GenerationRequest
    from tilemix.studio.backends import Backend
    from tilemix.studio.predictions import Report
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

MAX_LOSSES = 3  # a prediction that loses the back end this often may be the cause


class Queue:
    """Predictions: `add()` and `cancel()` for the API, `step()` for the worker that runs them."""

    def __init__(
        self,
        database: Database,
        backend: Backend,
        *,
        deadline_seconds: float,
        webhook_url: str | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._backend = backend
        self._deadline = timedelta(seconds=deadline_seconds)
        self._webhook_url = webhook_url
        self._clock = clock
        self._runner = secrets.token_hex(16)
        self._is_stopping = False
        self._fault: tuple[Message, datetime] | None = (
            None  # why nothing can be drawn, and since when it cannot
        )

    def add(self, request: GenerationRequest, prompt: Prompt) -> str:
        """Commit a new prediction; return its id. The seed is fixed now, so that a retry draws the same picture."""
        now = self._clock()
        prediction = Prediction(
            id=secrets.token_hex(16),
            backend=self._backend.name,
            status=QUEUED,
            prompt=prompt.typed,
            sent_prompt=prompt.positive,
            inputs=_given(request.with_seed()),
            created_at=now,
            deadline_at=now + self._deadline,
        )
        shares = prompt.mix.shares if prompt.mix is not None else ()
        prediction.shares = [
            Share(place=place, color=share.color, percent=float(share.percent))
            for place, share in enumerate(shares)
        ]
        with self._database.write() as session:
            session.add(prediction)
            return prediction.id

    def cancel(self, identity: str) -> bool:
        """Cancel a prediction; return whether it exists. A waiting one ends now, a running one soon."""
        now = self._clock()
        with self._database.write() as session:
            prediction = _lock(session, Prediction.id == identity)
            if prediction is None:
                return False
            if predictions.is_terminal(prediction.status):
                return True
            prediction.cancel_requested_at = prediction.cancel_requested_at or now
            if prediction.status == QUEUED:
                predictions.finish(prediction, CANCELED, error=None, now=now)
        self.send_cancels()
        return True

    def withdraw(self, identity: str, reason: Message) -> bool:
        """End a prediction if it has not started; return whether that was so."""
        with self._database.write() as session:
            prediction = _lock(session, Prediction.id == identity)
            if prediction is None or prediction.status != QUEUED:
                return False
            predictions.finish(prediction, CANCELED, error=reason, now=self._clock())
            return True

    def find_fault(self, *, lasting: timedelta) -> Message | None:
        """Return the fault that has kept waiting predictions from being drawn for so long; None if there is none."""
        fault = self._fault
        return fault[0] if fault is not None and self._clock() - fault[1] >= lasting else None

    def recover(self) -> None:
        """Take over what an earlier studio on this database left running. Called once, at the start."""
        with self._database.write() as session:
            left = session.scalars(
                select(Prediction).where(
                    Prediction.backend == self._backend.name,
                    Prediction.status.not_in([QUEUED, *TERMINAL]),
                    Prediction.runner != self._runner,
                )
            )
            for prediction in left:
                if self._backend.is_synchronous:
                    queue_again(prediction, self._clock())

    def step(self) -> bool:
        """Run the oldest waiting prediction if a slot is free; return whether one was run."""
        if self._is_stopping or not self._has_work():
            self._fault = None  # not observed any more
            return False
        if not self._backend.is_ready():
            self._note_fault(self._backend.find_fault())
            return False
        prediction = self._claim()
        if prediction is None:
            return False
        seconds = (prediction.deadline_at - self._clock()).total_seconds()
        attempt_id = f"{prediction.id}-{prediction.attempts}"
        webhook = self._webhook_url and f"{self._webhook_url}?prediction={prediction.id}"
        try:
            report = self._backend.submit(attempt_id, prediction.inputs, webhook=webhook, seconds=seconds)
        except (BackendBusyError, BackendDownError) as error:
            logger.info("prediction %s waits again: %s", prediction.id, error)
            self._note_fault(error.message if isinstance(error, BackendDownError) else None)
            self._change(prediction, queue_again)
            return False
        except BackendRefusedError as error:
            self._note_fault(None)
            self._change(prediction, _end_with(error.message))
        except BackendUncertainError as error:
            logger.warning("prediction %s: %s", prediction.id, error)
            if self._backend.is_synchronous and not self._is_stopping:
                self._change(prediction, _lose)
        else:
            self._note_fault(None)
            if not self._is_stopping or report.status != CANCELED:
                self._keep(prediction, report)
        return True

    def send_cancels(self) -> None:
        """Cancel at the back end what the user canceled and what is past its deadline.

        A back end that cannot be reached is not an error here: the next call tries again.
        """
        now = self._clock()
        with self._database.read() as session:
            late = select(Prediction.remote_id).where(
                Prediction.backend == self._backend.name,
                Prediction.status.not_in([QUEUED, *TERMINAL]),
                Prediction.remote_id.is_not(None),
                (Prediction.deadline_at < now) | Prediction.cancel_requested_at.is_not(None),
            )
            remote_ids = [remote_id for remote_id in session.scalars(late) if remote_id is not None]
        for remote_id in remote_ids:
            try:
                self._backend.cancel(remote_id)
            except BackendError as error:
                logger.warning("cancel %s: %s", remote_id, error)

    def end_late(self) -> None:
        """Cancel what is past its deadline and end it here as well, so that nobody waits for it any longer."""
        self.send_cancels()
        now = self._clock()
        with self._database.write() as session:
            late = select(Prediction).where(Prediction.status.not_in(TERMINAL), Prediction.deadline_at < now)
            for prediction in session.scalars(late.with_for_update(skip_locked=True)):
                seconds = (prediction.deadline_at - prediction.created_at).total_seconds()
                error = Message("prediction-late", {"seconds": round(seconds), "status": prediction.status})
                predictions.finish(prediction, FAILED, error=error, now=now)

    def stop(self) -> None:
        """Start nothing more, and cancel what runs at a Cog server: the next start draws it again."""
        self._is_stopping = True
        if not self._backend.is_synchronous:
            return
        running = select(Prediction.remote_id).where(
            Prediction.runner == self._runner,
            Prediction.status.not_in([QUEUED, *TERMINAL]),
            Prediction.remote_id.is_not(None),
        )
        with self._database.read() as session:
            remote_ids = [remote_id for remote_id in session.scalars(running) if remote_id is not None]
        for remote_id in remote_ids:
            try:
                self._backend.cancel(remote_id)
            except BackendError as error:
                logger.info("cancel %s: %s", remote_id, error)

    def _note_fault(self, fault: Message | None) -> None:
        since = self._clock() if self._fault is None else self._fault[1]
        self._fault = None if fault is None else (fault, since)

    def _has_work(self) -> bool:
        mine = Prediction.backend == self._backend.name
        count = select(func.count()).select_from(Prediction)
        with self._database.read() as session:
            waiting = session.scalar(count.where(mine, Prediction.status == QUEUED))
            running = session.scalar(count.where(mine, Prediction.status.not_in([QUEUED, *TERMINAL])))
        return bool(waiting) and (running or 0) < self._backend.slots

    def _claim(self) -> Prediction | None:
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
            prediction.submitted_at = self._clock()
            prediction.remote_id = (
                f"{prediction.id}-{prediction.attempts}" if self._backend.is_synchronous else None
            )
            session.flush()
            session.expunge(prediction)
        return prediction

    def _keep(self, claimed: Prediction, report: Report) -> None:
        with self._database.write() as session:
            prediction = _lock(session, Prediction.number == claimed.number)
            assert prediction is not None
            if prediction.remote_id is None:
                prediction.remote_id = report.remote_id
            predictions.apply_report(session, prediction, report, now=self._clock())

    def _change(self, claimed: Prediction, change: Callable[[Prediction, datetime], None]) -> None:
        with self._database.write() as session:
            prediction = _lock(session, Prediction.number == claimed.number)
            assert prediction is not None
            if not predictions.is_terminal(prediction.status):
                change(prediction, self._clock())


def _given(request: GenerationRequest) -> dict[str, Any]:
    """Return the inputs that were given; a Cog server refuses null."""
    values = {name: getattr(request, name) for name in request.__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}


def _lock(session: Session, where: Any) -> Prediction | None:
    found: Prediction | None = session.scalar(select(Prediction).where(where).with_for_update())
    return found


def queue_again(prediction: Prediction, now: datetime) -> None:
    """Put a prediction back into the queue, unless it was canceled; the next attempt gets another id."""
    if prediction.cancel_requested_at is not None:
        predictions.finish(prediction, CANCELED, error=None, now=now)
        return
    prediction.status, prediction.logs, prediction.metrics = QUEUED, "", {}
    prediction.runner = prediction.remote_id = prediction.submitted_at = prediction.started_at = None


def _lose(prediction: Prediction, now: datetime) -> None:
    prediction.losses += 1
    if prediction.losses >= MAX_LOSSES:
        error = Message("prediction-lost", {"count": prediction.losses})
        predictions.finish(prediction, FAILED, error=error, now=now)
    else:
        queue_again(prediction, now)


def _end_with(error: Message) -> Callable[[Prediction, datetime], None]:
    def end(prediction: Prediction, now: datetime) -> None:
        predictions.finish(prediction, FAILED, error=error, now=now)

    return end
