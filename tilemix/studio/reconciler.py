"""Asks Replicate about predictions that have been silent for too long, since any webhook can be lost or late.

The local Cog server has no such call; there the synchronous answer and the deadline decide.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from tilemix.errors import BackendError, BackendRefusedError
from tilemix.studio import predictions
from tilemix.studio.predictions import FAILED, QUEUED, TERMINAL
from tilemix.studio.queue import queue_again
from tilemix.studio.store.database import utc_now
from tilemix.studio.store.schema import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tilemix.errors import Message
    from tilemix.studio.backends import Backend
    from tilemix.studio.predictions import Report
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

SILENCE_WITH_WEBHOOKS = timedelta(seconds=30)
SILENCE_WITHOUT = timedelta(seconds=3)
LOST_ANSWER = timedelta(seconds=60)  # the call times out after ten; Replicate lists a prediction at once


class Reconciler:
    """`step()` asks about one prediction; its worker repeats it until none is left."""

    def __init__(
        self,
        database: Database,
        backend: Backend,
        *,
        has_webhooks: bool,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._backend = backend
        self._silence = SILENCE_WITH_WEBHOOKS if has_webhooks else SILENCE_WITHOUT
        self._clock = clock

    def step(self) -> bool:
        """Ask about the prediction that has been silent longest; return whether there was one."""
        if self._backend.is_synchronous:
            return False
        now = self._clock()
        silent_since = or_(Prediction.asked_at.is_(None), Prediction.asked_at < now - self._silence)
        with self._database.write() as session:
            prediction = session.scalar(
                select(Prediction)
                .where(
                    Prediction.backend == self._backend.name,
                    Prediction.status.not_in([QUEUED, *TERMINAL]),
                    Prediction.submitted_at < now - self._silence,
                    silent_since,
                    or_(Prediction.remote_id.is_not(None), Prediction.submitted_at < now - LOST_ANSWER),
                )
                .order_by(Prediction.submitted_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if prediction is None:
                return False
            prediction.asked_at = now
            number, remote_id, inputs = prediction.number, prediction.remote_id, prediction.inputs
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
        now = self._clock()
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
