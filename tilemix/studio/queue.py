"""The queue: predictions wait in the database and run as the back end has free slots.

A prediction is in the database before it runs, so a studio that was killed finds it again. A Cog server drops a
prediction whose caller is gone, so it is drawn again with the same seed. At Replicate it goes on, and the reconciler
asks for it. A lost answer never makes it run twice at Replicate: it is searched for there before it is submitted
again.
"""

from __future__ import annotations

import logging
import secrets
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select

from tilemix.errors import (
    BackendBusyError,
    BackendDownError,
    BackendError,
    BackendRefusedError,
    BackendUncertainError,
    Message,
    RefusalError,
)
from tilemix.studio import predictions
from tilemix.studio.attempts import Attempts, end_with, lock, queue_again
from tilemix.studio.clock import SystemClock
from tilemix.studio.deadlines import Deadlines
from tilemix.studio.faults import Faults
from tilemix.studio.predictions import CANCELED, QUEUED, TERMINAL
from tilemix.studio.settings import MOST_WAITING
from tilemix.studio.signatures import make_address_key
from tilemix.studio.store.schema import Prediction, Share

if TYPE_CHECKING:
    from tilemix.prompts.rewrite import Prompt
    from tilemix.request import GenerationRequest
    from tilemix.studio.backends import Backend
    from tilemix.studio.clock import Clock
    from tilemix.studio.settings import Secret
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

CANCEL_SECONDS = (
    5.0  # how long a synchronous back end may take to cancel; then its answer is no longer awaited
)


