"""The states of a prediction. It only moves forward, in whatever order reports arrive, and the first end is final.

==========  ======  ==================================================================
status      rank
==========  ======  ==================================================================
queued      0       ours: waiting for a free slot of the back end
starting    1       submitted to the back end
(unknown)   2       any status that a back end may add later; kept as it is
processing  3       the model is drawing
succeeded,  4       the end; Replicate says `aborted` when the deadline passed before the
failed,             prediction started
canceled,
aborted
==========  ======  ==================================================================

Only the queue moves one back: an attempt that was lost with its back end goes from `starting` or `processing` to
`queued`. The next attempt has another id, so late reports of the lost one change nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import DeliveryError, Message, read_metrics
from tilemix.pictures.metrics import find_share_error
from tilemix.studio.store.schema import Output

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.orm import Session

    from tilemix.studio.store.schema import Prediction

QUEUED, STARTING, PROCESSING = "queued", "starting", "processing"
SUCCEEDED, FAILED, CANCELED, ABORTED = "succeeded", "failed", "canceled", "aborted"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELED, ABORTED})
RANKS = {QUEUED: 0, STARTING: 1, PROCESSING: 3} | dict.fromkeys(TERMINAL, 4)
UNKNOWN_RANK = 2

STATUS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
ID = re.compile(r"[0-9a-f]{32}")  # our own; PostgreSQL cannot even look for a text with a NUL
REMOTE_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_LOG_CHARACTERS = 256_000
MAX_ERROR_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a back end says about one prediction, in an answer, a webhook or a look-up."""

    remote_id: str
    status: str
    output: str | None = None  # a URL or a data: URI
    error: str | None = None
    logs: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


class _Body(msgspec.Struct):
    """A prediction as Cog and Replicate write it; other keys are ignored."""

    id: str
    status: str
    output: Any = None
    error: Any = None
    logs: str | None = None
    metrics: dict[str, Any] | None = None


def parse_report(body: bytes) -> Report:
    """Return the report in a JSON prediction object.

    Raises:
        DeliveryError: the body is not a prediction object.
    """
    try:
        parsed = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise DeliveryError("delivery-not-a-prediction", status=400, reason=str(problem)) from problem
    if not REMOTE_ID.fullmatch(parsed.id):
        raise DeliveryError("delivery-bad-prediction-id", status=400, found=parsed.id[:40])
    if not STATUS.fullmatch(parsed.status):
        raise DeliveryError("delivery-bad-status", status=400, found=parsed.status[:40])
    output = (
        parsed.output[0] if isinstance(parsed.output, list) and len(parsed.output) == 1 else parsed.output
    )
    if not isinstance(output, str) or not output.isascii() or "\0" in output:
        output = None
    return Report(
        remote_id=parsed.id,
        status=parsed.status,
        output=output if parsed.status == SUCCEEDED else None,
        error=_clean(parsed.error),
        logs=_clean(parsed.logs, MAX_LOG_CHARACTERS) or "",
        metrics=_clean_json(parsed.metrics or {}),
    )


def rank(status: str) -> int:
    """Return the rank of a status, from 0 (queued) to 4 (ended)."""
    return RANKS.get(status, UNKNOWN_RANK)


def is_terminal(status: str) -> bool:
    """Return whether this status is an end."""
    return status in TERMINAL


def apply_report(session: Session, prediction: Prediction, report: Report, *, now: datetime) -> bool:
    """Apply a report to a prediction that the caller's transaction has locked; return whether it changed.

    Between reports of the same rank, the longer logs win. A success creates an output to be fetched.
    """
    if is_terminal(prediction.status) or rank(report.status) < rank(prediction.status):
        return False
    has_moved = False
    if rank(report.status) > rank(prediction.status):
        prediction.status, has_moved = report.status, True
    if len(report.logs) > len(prediction.logs):
        prediction.logs, has_moved = report.logs, True
    if report.metrics and report.metrics != prediction.metrics:
        prediction.metrics, has_moved = {**prediction.metrics, **report.metrics}, True
    if prediction.started_at is None and rank(report.status) >= RANKS[PROCESSING]:
        prediction.started_at = now
    if is_terminal(report.status):
        _end(session, prediction, report, now)
    return has_moved


def finish(prediction: Prediction, status: str, *, error: Message | None, now: datetime) -> None:
    """End a prediction on our side; one that has ended already stays as it is."""
    if not is_terminal(prediction.status):
        prediction.status, prediction.completed_at = status, now
        prediction.error = None if error is None else error.describe()


def _end(session: Session, prediction: Prediction, report: Report, now: datetime) -> None:
    prediction.completed_at = now
    if report.error is not None:
        error = read_metrics(report.metrics) or Message("prediction-failed", {"reason": report.error})
        prediction.error = error.describe()
    if report.status != SUCCEEDED:
        return
    asked = {share.color: share.percent for share in prediction.shares}
    prediction.share_error = find_share_error(asked, prediction.metrics)
    output = Output(prediction=prediction.number, created_at=now, attempts=0)
    if report.output is None:
        output.state, output.error = "failed", Message("output-missing", {}).describe()
    else:
        output.state, output.source = "pending", report.output
    session.add(output)


def _clean(value: object, most: int = MAX_ERROR_CHARACTERS) -> str | None:
    """Return text that every database accepts: no NUL, no lone surrogates, a bounded length."""
    if value is None:
        return None
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text[:most].replace("\0", "�").encode(errors="replace").decode()


def _clean_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers, booleans and texts of a mapping."""
    kept: Iterable[tuple[str, Any]] = (
        (name, _clean(value) if isinstance(value, str) else value)
        for name, value in values.items()
        if isinstance(value, str | int | float | bool)
    )
    return {_clean(name, 128) or "": value for name, value in list(kept)[:256]}
