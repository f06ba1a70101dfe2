"""Threads that do one step after another for as long as the studio runs."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

WAIT_AFTER_FAILURE = 2.0  # seconds


class Worker(threading.Thread):
    """Calls `step` until it returns False, then waits until it is woken, or `idle_seconds`.

    A step that fails is logged and tried again: what it works on stands in the database.
    """

    def __init__(self, name: str, step: Callable[[], bool], *, idle_seconds: float) -> None:
        super().__init__(
            name=name, daemon=True
        )  # a killed studio loses nothing, so a hanging call holds up no end
        self._step = step
        self._idle_seconds = idle_seconds
        self._woken = threading.Event()
        self._is_stopping = False

    def run(self) -> None:
        """Work."""
        while not self._is_stopping:
            self._woken.clear()
            wait = self._idle_seconds
            try:
                if self._step():
                    continue
            except Exception:  # the edge of this thread
                logger.exception("%s failed", self.name)
                wait = max(wait, WAIT_AFTER_FAILURE)
            if not self._is_stopping:
                self._woken.wait(wait)

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    def stop(self) -> None:
        """Begin no other step."""
        self._is_stopping = True
        self.wake()
