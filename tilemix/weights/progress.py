"""One progress bar for all the bytes of a piece of work, whatever thread moves them; on a terminal alone."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TextIO


class StoppedError(Exception):
    """The work was given up while this thread was at it."""


class Progress:
    """Counts bytes, shows them on a terminal, and stops the threads that count when it is told to.

    Use it as a context manager: the bar ends with the block.
    """

    def __init__(self, what: str, total: int | None = None, *, stream: TextIO | None = None) -> None:
        """Begin at 0 bytes of `total`; None: not known. The bar is drawn on `stream`, standard error by default."""
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
        """Add `count` bytes, less than 0 where some are moved again.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._lock:
            if self._stopped:
                raise StoppedError
            self._bar.update(count)

    def stop(self) -> None:
        """Make every thread that moves bytes end at its next ones."""
        self._stopped = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
