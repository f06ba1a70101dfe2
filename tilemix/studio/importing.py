"""Takes the pictures of a finished catalogue into the gallery; see docs/catalogue.md for what its folder holds.

A picture keeps its id, so importing twice takes it once.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import select

from tilemix.errors import ImageFileError, OutputError, StudioError
from tilemix.pictures.metrics import NOT_ASKED, error_metrics, find_share_error, share_metric
from tilemix.pictures.reading import read_record
from tilemix.pictures.repeating import repeat_record
from tilemix.studio.clock import SystemClock
from tilemix.studio.outputs import keep_picture
from tilemix.studio.predictions import SUCCEEDED
from tilemix.studio.store.database import Database
from tilemix.studio.store.locks import lock_file
from tilemix.studio.store.schema import Output, Prediction, Share

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.pictures.record import Record
    from tilemix.studio.settings import Settings

logger = logging.getLogger(__name__)

PATH = re.compile(
    r"pictures/[0-9a-f]{2}/([0-9a-f]{32})\.(?:png|webp|jpg)"
)  # as a catalogue names its pictures


class Imported(NamedTuple):
    """What an import did."""

    taken: int
    known: int  # that the gallery had already
    refused: int  # whose file is missing or changed, or is not a picture


class _Row(msgspec.Struct):
    """A line of results.jsonl; other keys are ignored."""

    id: str | None = None
    status: str = ""
    path: str | None = None
    sha256: str | None = None
    prompt: str = ""
    measured: dict[str, float] | None = None
    not_asked: float = 0.0
    color_errors: dict[str, float] = {}
    lightness_errors: dict[str, float] = {}
    seconds: float = 0.0


def import_catalogue(catalogue: Path, settings: Settings) -> Imported:
    """Take every picture of a catalogue's folder into the gallery of a studio that does not run.

    Raises:
        StudioError: the folder holds no results of a catalogue.
        SettingsError: the studio runs, or its folder or database cannot be used.
    """
    pictures = settings.make_folders()
    with ExitStack() as stack:
        stack.callback(lock_file(settings.folder / "lock", str(settings.folder)).close)
        database = Database.open(settings.database_url, is_shared=False)
        stack.callback(database.close)
        return _import_rows(catalogue, pictures, database, settings)


def _import_rows(catalogue: Path, pictures: Path, database: Database, settings: Settings) -> Imported:
    taken = known = refused = 0
    try:
        with (catalogue / "results.jsonl").open("rb") as file:
            for line in file:
                row = msgspec.json.decode(line, type=_Row)
                if row.status != "done" or row.id is None:
                    continue
                with database.read() as session:
                    is_known = (
                        session.scalar(select(Prediction.id).where(Prediction.id == row.id)) is not None
                    )
                if is_known:
                    known += 1
                elif _take(row, catalogue, pictures, database, settings):
                    taken += 1
                else:
                    refused += 1
    except OSError as error:
        raise StudioError("studio-no-catalogue", folder=str(catalogue), reason=str(error.strerror)) from error
    except msgspec.MsgspecError as error:
        raise StudioError("studio-no-catalogue", folder=str(catalogue), reason=str(error)) from error
    return Imported(taken, known, refused)


def _take(row: _Row, catalogue: Path, pictures: Path, database: Database, settings: Settings) -> bool:
    """Copy a picture and add its prediction; return whether that went well."""
    found = PATH.fullmatch(row.path or "")
    if row.path is None or found is None or found[1] != row.id:
        logger.warning("row %.80r: not a catalogue's path: %.80r", row.id, row.path)
        return False
    try:
        data = (catalogue / row.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != row.sha256:
            logger.warning("%s: not the file that was recorded", row.path)
            return False
        record = read_record(catalogue / row.path)
        kept = keep_picture(pictures, found[1], data)
    except (FileNotFoundError, ImageFileError, OutputError) as error:
        logger.warning("%s: %s", row.path, getattr(error, "strerror", None) or error)
        return False
    now = SystemClock().now()
    metrics, shares = _list_metrics(row), _find_shares(record)
    prediction = Prediction(
        id=row.id,
        backend=settings.backend,
        status=SUCCEEDED,
        prompt=record.prompt,
        sent_prompt=record.sent_prompt,
        mix=record.mix,
        notes=[],
        inputs=repeat_record(record),
        created_at=now,
        started_at=now,
        completed_at=now,
        seconds_left=0.0,
        metrics=metrics,
        share_error=find_share_error(shares, metrics),
        shares=[
            Share(place=place, color=color, percent=percent)
            for place, (color, percent) in enumerate(shares.items())
        ],
        output=Output(state="taken", created_at=now, taken_at=now, **asdict(kept)),
    )
    with database.write() as session:
        session.add(prediction)
    return True


def _find_shares(record: Record) -> dict[str, float]:
    return record.sent_mix or record.mix or {}


def _list_metrics(row: _Row) -> dict[str, Any]:
    """Return the measured shares under the names that a prediction reports them by."""
    metrics: dict[str, Any] = {"predict_time": row.seconds}
    if row.measured:
        shares = {**row.measured, NOT_ASKED: row.not_asked}
        metrics |= {share_metric(color): round(percent, 1) for color, percent in shares.items()}
        metrics |= error_metrics(row.color_errors, row.lightness_errors)
    return metrics
