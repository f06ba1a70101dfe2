"""Looks predictions up for the API and the page: one by its id, or a page of them by color and text."""

from __future__ import annotations

import asyncio
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from sqlalchemy import Integer, and_, column, delete, func, literal, or_, select, table
from sqlalchemy.orm import joinedload, selectinload
from starlette.concurrency import run_in_threadpool

from tilemix.colors.answers import rank_answers
from tilemix.colors.chart import load_colors
from tilemix.errors import LIST_SEPARATOR, Message, RefusalError, RequestError
from tilemix.studio.predictions import ID, SUCCEEDED, TERMINAL
from tilemix.studio.store.schema import Output, Prediction, Share
from tilemix.system.step_log import read_progress

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import ScalarSelect, Select

    from tilemix.colors.palette import Palette
    from tilemix.studio.store.database import Database

Order = Literal["newest", "error"]
MAX_SEARCH_CHARACTERS = 200
MOST_ON_A_PAGE = 100
MOST_CHARACTERS = 40  # of an unknown color, in an error
MOST_SUGGESTED = 3
GONE = Message("studio-picture-removed", {})
# SQLite's index of the texts: where three letters in a row stand, and the list of these threes. See its migration.
TEXTS = table("predictions_text", column("rowid", Integer), column("predictions_text"))
LETTERS = table("predictions_letters", column("term"))
THREE = 3
NOTHING = '""'  # FTS5 finds it nowhere
LAST_LETTER = "\U0010ffff"
LIKE_ESCAPE = "\\"
# Searches at a time. Threads that make objects of rows wait for the interpreter at each row: eight searches at once
# took nearly twice the processor time of eight in turn. PostgreSQL finds rows while others are read.
SEARCHES = {"sqlite": 1, "postgresql": 4}
TURN_SECONDS = 2.0  # that a search waits for the others


class Gallery:
    """Queries for predictions; the one change is to delete one whose picture is gone."""

    def __init__(self, database: Database, pictures: Path) -> None:
        self._database = database
        self._pictures = pictures
        self._turns = asyncio.Semaphore(SEARCHES[database.engine.dialect.name])

    def find(self, identity: str) -> dict[str, Any] | None:
        """Return the prediction with this id, or None."""
        if not ID.fullmatch(identity):
            return None
        with self._database.read() as session:
            prediction = session.scalar(_whole().where(Prediction.id == identity))
            return None if prediction is None else describe(prediction, self._pictures)

    def find_color(self, typed: str, palette: Palette | None) -> str:
        """Return the word by which the mixes that were sent have a color.

        It is the palette's (None: the chart's). A color that only older pictures have is found by its own word.

        Raises:
            RequestError: nothing here has this color; the message names the nearest of the palette.
            StoreDownError: the database cannot be used now.
        """
        words = [each.word for each in palette.colors] if palette else [each.name for each in load_colors()]
        if typed in words:
            return typed
        with self._database.read() as session:
            if session.scalar(select(Share.color).where(Share.color == typed).limit(1)) is not None:
                return typed
        if palette is not None and (own := palette.find(typed)) is not None:
            return own.word
        ranked = rank_answers(palette, typed) if palette else []
        near = [each.color.word for each in ranked] or get_close_matches(typed.casefold(), words, cutoff=0)
        raise RequestError(
            "studio-unknown-color",
            field="color",
            typed=typed[:MOST_CHARACTERS],
            near=LIST_SEPARATOR.join(near[:MOST_SUGGESTED]),
        )

    async def search(self, **filters: Any) -> list[dict[str, Any]]:
        """Call `find_page` in a thread. Searches take turns in the order in which they came.

        Raises:
            RefusalError: its turn did not come in time (503).
            StoreDownError: the database cannot be used now.
        """
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise RefusalError("studio-too-many-searches", status=503) from None
        try:
            return await run_in_threadpool(partial(self.find_page, **filters))
        finally:
            self._turns.release()

    def find_page(
        self,
        *,
        limit: int,
        before: str | None = None,
        color: str | None = None,
        text: str | None = None,
        has_picture: bool = False,
        order: Order = "newest",
    ) -> list[dict[str, Any]]:
        """Return predictions in an order; optionally those after `before` (an id), with a color, text or picture.

        By error, those come first whose measured shares are furthest from those asked for, and those that were not
        measured are left out. The search ignores case; on PostgreSQL, for the letters that the database's locale
        knows.
        """
        number, error = Prediction.number, Prediction.share_error
        query = _whole().order_by(number.desc()).limit(min(limit, MOST_ON_A_PAGE))
        if order == "error":
            query = query.order_by(None).order_by(error.desc(), number.desc()).where(error.is_not(None))
        with self._database.read() as session:
            if before is not None:
                last = session.execute(select(number, error).where(Prediction.id == before)).first()
                if last is None:
                    return []
                is_later = number < last.number
                if order == "error":
                    is_later = or_(error < last.share_error, and_(error == last.share_error, is_later))
                query = query.where(is_later)
            if color is not None:
                query = query.where(Prediction.shares.any(Share.color == color))
            if has_picture:
                query = query.where(Prediction.output.has(Output.state == "taken"))
            if text:
                is_sqlite = session.get_bind().dialect.name == "sqlite"
                query = _with_text(query, text, is_sqlite=is_sqlite, order=order)
            return [describe(prediction, self._pictures) for prediction in session.scalars(query)]

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

    def delete_gone(self, identity: str) -> bool:
        """Delete a prediction whose picture's file has been removed; return whether there was one."""
        found = self.find(identity)
        if found is None or found["error"] is None or found["error"]["code"] != GONE.code:
            return False
        with self._database.write() as session:
            number = session.scalar(select(Prediction.number).where(Prediction.id == identity))
            for of in (Share.prediction, Output.prediction, Prediction.number):
                session.execute(delete(of.class_).where(of == number))
        return True

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


