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
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
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
BUSY_SECONDS = 10  # how long SQLite waits for another process's write
CONNECTIONS = 16
MIGRATIONS = Path(__file__).parent / "migrations"


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class Database:
    """Sessions on an engine: `read()` only reads, `write()` is one transaction that is committed or rolled back."""

    def __init__(self, engine: Engine, lock: Lock | None = None) -> None:
        self.engine = engine
        self._lock = lock
        self._writing = engine.execution_options(is_writing=True)
        # SQLite has one writer at a time anyway, and while it waits it sleeps up to 100 ms between tries. With our
        # lock, the next writer starts at once.
        is_sqlite = engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite else contextlib.nullcontext()

    @classmethod
    def open(cls, url: Secret, *, is_shared: bool = True) -> Self:
        """Connect, create or migrate the tables, and return the database.

        If it is not shared, this process locks it until it is closed.

        Raises:
            SettingsError: the URL is unusable, or the database is unreachable, locked or of a later version.
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
                # Only the first line: neither the statement nor the URL, which may contain a password.
                reason = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
                raise SettingsError("settings-database-unreachable", reason=reason) from error
            undo.pop_all()
        return cls(engine, lock)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """Give a read-only session with one consistent view of the database."""
        with Session(self.engine) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session in a transaction: committed at the end, rolled back on any exception."""
        with self._turn, Session(self._writing) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections and release the lock."""
        self.engine.dispose()
        if self._lock is not None:
            self._lock.close()


def update_tables(connection: Connection) -> None:
    """Migrate the tables to this code's version, inside the connection's transaction."""
    config = Config()
    # The configuration treats % as an escape.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _make_engine(secret: Secret) -> Engine:
    try:
        return _read_engine(make_url(secret.reveal()))
    except (ArgumentError, ValueError):  # ValueError: a port or an option that is not a number
        raise SettingsError("settings-database-bad-url") from None


def _read_engine(url: URL) -> Engine:
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
        json_serializer=lambda value: msgspec.json.encode(value).decode(),  # infinity is written as null
    )
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: SqliteConnection, _record: object) -> None:
    connection.isolation_level = None  # the driver starts no transaction by itself
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")
    # SQLite's own lower() knows ASCII only: a search for "мокрый" would not find "Мокрый".
    connection.create_function("lower", 1, _lower, deterministic=True)


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes fails if another one wrote in between.
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
