"""How often one address may do something."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES_A_MINUTE = 60
BURST = 20
ROUNDING = 1e-6  # seconds, of sums of floating-point times
MAX_ADDRESSES = 10_000


class RateLimit:
    """For each address, `at_once` events at once and one every `seconds_each` in the long run.

    For each address it keeps one number: when the whole burst will be available again. The clock is monotonic, so
    that setting the system's clock back locks nobody out.

    Source: the generic cell rate algorithm, https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        at_once: int = BURST,
        seconds_each: float = 60 / CHANGES_A_MINUTE,
    ) -> None:
        self._clock = clock
        self._at_once = at_once
        self._seconds_each = seconds_each
        self._whole_at: dict[str, float] = {}  # address -> when its whole burst is available
        self._turn = threading.Lock()

    def take(self, address: str) -> bool:
        """Return whether this address may do it now, and count it."""
        with self._turn:
            now = self._clock()
            if len(self._whole_at) >= MAX_ADDRESSES:
                self._whole_at = {key: then for key, then in self._whole_at.items() if then > now}
            is_kept = address in self._whole_at or len(self._whole_at) < MAX_ADDRESSES
            whole_at = self._next(address, now)
            if not is_kept or not self._fits(whole_at, now):
                return False
            self._whole_at[address] = whole_at
            return True

    def has_room(self, address: str) -> bool:
        """Return whether this address may do it now, without counting."""
        with self._turn:
            now = self._clock()
            return self._fits(self._next(address, now), now)

    def _next(self, address: str, now: float) -> float:
        return max(self._whole_at.get(address, now), now) + self._seconds_each

    def _fits(self, whole_at: float, now: float) -> bool:
        return whole_at - now <= self._at_once * self._seconds_each + ROUNDING
