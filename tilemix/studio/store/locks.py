"""Locks that one studio holds: a second one would mistake the first one's running work for leftovers."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import text

from tilemix.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Engine

POSTGRES_KEY = int.from_bytes(b"tilemix")  # of the advisory lock, which is per database


class Lock(Protocol):
    """A lock that is held until it is closed or its process ends, however that ends."""

    def close(self) -> None:
        """Release the lock."""


def lock_file(path: Path, what: str) -> Lock:
    """Lock a file, created if need be; messages call it `what`.

    Raises:
        SettingsError: another process holds the lock, or the file cannot be created.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError("settings-in-use", place=what) from error
        except OSError as error:
            raise SettingsError("settings-unlockable", place=what, reason=str(error.strerror)) from error
        stack.pop_all()
        return file


def lock_database(engine: Engine) -> Lock:
    """Lock a database: by a file beside SQLite's, or by an advisory lock of PostgreSQL.

    PostgreSQL releases the lock with its connection. After a restart of the server, the database is unlocked until the
    studio starts again.

    Raises:
        SettingsError: another studio holds the lock.
        SQLAlchemyError: the database cannot be reached.
    """
    if engine.dialect.name == "sqlite":
        assert engine.url.database is not None
        path = Path(engine.url.database).resolve()  # one lock, whatever link leads to it
        return lock_file(path.with_name(f"{path.name}.lock"), "the database")
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.detach()  # outside the pool: closing it ends the connection and with it the lock
    if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": POSTGRES_KEY}):
        connection.close()
        raise SettingsError("settings-in-use", place="the database")
    return connection
