"""What one studio holds for itself: a second one would take the first one's running work for left over."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import text

from tilemix.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Engine

POSTGRES_KEY = int.from_bytes(b"tilemix")  # of the advisory lock; PostgreSQL keeps them per database


class Lock(Protocol):
    """What is held until it is closed, or until its process ends, whatever ends it."""

    def close(self) -> None:
        """Let go."""


def lock_file(path: Path, what: str) -> Lock:
    """Hold a file, made if need be; `what` names in messages what it stands for.

    Raises:
        SettingsError: another process holds it, or it cannot be made.
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
    """Hold a database: by a file beside SQLite's, or by an advisory lock of PostgreSQL.

    PostgreSQL lets go when it loses the connection, so a server that is restarted frees the database until the
    studio is started again.

    Raises:
        SettingsError: another studio holds it.
        SQLAlchemyError: the database cannot be reached.
    """
    if engine.dialect.name == "sqlite":
        assert engine.url.database is not None
        path = Path(engine.url.database).resolve()  # one lock, whatever links lead to it
        return lock_file(path.with_name(f"{path.name}.lock"), "the database")
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.detach()  # not of the pool: closing it ends it, and the lock with it
    if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": POSTGRES_KEY}):
        connection.close()
        raise SettingsError("settings-in-use", place="the database")
    return connection
