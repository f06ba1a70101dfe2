"""Looks predictions up for the API and the page: one by its id, or a page of them by color and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.orm import selectinload

from tilemix.studio.predictions import ID, SUCCEEDED, TERMINAL
from tilemix.studio.store.schema import Output, Prediction, Share
from tilemix.system.step_log import read_progress

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Select

    from tilemix.studio.store.database import Database

MAX_SEARCH_CHARACTERS = 200
MOST_ON_A_PAGE = 100
LIKE_ESCAPE = "\\"


class Gallery:
    """Read-only queries for predictions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, identity: str) -> dict[str, Any] | None:
        """Return the prediction with this id, or None."""
        if not ID.fullmatch(identity):
            return None
        with self._database.read() as session:
            prediction = session.scalar(_whole().where(Prediction.id == identity))
            return None if prediction is None else describe(prediction)

    def find_page(
        self,
        *,
        limit: int,
        before: str | None = None,
        color: str | None = None,
        text: str | None = None,
        has_picture: bool = False,
    ) -> list[dict[str, Any]]:
        """Return predictions, newest first; optionally older than `before` (an id), with a color, text or picture.

        The search ignores case; on PostgreSQL, for the letters that the database's locale knows.
        """
        query = _whole().order_by(Prediction.number.desc()).limit(min(limit, MOST_ON_A_PAGE))
        with self._database.read() as session:
            if before is not None:
                last = select(Prediction.number).where(Prediction.id == before).scalar_subquery()
                query = query.where(Prediction.number < last)
            if color is not None:
                query = query.where(Prediction.shares.any(Share.color == color))
            if has_picture:
                query = query.where(Prediction.output.has(Output.state == "taken"))
            if text is not None:
                special = str.maketrans({sign: LIKE_ESCAPE + sign for sign in ("%", "_", LIKE_ESCAPE)})
                like = f"%{text.translate(special)}%"
                query = query.where(
                    or_(
                        Prediction.prompt.ilike(like, escape=LIKE_ESCAPE),
                        Prediction.sent_prompt.ilike(like, escape=LIKE_ESCAPE),
                    )
                )
            return [describe(prediction) for prediction in session.scalars(query)]

    def count_before(self, identity: str) -> int:
        """Return how many unfinished predictions are ahead of this one in the queue."""
        own = select(Prediction.number, Prediction.backend).where(Prediction.id == identity).subquery()
        earlier = select(func.count()).where(
            Prediction.number < own.c.number,
            Prediction.backend == own.c.backend,
            Prediction.status.not_in(TERMINAL),
        )
        with self._database.read() as session:
            return session.scalar(earlier) or 0

    def find_file(self, identity: str) -> tuple[str, str] | None:
        """Return the file name and media type of a prediction's picture, or None if it has none (yet)."""
        if not ID.fullmatch(identity):
            return None
        taken = (
            select(Output.file, Output.media_type)
            .join(Prediction, Prediction.number == Output.prediction)
            .where(Prediction.id == identity, Output.state == "taken")
        )
        with self._database.read() as session:
            row = session.execute(taken).first()
        return None if row is None or row[0] is None or row[1] is None else (row[0], row[1])


def describe(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values. `is_done` means that it is final, its picture included."""
    progress = read_progress(prediction.logs)
    output = prediction.output
    shares = {share.color: share.percent for share in prediction.shares}
    is_ended = prediction.completed_at is not None
    return {
        "id": prediction.id,
        "status": prediction.status,
        "is_done": is_ended and (prediction.status != SUCCEEDED or _is_settled(output)),
        "prompt": prediction.prompt,
        "sent_prompt": prediction.sent_prompt,
        "mix": shares if prediction.mix is None else prediction.mix,
        "sent": shares,
        "notes": prediction.notes or [],
        "input": prediction.inputs,
        "created_at": _write_time(prediction.created_at),
        "started_at": _write_time(prediction.started_at),
        "completed_at": _write_time(prediction.completed_at),
        "progress": None if progress is None or is_ended else progress._asdict(),
        "metrics": prediction.metrics,
        "error": prediction.error
        or (output.error if output is not None and output.state == "failed" else None),
        "url": f"/files/{prediction.id}" if output is not None and output.state == "taken" else None,
        "media_type": None if output is None else output.media_type,
        "record": None if output is None or output.record is None else msgspec.json.decode(output.record),
    }


def _is_settled(output: Output | None) -> bool:
    return output is not None and output.state != "pending"


def _whole() -> Select[Prediction]:
    return select(Prediction).options(selectinload(Prediction.shares), selectinload(Prediction.output))


def _write_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
