"""Asks Replicate about predictions that have been silent for too long, since any webhook can be lost or late.

The local Cog server has no such call; there the synchronous answer and the deadline decide.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy import select

from tilemix.errors import BackendError, BackendRefusedError
from tilemix.studio import predictions
from tilemix.studio.attempts import queue_again
from tilemix.studio.clock import SystemClock
from tilemix.studio.predictions import FAILED, QUEUED, TERMINAL
from tilemix.studio.store.schema import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable

    from tilemix.errors import Message
    from tilemix.studio.backends import Backend
    from tilemix.studio.clock import Clock
    from tilemix.studio.predictions import Report
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

# Seconds on the monotonic clock.
SILENCE_WITH_WEBHOOKS = 30.0
SILENCE_WITHOUT = 3.0
LOST_ANSWER = 8.0  # after the call that asked for it has ended; Replicate lists a prediction at once


class Reconciler:
    """`step()` asks about one prediction; its worker repeats it until none is left."""

    def __init__(
        self,
        database: Database,
        backend: Backend,
        *,
        has_webhooks: bool,
        is_being_submitted: Callable[[int], bool] = lambda _: False,
        clock: Clock | None = None,
    ) -> None:
        self._database = database
        self._backend = backend
        self._silence = SILENCE_WITH_WEBHOOKS if has_webhooks else SILENCE_WITHOUT
        self._is_being_submitted = is_being_submitted
        self._clock = clock or SystemClock()
        self._heard: dict[int, float] = {}  # when each running one was first seen or last asked about

    def step(self) -> bool:
        """Ask about the prediction that has been silent longest; return whether there was one."""
        if self._backend.is_synchronous:
            return False
        now = self._clock.monotonic()
        with self._database.read() as session:
            running = session.scalars(
                select(Prediction).where(
                    Prediction.backend == self._backend.name, Prediction.status.not_in([QUEUED, *TERMINAL])
                )
            ).all()
        numbers = {each.number for each in running if not self._is_being_submitted(each.number)}
        self._heard = {number: self._heard.get(number, now) for number in numbers}
        silent = [
            each
            for each in running
            if each.number in numbers
            and now - self._heard[each.number] >= (LOST_ANSWER if each.remote_id is None else self._silence)
        ]
        if not silent:
            return False
        prediction = min(silent, key=lambda each: self._heard[each.number])
        number, remote_id, inputs = prediction.number, prediction.remote_id, prediction.inputs
        self._heard[number] = now
        try:
            report = self._backend.find(inputs) if remote_id is None else self._backend.look_up(remote_id)
        except BackendRefusedError as error:
            self._settle(number, remote_id, None, error.message)
        except BackendError as error:
            logger.warning("asking about prediction %s: %s", remote_id or number, error)
        else:
            self._settle(number, remote_id, report, None)
        return True

    def _settle(
        self, number: int, remote_id: str | None, report: Report | None, error: Message | None
    ) -> None:
        now = self._clock.now()
        with self._database.write() as session:
            prediction = session.get_one(Prediction, number, with_for_update=True)
            if predictions.is_terminal(prediction.status) or prediction.remote_id != remote_id:
                return  # a webhook came first
            if error is not None:
                predictions.finish(prediction, FAILED, error=error, now=now)
            elif report is not None:
                prediction.remote_id = report.remote_id
                predictions.apply_report(session, prediction, report, now=now)
            elif remote_id is None:
                queue_again(prediction, now)  # it never reached Replicate