def describe(prediction: Prediction, pictures: Path) -> dict[str, Any]:
    """Return a prediction as JSON values. `is_done` means that it is final, its picture included.

    A picture whose file is no longer in the folder has no URL, and an error that says so.
    """
    output = prediction.output
    is_taken = output is not None and output.file is not None
    is_gone = output is not None and output.file is not None and not (pictures / output.file).is_file()
    error = output.error if output is not None and output.state == "failed" else None
    shares = {share.color: share.percent for share in prediction.shares}
    is_ended = prediction.completed_at is not None
    progress = None if is_ended else read_progress(prediction.logs)
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
        "progress": None if progress is None else progress._asdict(),
        "metrics": prediction.metrics,
        "error": GONE.describe() if is_gone else prediction.error or error,
        "url": f"/files/{prediction.id}" if is_taken and not is_gone else None,
        "media_type": None if output is None else output.media_type,
        "record": None if output is None or output.record is None else msgspec.json.decode(output.record),
    }


def _with_text(query: Select[Prediction], text: str, *, is_sqlite: bool, order: Order) -> Select[Prediction]:
    if is_sqlite:
        found = query.join(TEXTS, TEXTS.c.rowid == Prediction.number)
        if order == "newest":
            # From the index, newest first, so that it is read no further than a page.
            found = found.order_by(None).order_by(TEXTS.c.rowid.desc())
        return found.where(TEXTS.c.predictions_text.op("MATCH")(_write_match(text)))
    special = str.maketrans({sign: LIKE_ESCAPE + sign for sign in ("%", "_", LIKE_ESCAPE)})
    like = f"%{text.translate(special)}%"
    return query.where(
        or_(
            Prediction.prompt.ilike(like, escape=LIKE_ESCAPE),
            Prediction.sent_prompt.ilike(like, escape=LIKE_ESCAPE),
        )
    )


def _write_match(text: str) -> str | ScalarSelect[str]:
    """Return a text as FTS5 looks it up; for a shorter one, all threes of letters that begin with it."""
    if len(text) >= THREE:
        return '"' + text.replace('"', '""') + '"'
    # As FTS5 folds case: letter by letter.
    first = "".join(min(letter.lower(), letter, key=len) for letter in text)
    quoted = literal('"') + func.replace(LETTERS.c.term, '"', '""') + '"'
    threes = select(func.coalesce(func.group_concat(quoted, " OR "), NOTHING))
    return threes.where(LETTERS.c.term >= first, LETTERS.c.term <= first + LAST_LETTER).scalar_subquery()


def _is_settled(output: Output | None) -> bool:
    return output is not None and output.state != "pending"


def _whole() -> Select[Prediction]:
    return select(Prediction).options(selectinload(Prediction.shares), joinedload(Prediction.output))


def _write_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
