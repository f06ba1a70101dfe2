"""The studio's database: SQLite beside the pictures, or PostgreSQL by its URL; brought up to date when opened.

What is committed is on the disk: SQLite runs with a write-ahead log and synchronous=FULL, PostgreSQL as its
server is set (synchronous_commit is on by default).

A database that is locked, full or away is told within a few seconds, as a `StoreDownError`. Nothing was committed
then, or it cannot be known; whoever wrote tries again or tells the sender to.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import Session

from tilemix.errors import SettingsError, StoreDownError
from tilemix.studio.store.locks import lock_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection as SqliteConnection

    from tilemix.studio.settings import Secret
    from tilemix.studio.store.locks import Lock

DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
# How long one waits for another write, for SQLite's lock, and for a PostgreSQL server to answer. Two waits after one
# another stay below the 5 seconds after which a sender of webhooks must have its answer.
BUSY_SECONDS = 2
STATEMENT_MILLISECONDS = 4000  # of PostgreSQL, which may wait for a lock
CONNECTIONS = 16  # kept open
MORE_CONNECTIONS = 32  # opened when those are in use: more than there are threads that serve requests
POSTGRESQL_OPTIONS = {
    "connect_timeout": BUSY_SECONDS,
    "options": f"-c statement_timeout={STATEMENT_MILLISECONDS}",
    # A server that is cut off is given up after about as long.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 5000,
}
PASSING = (OperationalError, InterfaceError, InternalError, NoConnectionError)
FULL = ("SQLITE_FULL", "53100", "53200")  # SQLite's name, PostgreSQL's codes: disk full, out of memory
LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED", "57014", "55P03", "40P01")
MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Sessions on an engine: `read()` only reads, `write()` is one transaction that is committed or rolled back."""

    def __init__(self, engine: Engine, lock: Lock | None = None) -> None:
        self.engine = engine
        self._lock = lock
        self._writing = engine.execution_options(is_writing=True)
        # SQLite has one writer at a time anyway, and while it waits it sleeps up to 100 ms between tries. With our
        # lock, the next writer starts at once.
        is_sqlite = engine.dialect.name == "sqlite"
        self._turn = threading.Lock() if is_sqlite else None
        self._fault: StoreDownError | None = None

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
                raise SettingsError("settings-database-unreachable", reason=_first_line(error)) from error
            undo.pop_all()
        return cls(engine, lock)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """Give a read-only session with one consistent view of the database.

        Raises:
            StoreDownError: the database cannot be used now.
        """
        with self._tell(), Session(self.engine) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session in a transaction: committed at the end, rolled back on any exception.

        Raises:
            StoreDownError: the database cannot be used now. If the connection was lost while it committed, nobody knows
                whether it did.
        """
        with self._tell(), self._take_turn(), Session(self._writing) as session, session.begin():
            yield session
        self._fault = None

    def find_fault(self) -> StoreDownError | None:
        """Return why the last use failed; if it did, begin a transaction first, to see whether that still holds."""
        if self._fault is not None:
            with contextlib.suppress(StoreDownError), self.write() as session:
                session.connection()
        return self._fault

    @contextlib.contextmanager
    def _tell(self) -> Iterator[None]:
        try:
            yield
        except StoreDownError as error:
            self._fault = error
            raise
        except (DBAPIError, NoConnectionError) as error:
            if not isinstance(error, PASSING) and not getattr(error, "connection_invalidated", False):
                raise
            self._fault = StoreDownError(_name_fault(error))
            raise self._fault from error

    @contextlib.contextmanager
    def _take_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise StoreDownError("studio-database-locked")
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close all connections and release the lock."""
        self.engine.dispose()
        if self._lock is not None:
            self._lock.close()


def try_database(url: Secret) -> None:
    """Connect and change nothing; an SQLite file that is not there yet will be made at the start.

    Raises:
        SettingsError: the URL is unusable, or the database cannot be reached.
    """
    engine = _make_engine(url)
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return
    try:
        with engine.connect():
            pass
    except SQLAlchemyError as error:
        raise SettingsError("settings-database-unreachable", reason=_first_line(error)) from error
    finally:
        engine.dispose()


def _first_line(error: SQLAlchemyError) -> str:
    """Return neither the statement nor the URL, which may contain a password."""
    return str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]


def update_tables(connection: Connection) -> None:
    """Migrate the tables to this code's version, inside the connection's transaction, however long it takes."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
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
        max_overflow=MORE_CONNECTIONS,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=kind != "sqlite",  # a PostgreSQL server may have been restarted
        connect_args={"timeout": BUSY_SECONDS} if kind == "sqlite" else POSTGRESQL_OPTIONS,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),  # infinity is written as null
    )
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _name_fault(error: Exception) -> str:
    """Return the code that says what is wrong with the database; never the error's text, which may hold a path."""
    original = getattr(error, "orig", None)
    sign = str(getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None) or "")
    if sign.startswith(LOCKED):
        return "studio-database-locked"
    return "studio-database-full" if sign.startswith(FULL) else "studio-database-away"


def _prepare_sqlite(connection: SqliteConnection, _record: object) -> None:
    connection.isolation_level = None  # the driver starts no transaction by itself
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes fails if another one wrote in between.
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
