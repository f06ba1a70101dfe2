"""Fetches a prediction's picture into a file of ours at once, because Replicate deletes its files after an hour.

The file is named after its prediction. It is written under a temporary name, synced and renamed before the database
says that it exists, so a step that was killed can simply be repeated. A disk that is full does not count as a failure
of the picture: the step is repeated until the disk has room.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from tilemix.errors import ImageFileError, OutputError, StoreDownError
from tilemix.pictures.reading import decode_picture, record_of
from tilemix.pictures.record import record_json
from tilemix.studio.clock import SystemClock
from tilemix.studio.fetcher import Fetcher, read_data_uri
from tilemix.studio.store.schema import Output, Prediction
from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.studio.clock import Clock
    from tilemix.studio.store.database import Database

logger = logging.getLogger(__name__)

MEDIA_TYPES = {"PNG": ("image/png", "png"), "JPEG": ("image/jpeg", "jpg"), "WEBP": ("image/webp", "webp")}
FIRST_WAIT, LONGEST_WAIT = 2.0, 8.0  # seconds after a failure; each time twice as long
MAX_ATTEMPTS = 450  # an hour of waits: so long Replicate keeps its files


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
        clock: Clock | None = None,
    ) -> None:
        self._database = database
        self._folder = folder
        self._clock = clock or SystemClock()
        self._fetcher = fetcher or Fetcher(clock=self._clock)
        self._not_before: dict[int, float] = {}  # of pictures that failed, on the monotonic clock
        self._loaded: tuple[int, bytes] | None = None  # one that could not be written yet

    def recover(self) -> None:
        """Remove unfinished files of a studio that was killed."""
        for begun in self._folder.glob(".*.tmp"):
            begun.unlink()

    def step(self) -> bool:
        """Fetch the oldest picture that is due; return whether there was one.

        Raises:
            StoreDownError: the database or the folder cannot be written to now.
        """
        now = self._clock.monotonic()
        resting = [number for number, moment in self._not_before.items() if moment > now]
        due = (
            select(Output.prediction, Output.source, Prediction.id)
            .join(Prediction, Prediction.number == Output.prediction)
            .where(Output.state == "pending", Output.source.is_not(None), Output.prediction.not_in(resting))
            .order_by(Output.prediction)
            .limit(1)
        )
        with self._database.read() as session:
            row = session.execute(due).first()
        if row is None or (source := row.source) is None:
            return False
        number, identity = row.prediction, row.id
        try:
            picture = keep_picture(self._folder, identity, self._load(number, source))
        except OutputError as error:
            logger.warning("the picture of %s: %s", identity, error)
            self._note_failure(number, error)
        else:
            self._note_picture(number, picture)
        self._loaded = None
        return True

    def _load(self, number: int, source: str) -> bytes:
        if self._loaded is None or self._loaded[0] != number:
            is_inline = source[:5].lower() == "data:"
            data = read_data_uri(source) if is_inline else self._fetcher.fetch(source)
            self._loaded = (number, data)
        return self._loaded[1]

    def _note_picture(self, number: int, picture: Picture) -> None:
        with self._database.write() as session:
            output = session.get_one(Output, number, with_for_update=True)
            output.state, output.source, output.error = "taken", None, None
            output.taken_at = self._clock.now()
            for name in picture.__dataclass_fields__:
                setattr(output, name, getattr(picture, name))
        self._not_before.pop(number, None)

    def _note_failure(self, number: int, error: OutputError) -> None:
        with self._database.write() as session:
            output = session.get_one(Output, number, with_for_update=True)
            output.error = error.message.describe()
            output.attempts += 1
            wait = min(FIRST_WAIT * 2 ** min(output.attempts - 1, 10), LONGEST_WAIT)
            if error.is_final or output.attempts >= MAX_ATTEMPTS:
                output.state, output.source = "failed", None
        self._not_before[number] = self._clock.monotonic() + wait


def keep_picture(folder: Path, identity: str, data: bytes) -> Picture:
    """Check that `data` is a picture and write it to the folder, synced.

    Raises:
        OutputError: it is not a picture.
        StoreDownError: the folder cannot be written to now.
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
        raise StoreDownError("output-unwritable", reason=str(error.strerror)) from error
    return Picture(
        file=name,
        media_type=media_type,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=picture.width,
        height=picture.height,
        record=record,
    )
