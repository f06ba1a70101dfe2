"""The studio's log on standard error: without secrets, and bounded whatever happens."""

from __future__ import annotations

import logging
import threading
import time

from tilemix.studio.settings import mask

MOST_ALIKE = 20  # lines of one kind in a period
PERIOD_SECONDS = 60.0
MOST_CHARACTERS = 8_000  # of a line, its traceback included


class MaskingFormatter(logging.Formatter):
    """Replaces secrets by stars in every log line and traceback, whoever wrote it."""

    secrets: frozenset[str] = frozenset()  # the known ones; what looks like a key is masked anyway

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, mask it and cut it."""
        text = mask(super().format(record), self.secrets)
        return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


class BoundingFilter(logging.Filter):
    """Lets twenty lines of one kind pass each minute. A line's kind is where it was written."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, int], int] = {}
        self._until = 0.0
        self._turn = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record may pass; the last one of its kind says that more may follow."""
        with self._turn:
            now = time.monotonic()
            if now >= self._until:
                self._counts, self._until = {}, now + PERIOD_SECONDS
            kind = (record.pathname, record.lineno)
            self._counts[kind] = self._counts.get(kind, 0) + 1
            count = self._counts[kind]
        if count == MOST_ALIKE:
            record.msg = f"{record.msg} (others like this are left out for {PERIOD_SECONDS:.0f} s)"
        return count <= MOST_ALIKE


def log_to_stderr() -> MaskingFormatter:
    """Set up logging; return its formatter, so that it can be told the secrets."""
    formatter = MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(BoundingFilter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for every health check
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return formatter
