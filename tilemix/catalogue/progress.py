"""How far a catalogue is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0  # between two lines where there is no terminal
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """Counts rows: drawn now, kept from earlier runs, failed.

    Args:
        total: rows.
        stream: where the bar is drawn; standard error by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self, total: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from tqdm import tqdm

        stream = stream or sys.stderr
        self.total = total
        self.drawn = self.kept = self.failed = 0
        self.has_begun = False
        self._clock = clock
        self._began = self._told_at = clock()
        self._is_bar = stream.isatty()
        self._bar = tqdm(
            total=total, bar_format=BAR, dynamic_ncols=True, disable=not self._is_bar, file=stream
        )

    @property
    def done(self) -> int:
        """Rows that are settled."""
        return self.drawn + self.kept + self.failed

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._began

    def begin(self) -> None:
        """Count the time from now on: what draws is ready."""
        self.has_begun = True
        self._began = self._clock()

    def count_drawn(self) -> None:
        """Count a row whose picture was drawn now."""
        self.drawn += 1
        self._tell()

    def count_kept(self) -> None:
        """Count a row whose picture was there already."""
        self.kept += 1
        self._tell()

    def count_failed(self) -> None:
        """Count a row that has no picture."""
        self.failed += 1
        self._tell()

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def describe(self) -> str:
        """Return the rate, the time left and the failures: "0.81/s, 11 min left, 2 failed"."""
        parts = []
        if self.drawn and self.seconds > 0:
            rate = self.drawn / self.seconds
            parts.append(f"{rate:.3g}/s")
            parts.append(f"{_format_seconds((self.total - self.done) / rate)} left")
        parts.append(f"{self.failed} failed")
        return ", ".join(parts)

    def _tell(self) -> None:
        if self._is_bar:
            self._bar.update()
            self._bar.set_postfix_str(self.describe(), refresh=False)
        elif self._clock() - self._told_at >= LINE_SECONDS:
            self._told_at = self._clock()
            logger.info("%d of %d rows: %s", self.done, self.total, self.describe())


def _format_seconds(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
