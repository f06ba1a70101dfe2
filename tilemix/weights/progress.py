"""One progress bar for all the bytes of a job, whichever thread moves them; shown only on a terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TextIO


class StoppedError(Exception):
    """The job was given up while this thread was working on it."""


class Progress:
    """Count bytes, show them on a terminal, and stop the counting threads on request.

    Use it as a context manager; the bar ends with the block.
    """

    def __init__(self, what: str, total: int | None = None, *, stream: TextIO | None = None) -> None:
        """Start at 0 bytes of `total` (None: unknown). The bar is drawn on `stream`, standard error by default."""
        from tqdm import tqdm

        stream = stream or sys.stderr
        self.is_shown = stream.isatty()
        self._lock = threading.Lock()
        self._stopped = False
        self._bar = tqdm(
            desc=what,
            total=total,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.is_shown,
            file=stream,
        )

    def advance(self, count: int) -> None:
        """Add `count` bytes; negative where some must be moved again.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._lock:
            if self._stopped:
                raise StoppedError
            self._bar.update(count)

    def stop(self) -> None:
        """Make every thread that moves bytes end at its next call of `advance`."""
        self._stopped = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
