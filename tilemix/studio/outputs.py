"""Fetches a prediction's picture into a file of ours at once, because Replicate deletes its files after an hour.

The file is named after its prediction. It is written under a temporary name, synced and renamed before the database
says that it exists, so a step that was killed can simply be repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from tilemix.errors import ImageFileError, OutputError
from tilemix.pictures.reading import decode_picture, record_of
from tilemix.pictures.record import record_json
from tilemix.studio.fetcher import Fetcher, read_data_uri
from tilemix.studio.store.database import utc_now
from tilemix.studio.store.schema import Output, Prediction
from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

MEDIA_TYPES = {"PNG": ("image/png", "png"), "JPEG": ("image/jpeg", "jpg"), "WEBP": ("image/webp", "webp")}
FIRST_WAIT = timedelta(seconds=2)  # after a failure; then twice as long each time
LONGEST_WAIT = timedelta(seconds=120)
GIVEN_UP_AFTER = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture file on the disk, under its final name."""

    file: str
    media_type: str
    size: int  # bytes
    sha256: str
    width: int  # pixels
    height: int
    record: str | None  # JSON


class OutputTaker:
    """Fetches the pictures of successful predictions; `step()` is for its worker."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        fetcher: Fetcher | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._folder = folder
        self._fetcher = fetcher or Fetcher()
        self._clock = clock

    def recover(self) -> None:
        """Make the folder and remove unfinished files of a studio that was killed."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for begun in self._folder.glob(".*.tmp"):
            begun.unlink()

    def step(self) -> bool:
        """Fetch the oldest picture that is due; return whether there was one."""
        now = self._clock()
        due = (
            select(Output.prediction, Output.source, Prediction.id)
            .join(Prediction, Prediction.number == Output.prediction)
            .where(Output.state == "pending", Output.source.is_not(None), Output.next_attempt_at <= now)
            .order_by(Output.prediction)
            .limit(1)
        )
        with self._database.read() as session:
            row = session.execute(due).first()
        if row is None:
            return False
        number, source, identity = row
        try:
            picture = keep_picture(self._folder, identity, self._load(source))
        except OutputError as error:
            logger.warning("the picture of %s: %s", identity, error)
            self._note_failure(number, error)
        else:
            self._note_picture(number, picture)
        return True

    def _load(self, source: str | None) -> bytes:
        assert source is not None
        return read_data_uri(source) if source[:5].lower() == "data:" else self._fetcher.fetch(source)

    def _note_picture(self, number: int, picture: Picture) -> None:
        with self._database.write() as session:
            output = session.get_one(Output, number, with_for_update=True)
            output.state, output.source, output.error = "taken", None, None
            output.taken_at = self._clock()
            for name in picture.__dataclass_fields__:
                setattr(output, name, getattr(picture, name))

    def _note_failure(self, number: int, error: OutputError) -> None:
        now = self._clock()
        with self._database.write() as session:
            output = session.get_one(Output, number, with_for_update=True)
            output.error = error.message.describe()
            output.attempts += 1
            wait = min(FIRST_WAIT * 2 ** min(output.attempts - 1, 10), LONGEST_WAIT)
            output.next_attempt_at = now + wait
            if error.is_final or now > output.created_at + GIVEN_UP_AFTER:
                output.state, output.source = "failed", None


def keep_picture(folder: Path, identity: str, data: bytes) -> Picture:
    """Check that `data` is a picture and write it to the folder, synced.

    Raises:
        OutputError: it is not a picture, or the folder cannot be written to.
    """
    try:
        picture = decode_picture(data, source="the output")
    except ImageFileError as error:
        raise OutputError(error.code, is_final=True, field=error.field, **error.values) from error
    record = None
    with contextlib.suppress(ImageFileError):  # another model's picture has no such record
        record = record_json(record_of(picture, source="the output"))
    media_type, extension = MEDIA_TYPES[picture.format or ""]
    name = f"{identity}.{extension}"
    try:
        write_atomically(folder / name, data)
    except OSError as error:
        raise OutputError("output-unwritable", is_final=False, reason=str(error.strerror)) from error
    return Picture(
        file=name,
        media_type=media_type,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=picture.width,
        height=picture.height,
        record=record,
    )
