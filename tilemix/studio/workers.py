"""Threads that repeat a step for as long as the studio runs."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from tilemix.errors import StoreDownError
from tilemix.studio.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

WAIT_AFTER_FAILURE = 2.0  # seconds


class Worker(threading.Thread):
    """Calls `step` until it returns False, then waits `idle_seconds` or until it is woken.

    A step that fails is noted among the faults and tried again; its work is in the database.
    """

    def __init__(
        self, name: str, step: Callable[[], bool], *, idle_seconds: float, faults: Faults | None = None
    ) -> None:
        super().__init__(name=name, daemon=True)  # a hung call must not block shutdown; nothing is lost
        self._step = step
        self._idle_seconds = idle_seconds
        self._faults = faults or Faults()
        self._woken = threading.Event()
        self._is_stopping = False

    def run(self) -> None:
        """Repeat the step until `stop()`."""
        while not self._is_stopping:
            self._woken.clear()
            wait = self._idle_seconds
            try:
                has_more = self._step()
                self._faults.clear(self.name)
                if has_more:
                    continue
            except StoreDownError as error:
                logger.error("%s: %s", self.name, error)  # noqa: TRY400  not a bug: a line says it all
                self._faults.note(self.name, error)
                wait = WAIT_AFTER_FAILURE
            except Exception as error:  # the edge of this thread
                logger.exception("%s failed", self.name)
                self._faults.note(self.name, error)
                wait = WAIT_AFTER_FAILURE
            if not self._is_stopping:
                self._woken.wait(wait)

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    def stop(self) -> None:
        """Start no further step."""
        self._is_stopping = True
        self.wake()
