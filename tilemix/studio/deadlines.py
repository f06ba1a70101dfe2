"""How long predictions may be drawn: seconds on the monotonic clock, from the moment that the back end gets them.

Waiting does not count. What is left is written to the database now and then, so that it survives a restart; the time
in which no studio runs does not count either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from tilemix.errors import Message
from tilemix.studio import predictions
from tilemix.studio.predictions import FAILED, QUEUED, TERMINAL
from tilemix.studio.store.schema import Prediction

if TYPE_CHECKING:
    from tilemix.studio.clock import Clock
    from tilemix.studio.store.database import Database

SAVE_SECONDS = 10.0  # how much of its time a prediction may win when the studio is killed


class Deadlines:
    """Counts the time of running predictions down."""

    def __init__(self, database: Database, clock: Clock, *, seconds: float) -> None:
        self.seconds = seconds  # of a new prediction
        self._database = database
        self._clock = clock
        self._counted_until: dict[int, float] = {}  # running ones; what was drawn before is off their time

    def begin(self, number: int) -> None:
        """Count from now on."""
        self._counted_until[number] = self._clock.monotonic()

    def charge(self, prediction: Prediction) -> float:
        """Take what was drawn since the last time off a prediction's time; return the rest. Not committed here."""
        now = self._clock.monotonic()
        prediction.seconds_left -= now - self._counted_until.get(prediction.number, now)
        self._counted_until[prediction.number] = now
        return prediction.seconds_left

    def find_late(self) -> list[int]:
        """Return the running predictions whose time is over; those that are new here are counted from now on."""
        now = self._clock.monotonic()
        running = select(Prediction.number, Prediction.seconds_left).where(
            Prediction.status.not_in([QUEUED, *TERMINAL])
        )
        with self._database.read() as session:
            left = dict(session.execute(running).all())
        for number in self._counted_until.keys() - left.keys():
            self._counted_until.pop(number, None)
        return [
            number
            for number, seconds in left.items()
            if now - self._counted_until.setdefault(number, now) >= seconds
        ]

    def end_late(self) -> None:
        """End the predictions whose time is over, and save what the others have left."""
        late = self.find_late()
        now = self._clock.monotonic()
        to_save = [number for number, then in self._counted_until.items() if now - then >= SAVE_SECONDS]
        if not late and not to_save:
            return
        running = select(Prediction).where(
            Prediction.number.in_([*late, *to_save]), Prediction.status.not_in([QUEUED, *TERMINAL])
        )
        with self._database.write() as session:
            for prediction in session.scalars(running.with_for_update(skip_locked=True)):
                if self.charge(prediction) <= 0:
                    error = self.tell_late(prediction)
                    predictions.finish(prediction, FAILED, error=error, now=self._clock.now())

    def tell_late(self, prediction: Prediction) -> Message:
        """Return the error of a prediction that took too long."""
        return Message("prediction-late", {"seconds": round(self.seconds), "status": prediction.status})
