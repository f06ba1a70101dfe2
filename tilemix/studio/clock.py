"""The studio's one clock. Every part gets it handed in, and none asks the system itself.

The wall clock may jump when it is set. It only says when something happened, for people and for the database. Whatever
waits, counts or gives up uses the monotonic clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """Return the moment, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that only go on, from some moment of this process."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the moment, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()
