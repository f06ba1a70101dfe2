"""The studio's process in `tests/soak_faults.py`: forked again and again from one that has imported all of this."""

import logging
from datetime import datetime, timedelta
from pathlib import Path

import uvicorn

from tests.studio_parts import SECRET
from tilemix.studio.app import create_app
from tilemix.studio.clock import SystemClock
from tilemix.studio.limits import RateLimit
from tilemix.studio.service import Studio
from tilemix.studio.serving import make_config
from tilemix.studio.settings import Secret, Settings


class SteeredClock(SystemClock):
    """The machine's clock, whose wall side jumps when a file says so."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        text = self._file.read_text() if self._file.exists() else ""
        return super().now() + timedelta(seconds=float(text or 0))


class NoLimit(RateLimit):
    """Takes everything."""

    def take(self, address: str) -> bool:
        return True


def serve(folder: str, url: str, port: int, cog_url: str) -> None:
    """The studio's process."""
    logging.disable()  # of faults that are meant
    settings = Settings(
        folder=Path(folder),
        database_url=Secret(url),
        cog_url=cog_url,
        port=port,
        webhook_secrets=(Secret(SECRET),),
        deadline_seconds=60,
    )
    with Studio(settings, clock=SteeredClock(Path(folder).parent / "clock")) as studio:
        uvicorn.Server(make_config(create_app(studio, rate_limit=NoLimit()), settings)).run()
