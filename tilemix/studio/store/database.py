"""The studio's database: SQLite beside the pictures, or PostgreSQL by its URL; brought up to date when opened.

What is committed is on the disk: SQLite runs with a write-ahead log and synchronous=FULL, PostgreSQL as its
server is set (synchronous_commit is on by default).
"""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from tilemix.errors import SettingsError
from tilemix.studio.store.locks import lock_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from sqlite3 import Connection as SqliteConnection

    from tilemix.studio.settings import Secret
    from tilemix.studio.store.locks import Lock

DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
BUSY_SECONDS = 10  # that SQLite waits for another process's write
CONNECTIONS = 16
MIGRATIONS = Path(__file__).parent / "migrations"


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Database:
    """Sessions on an engine: `read()` for looking, `write()` for one transaction that is committed or undone."""

    def __init__(self, engine: Engine, lock: Lock | None = None) -> None:
        self.engine = engine
        self._lock = lock
        self._writing = engine.execution_options(is_writing=True)
        # One writer at a time is what SQLite has anyway. Waiting here takes turns at once, where its own
        # waiting sleeps up to 100 ms between two tries.
        is_sqlite = engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite else contextlib.nullcontext()

    @classmethod
    def open(cls, url: Secret, *, is_shared: bool = True) -> Self:
        """Connect, make or update the tables, and return the database.

        One that is not shared is held for this process alone until it is closed.

        Raises:
            SettingsError: the URL is none, the database cannot be reached, is of a later version, or is held.
        """
        with contextlib.ExitStack() as undo:
            engine = _make_engine(url)
            undo.callback(engine.dispose)
            try:
                lock = None if is_shared else undo.enter_context(contextlib.closing(lock_database(engine)))
                with engine.begin() as connection:
                    update_tables(connection)
            except CommandError as error:
                raise SettingsError("settings-database-of-another-version", reason=str(error)) from error
            except SQLAlchemyError as error:
                # The driver's first line, without the statement and without the URL, which may hold a password.
                reason = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
                raise SettingsError("settings-database-unreachable", reason=reason) from error
            undo.pop_all()
        return cls(engine, lock)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session that sees one state of the database and writes nothing."""
        with Session(self.engine) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session in a transaction: committed at the end, undone on any exception."""
        with self._turn, Session(self._writing) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections, and let go of what is held."""
        self.engine.dispose()
        if self._lock is not None:
            self._lock.close()


def update_tables(connection: Connection) -> None:
    """Bring the tables to the version of this code, inside the connection's transaction."""
    config = Config()
    # A percent sign is how the configuration's own notation begins.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _make_engine(secret: Secret) -> Engine:
    try:
        url = make_url(secret.reveal())
    except ArgumentError:
        raise SettingsError("settings-database-bad-url") from None
    kind = url.drivername.partition("+")[0]
    if kind not in DRIVERS:
        raise SettingsError("settings-unknown-database", typed=kind[:40], known="sqlite, postgresql")
    if kind == "sqlite" and url.database in (None, "", ":memory:"):
        raise SettingsError("settings-database-without-file")
    engine = create_engine(
        url.set(drivername=DRIVERS[kind]),
        pool_size=CONNECTIONS,
        max_overflow=CONNECTIONS,
        pool_pre_ping=kind != "sqlite",  # a PostgreSQL server may have been restarted
        connect_args={"timeout": BUSY_SECONDS} if kind == "sqlite" else {"connect_timeout": BUSY_SECONDS},
        json_serializer=lambda value: msgspec.json.encode(value).decode(),  # infinity becomes null
    )
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: SqliteConnection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")
    # SQLite's own knows the letters of English only: who looks for "мокрый" would not find "Мокрый".
    connection.create_function("lower", 1, _lower, deterministic=True)


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later may find that another wrote in between, and fail.
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
