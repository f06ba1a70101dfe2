"""The folder that a catalogue is drawn into.

OUT/pictures/ab/ab12....png      the pictures, named by their ids
OUT/thumbnails/ab/ab12....webp
OUT/ledger.sqlite3               what has been drawn
OUT/results.jsonl, summary.json, index.html, index/    written from the ledger when a run ends
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tilemix.catalogue.ledger import DONE, Entry, Ledger
from tilemix.errors import TilemixError
from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.catalogue.worker import Drawn, Plan

PICTURES, THUMBNAILS = "pictures", "thumbnails"
SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg"}
PREFIX_DIGITS = 2  # of an id, name the folder: 256 of them
DRAWING = ".drawing"


class Folder:
    """A catalogue's folder and its open ledger.

    Raises:
        TilemixError: it cannot be made or written to, or another process draws into it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for name in (PICTURES, THUMBNAILS):
                for number in range(16**PREFIX_DIGITS):
                    (path / name / f"{number:0{PREFIX_DIGITS}x}").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise TilemixError("file-not-a-folder", file=str(path)) from error
        except OSError as error:
            raise TilemixError("file-unwritable", file=str(path), reason=str(error.strerror)) from error
        self.ledger = Ledger(path / "ledger.sqlite3")
        self._drawing = path / DRAWING
        self._beside = ThreadPoolExecutor(
            1
        )  # writes thumbnails: two files synced at once cost hardly more than one

    def close(self) -> None:
        """Commit and close the ledger."""
        self._beside.shutdown()
        self.ledger.close()

    def sweep(self) -> None:
        """Remove the unfinished files of a run that was killed."""
        for begun in self.path.glob(f"*/{'?' * PREFIX_DIGITS}/.*.tmp"):
            begun.unlink()

    def keep(self, plan: Plan, drawn: Drawn) -> Entry:
        """Write a picture, synced and renamed, and its thumbnail; return what to record of it.

        Raises:
            TilemixError: the disk refuses, for example because it is full.
        """
        name = f"{plan.id[:PREFIX_DIGITS]}/{plan.id}"
        picture = f"{PICTURES}/{name}.{SUFFIXES[plan.request.output_format]}"
        try:
            thumbnail = self.path / THUMBNAILS / f"{name}.webp"
            beside = self._beside.submit(write_atomically, thumbnail, drawn.thumbnail)
            try:
                write_atomically(self.path / picture, drawn.data)
            finally:
                beside.result()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return Entry(DONE, picture, hashlib.sha256(drawn.data).hexdigest())

    def holds(self, entry: Entry) -> bool:
        """Return whether the file of a picture is there with the bytes that were recorded."""
        if entry.path is None:
            return False
        try:
            data = (self.path / entry.path).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == entry.sha256

    def begin_drawing(self, identity: str) -> None:
        """Note what this process is drawing; the next run learns from it what killed this one.

        Raises:
            TilemixError: the disk refuses.
        """
        try:
            self._drawing.write_text(identity)  # not synced: a process may die, the machine does not
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def end_drawing(self) -> str | None:
        """Forget what was being drawn and return it; None: nothing was."""
        try:
            identity = self._drawing.read_text()
            self._drawing.unlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return identity or None


def _unwritable(path: Path, error: OSError) -> TilemixError:
    return TilemixError("catalogue-folder-unwritable", folder=str(path), reason=str(error.strerror))
