"""What a catalogue has drawn, in OUT/ledger.sqlite3: one row for each picture, and which row of the list has which.

The results, the summary and the page are written from it. A picture's row is committed after its file is on the disk.
Only one process at a time may have it open.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tilemix.errors import TilemixError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tilemix.errors import Message

VERSION = 1
DONE, FAILED = "done", "failed"
COMMIT_SECONDS = 0.1  # between two commits; pictures drawn faster than that share one
TABLES = """
CREATE TABLE pictures (id TEXT PRIMARY KEY, status TEXT NOT NULL, path TEXT, sha256 TEXT, facts BLOB NOT NULL);
CREATE TABLE listing (number INTEGER PRIMARY KEY, id TEXT, fault BLOB);
CREATE INDEX listing_id ON listing (id);
CREATE TABLE deaths (id TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""


class Entry(NamedTuple):
    """A picture that was drawn, or could not be."""

    status: str  # done or failed
    path: str | None  # below OUT
    sha256: str | None


class Ledger:
    """The open ledger of a catalogue.

    Raises:
        TilemixError: another process has it open, it is not a ledger of this version, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._committed_at = time.monotonic()
        with self._refusals():
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def _open(self) -> None:
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = TRUNCATE")
        run("PRAGMA synchronous = FULL")
        run("BEGIN IMMEDIATE")
        (found,) = run("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in filter(str.strip, TABLES.split(";")):
                run(statement)
            run(f"PRAGMA user_version = {VERSION}")
        elif found != VERSION:
            raise TilemixError(
                "catalogue-ledger-version", file=str(self._path), found=found, expected=VERSION
            )

    def close(self) -> None:
        """Commit and close."""
        with self._refusals():
            try:
                if self._database.in_transaction:
                    self._database.execute("COMMIT")
            finally:
                self._database.close()

    def commit(self) -> None:
        """Put on the disk what was recorded so far."""
        with self._refusals():
            if self._database.in_transaction:  # not after a full disk, which rolls back
                self._database.execute("COMMIT")
            self._database.execute("BEGIN")
        self._committed_at = time.monotonic()

    def begin_listing(self) -> None:
        """Forget which rows the list had."""
        self._run("DELETE FROM listing")

    def list_row(self, number: int, identity: str) -> bool:
        """Note a row's picture; return whether no row before has the same."""
        is_new = self._run("SELECT 1 FROM listing WHERE id = ? LIMIT 1", identity).fetchone() is None
        self._run("INSERT INTO listing VALUES (?, ?, NULL)", number, identity)
        return is_new

    def list_fault(self, number: int, prompt: str, fault: Message) -> None:
        """Note that a row cannot be drawn."""
        facts = msgspec.json.encode({"error": fault.describe(), "prompt": prompt})
        self._run("INSERT INTO listing VALUES (?, NULL, ?)", number, facts)

    def find(self, identity: str) -> Entry | None:
        """Return what is recorded of a picture."""
        found = self._run("SELECT status, path, sha256 FROM pictures WHERE id = ?", identity).fetchone()
        return None if found is None else Entry(*found)

    def record(self, identity: str, entry: Entry, facts: dict[str, Any]) -> None:
        """Record a picture in place of what was recorded before; commit if the last time is long ago."""
        row = (identity, *entry, msgspec.json.encode(facts))
        self._run("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", *row)
        if entry.status == DONE:
            self._run("DELETE FROM deaths WHERE id = ?", identity)
        if time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self.commit()

    def add_death(self, identity: str) -> int:
        """Note that a worker died of this picture; return how often that has happened."""
        self._run(
            "INSERT INTO deaths VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET count = count + 1", identity
        )
        self.commit()
        return self.count_deaths(identity)

    def count_deaths(self, identity: str) -> int:
        """Return how many workers died of this picture."""
        found = self._run("SELECT count FROM deaths WHERE id = ?", identity).fetchone()
        return int(found[0]) if found else 0

    def forget_deaths(self) -> None:
        """Let every picture be tried again."""
        self._run("DELETE FROM deaths")

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of every row reached so far, in the list's order; rows still to be drawn are left out."""
        query = """
            SELECT number, listing.id, fault, status, path, sha256, facts
            FROM listing LEFT JOIN pictures ON pictures.id = listing.id ORDER BY number
        """
        with self._refusals():
            for number, identity, fault, status, path, sha256, facts in self._database.execute(query):
                if fault is not None:
                    yield {"row": number, "id": None, "status": FAILED} | msgspec.json.decode(fault)
                elif status is not None:
                    known = {"row": number, "id": identity, "status": status, "error": None}
                    yield known | {"path": path, "sha256": sha256} | msgspec.json.decode(facts)

    def _run(self, statement: str, *values: str | int | bytes | None) -> sqlite3.Cursor:
        with self._refusals():
            return self._database.execute(statement, values)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise TilemixError("catalogue-in-use", folder=str(self._path.parent)) from error
            raise TilemixError("file-unwritable", file=str(self._path), reason=str(error)) from error
        except sqlite3.DatabaseError as error:
            raise TilemixError("file-unwritable", file=str(self._path), reason=str(error)) from error
