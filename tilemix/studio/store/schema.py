"""The studio's tables.

`predictions` holds each request and its state, and is the queue. `shares` holds the mix, for the gallery's search by
color; `outputs` the picture; `deliveries` every webhook that arrived; `logins` the sessions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import msgspec
from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tilemix.studio.settings import BackendName

OutputState = Literal["pending", "taken", "failed"]  # to be fetched, on the disk, given up
# Not read yet; changed its prediction; said nothing new; its prediction is unknown; not a report.
DeliveryState = Literal["pending", "applied", "ignored", "unmatched", "unreadable"]


class UtcTime(TypeDecorator[datetime]):
    """A moment with its time zone; in SQLite, which has no time zones, it is stored in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC; one without a time zone is refused."""
        if value is None:
            return None
        assert value.tzinfo is not None, "a moment without its time zone"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  SQLAlchemy's interface
        """Return the moment in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ErrorData(TypeDecorator[dict[str, Any]]):
    """An error as `tilemix.errors.Message.describe` gives it, in JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> str | None:  # noqa: ARG002  SQLAlchemy's interface
        """Return the JSON."""
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> dict[str, Any] | None:  # noqa: ARG002  SQLAlchemy's interface
        """Return what the JSON says."""
        return None if value is None else msgspec.json.decode(value, type=dict[str, Any])


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar = {datetime: UtcTime, dict[str, Any]: JSON, list[Any]: JSON}


class Prediction(Base):
    """One prediction: the request, its state and its result."""

    __tablename__ = "predictions"
    __table_args__ = (
        UniqueConstraint("backend", "remote_id", name="predictions_remote_id"),
        Index("predictions_status", "status"),
        Index("predictions_share_error", "share_error", "number"),
    )

    number: Mapped[int] = mapped_column(primary_key=True)  # in the order of the requests
    id: Mapped[str] = mapped_column(String(32), unique=True)  # the public id, 32 hex digits
    backend: Mapped[BackendName] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(64))  # see tilemix.studio.predictions
    prompt: Mapped[str] = mapped_column(Text)  # as typed
    sent_prompt: Mapped[str] = mapped_column(Text)  # as sent to the model
    mix: Mapped[
        dict[str, Any] | None
    ]  # color as read -> percent; None: older than palettes, `shares` have it
    notes: Mapped[
        list[Any] | None
    ]  # what is sent differently from what was typed, as `Message.describe` gives it
    inputs: Mapped[dict[str, Any]]  # the inputs of predict() that were given, and always the seed
    created_at: Mapped[datetime]
    seconds_left: Mapped[float] = mapped_column(
        Float
    )  # of drawing, before it is given up; waiting does not count
    cancel_requested_at: Mapped[datetime | None]

    runner: Mapped[str | None] = mapped_column(String(32))  # the studio process that submitted it
    attempts: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)  # attempts during which the back end was lost
    remote_id: Mapped[str | None] = mapped_column(String(128))  # the back end's id of the latest attempt
    submitted_at: Mapped[datetime | None]  # of the latest attempt

    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    logs: Mapped[str] = mapped_column(Text, default="")
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # Points: how far the measured shares are from those asked for; None: not measured.
    share_error: Mapped[float | None] = mapped_column(Float)
    error: Mapped[dict[str, Any] | None] = mapped_column(ErrorData)

    shares: Mapped[list[Share]] = relationship(order_by="Share.place")
    output: Mapped[Output | None] = relationship()


class Share(Base):
    """One color of a prediction's mix, in the words of the model's palette."""

    __tablename__ = "shares"
    __table_args__ = (Index("shares_color", "color"),)

    prediction: Mapped[int] = mapped_column(ForeignKey("predictions.number"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)  # in the order typed, from 0
    color: Mapped[str] = mapped_column(String(2000))
    percent: Mapped[float] = mapped_column(Float)


class Output(Base):
    """The picture of a successful prediction: first its source, then its file."""

    __tablename__ = "outputs"
    __table_args__ = (Index("outputs_state", "state"),)

    prediction: Mapped[int] = mapped_column(ForeignKey("predictions.number"), primary_key=True)
    state: Mapped[OutputState] = mapped_column(String(16))
    source: Mapped[str | None] = mapped_column(Text)  # a URL or a data: URI; None once fetched
    created_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None] = mapped_column(ErrorData)

    taken_at: Mapped[datetime | None]
    file: Mapped[str | None] = mapped_column(String(64), unique=True)  # a name in the folder of pictures
    media_type: Mapped[str | None] = mapped_column(String(32))
    size: Mapped[int | None]  # bytes
    sha256: Mapped[str | None] = mapped_column(String(64))
    width: Mapped[int | None]  # pixels
    height: Mapped[int | None]
    record: Mapped[str | None] = mapped_column(
        Text
    )  # JSON, see tilemix.pictures.record; None: the file has none


class Delivery(Base):
    """One webhook as it arrived; repetitions share the row."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("source", "delivery_id", name="deliveries_delivery_id"),
        Index("deliveries_state", "state"),
        Index("deliveries_received_at", "received_at"),
    )

    number: Mapped[int] = mapped_column(primary_key=True)  # the order of arrival
    source: Mapped[BackendName] = mapped_column(String(16))  # whose endpoint accepted it
    delivery_id: Mapped[str] = mapped_column(String(128))  # webhook-id; for cog the body's sha256
    prediction_id: Mapped[str | None] = mapped_column(String(32))  # our id, from the webhook's URL
    received_at: Mapped[datetime]
    sha256: Mapped[str] = mapped_column(String(64))  # of the body
    body: Mapped[bytes | None] = mapped_column(LargeBinary)  # raw; None after the purge
    repetitions: Mapped[int] = mapped_column(default=0)
    conflicts: Mapped[int] = mapped_column(default=0)  # repetitions with a different body
    state: Mapped[DeliveryState] = mapped_column(String(16))
    remote_id: Mapped[str | None] = mapped_column(String(128))  # read from the body
    error: Mapped[str | None] = mapped_column(Text)  # why it is unreadable


class Login(Base):
    """One session of a person who typed the token."""

    __tablename__ = "logins"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)  # see tilemix.studio.sessions
    begun_at: Mapped[datetime]