class Queue:
    """Predictions: `add()` and `cancel()` for the API, `step()` for the worker that runs them."""

    def __init__(
        self,
        database: Database,
        backend: Backend,
        *,
        deadline_seconds: float,
        webhook_url: str | None = None,
        webhook_key: Secret | None = None,
        most_waiting: int = MOST_WAITING,
        faults: Faults | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._database = database
        self._backend = backend
        self._webhook_url = webhook_url
        self._webhook_key = webhook_key
        self._most_waiting = most_waiting
        self._clock = clock or SystemClock()
        self._deadlines = Deadlines(database, self._clock, seconds=deadline_seconds)
        self._stopping = threading.Event()
        self._attempts = Attempts(
            database,
            backend,
            self._deadlines,
            faults=faults or Faults(),
            clock=self._clock,
            stopping=self._stopping,
        )
        self._is_unsure = True  # rows may say that something runs which does not
        self._submitted: set[int] = set()  # numbers; at a synchronous back end, of what has not ended well
        self._awaited: tuple[int, str] | None = None  # number and attempt whose answer is awaited
        self._cancels: dict[str, float] = {}  # attempt -> when it was first canceled
        self._fault: tuple[Message, float] | None = None  # why nothing can be drawn, and since when it cannot

    def add(self, request: GenerationRequest, prompt: Prompt) -> str:
        """Commit a new prediction; return its id. The seed is fixed now, so that a retry draws the same picture.

        Raises:
            RefusalError: too many are waiting already.
            StoreDownError: the database cannot be used now; nothing was added.
        """
        prediction = Prediction(
            id=secrets.token_hex(16),
            backend=self._backend.name,
            status=QUEUED,
            prompt=prompt.typed,
            sent_prompt=prompt.positive,
            inputs=_given(request.with_seed()),
            created_at=self._clock.now(),
            seconds_left=self._deadlines.seconds,
        )
        mix = prompt.mix.shares if prompt.mix is not None else ()
        prediction.mix = {share.color: float(share.percent) for share in mix}
        prediction.notes = [note.describe() for note in prompt.notes]
        shares = prompt.sent.shares if prompt.sent is not None else ()
        prediction.shares = [
            Share(place=place, color=share.color, percent=float(share.percent))
            for place, share in enumerate(shares)
        ]
        waiting = select(func.count()).where(Prediction.status == QUEUED)
        with self._database.write() as session:
            if (session.scalar(waiting) or 0) >= self._most_waiting:
                raise RefusalError("studio-queue-full", status=503, most=self._most_waiting)
            session.add(prediction)
            return prediction.id

    def cancel(self, identity: str) -> bool:
        """Cancel a prediction; return whether it exists. A waiting one ends now, a running one soon."""
        if not predictions.ID.fullmatch(identity):
            return False
        now = self._clock.now()
        with self._database.write() as session:
            prediction = lock(session, Prediction.id == identity)
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
            prediction = lock(session, Prediction.id == identity)
            if prediction is None or prediction.status != QUEUED:
                return False
            predictions.finish(prediction, CANCELED, error=reason, now=self._clock.now())
            return True

    def find_fault(self, *, lasting: float) -> Message | None:
        """Return the fault that has kept waiting predictions from being drawn for so many seconds; None if none has."""
        fault = self._fault
        return fault[0] if fault is not None and self._clock.monotonic() - fault[1] >= lasting else None

    def is_being_submitted(self, number: int) -> bool:
        """Return whether the back end's answer about this prediction is still awaited."""
        awaited = self._awaited
        return awaited is not None and awaited[0] == number

    @property
    def is_awaiting(self) -> bool:
        """Whether an answer of the back end is awaited: a Cog server draws for this studio."""
        return self._awaited is not None

    def step(self) -> bool:
        """Run the oldest waiting prediction if a slot is free; return whether one was run.

        Raises:
            StoreDownError: the database cannot be used now; the next step sets the rows right.
        """
        if self._stopping.is_set():
            return False
        if self._is_unsure:
            self._attempts.recover(self._submitted)
            self._is_unsure = False
        if not self._has_work():
            self._fault = None  # not observed any more
            return False
        if not self._backend.is_ready():
            self._note_fault(self._backend.find_fault())
            return False
        self._is_unsure = True  # until all of this is in the database
        prediction = self._attempts.claim()
        has_run = prediction is not None and self._run(prediction)
        self._is_unsure = False
        return has_run

    def _run(self, prediction: Prediction) -> bool:
        attempt_id = f"{prediction.id}-{prediction.attempts}"
        webhook = self._webhook_url and f"{self._webhook_url}?prediction={prediction.id}"
        if webhook and self._webhook_key is not None:
            webhook += f"&key={make_address_key(self._webhook_key, prediction.id)}"
        seconds = prediction.seconds_left
        self._awaited = (prediction.number, attempt_id)
        self._submitted.add(prediction.number)
        try:
            report = self._backend.submit(attempt_id, prediction.inputs, webhook=webhook, seconds=seconds)
        except (BackendBusyError, BackendDownError) as error:
            logger.info("prediction %s waits again: %s", prediction.id, error)
            self._note_fault(error.message if isinstance(error, BackendDownError) else None)
            self._attempts.change(prediction, queue_again)
            self._submitted.discard(prediction.number)
            return False
        except BackendRefusedError as error:
            self._note_fault(None)
            self._attempts.change(prediction, end_with(error.message))
        except BackendUncertainError as error:
            logger.warning("prediction %s: %s", prediction.id, error)
            if self._backend.is_synchronous and not self._stopping.is_set():
                self._attempts.change(prediction, self._attempts.lose)
        else:
            self._note_fault(None)
            if not self._stopping.is_set() or report.status != CANCELED:
                self._attempts.keep(prediction, report)
        finally:
            self._awaited = None
        if self._backend.is_synchronous:
            self._submitted.discard(prediction.number)
        return True

    def send_cancels(self) -> None:
        """Cancel at the back end what the user canceled and what is past its deadline.

        A back end that cannot be reached is not an error here: the next call tries again.
        """
        late = self._deadlines.find_late()
        with self._database.read() as session:
            running = select(Prediction.remote_id).where(
                Prediction.backend == self._backend.name,
                Prediction.status.not_in([QUEUED, *TERMINAL]),
                Prediction.remote_id.is_not(None),
                or_(Prediction.number.in_(late), Prediction.cancel_requested_at.is_not(None)),
            )
            remote_ids = [remote_id for remote_id in session.scalars(running) if remote_id is not None]
        now = self._clock.monotonic()
        self._cancels = {remote_id: self._cancels.get(remote_id, now) for remote_id in remote_ids}
        for remote_id, since in self._cancels.items():
            try:
                self._backend.cancel(remote_id)
            except BackendError as error:
                logger.warning("cancel %s: %s", remote_id, error)
            if now - since >= CANCEL_SECONDS:  # its worker has stopped or hangs
                self._backend.abandon(remote_id)

    def end_late(self) -> None:
        """Cancel what is past its deadline and end it here as well, so that nobody waits for it any longer."""
        self.send_cancels()
        self._deadlines.end_late()

    def stop(self) -> None:
        """Start nothing more, and cancel what runs at a Cog server: the next start draws it again."""
        self._stopping.set()
        awaited = self._awaited
        if not self._backend.is_synchronous or awaited is None:
            return
        try:
            self._backend.cancel(awaited[1])
        except BackendError as error:
            logger.info("cancel %s: %s", awaited[1], error)

    def _note_fault(self, fault: Message | None) -> None:
        since = self._clock.monotonic() if self._fault is None else self._fault[1]
        self._fault = None if fault is None else (fault, since)

    def _has_work(self) -> bool:
        mine = Prediction.backend == self._backend.name
        count = select(func.count()).select_from(Prediction)
        with self._database.read() as session:
            waiting = session.scalar(count.where(mine, Prediction.status == QUEUED))
            running = session.scalar(count.where(mine, Prediction.status.not_in([QUEUED, *TERMINAL])))
        return bool(waiting) and (running or 0) < self._backend.slots


def _given(request: GenerationRequest) -> dict[str, Any]:
    """Return the inputs that were given; a Cog server refuses null."""
    values = {name: getattr(request, name) for name in request.__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}
