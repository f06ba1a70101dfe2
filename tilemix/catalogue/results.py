"""What a run leaves for people and programs: results.jsonl, summary.json and the contact sheet, index.html.

All three are written from the ledger, row by row, and appear complete or not at all.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import IO, TYPE_CHECKING, Any

import msgspec

from tilemix.catalogue.ledger import DONE
from tilemix.errors import TilemixError
from tilemix.system.atomic import open_atomically, write_atomically

if TYPE_CHECKING:
    from tilemix.catalogue.folder import Folder
    from tilemix.catalogue.progress import Progress
    from tilemix.pictures.record import Record

PAGE_FILE = Path(__file__).parent / "page.html"
PAGE_DATA = '"DATA"'  # stands in the page for its data
ROWS_IN_A_FILE = 5000  # of the page
WORST = 10
COMMON = (
    "model",
    "files",
    "versions",
    "device",
    "dtype",
    "speed",
    "compiled",
    "threads",
    "scheduler",
    "scheduler_config",
)


def write_results(folder: Folder, progress: Progress, common: Record | None) -> dict[str, Any]:
    """Write the results of all rows reached so far; return the summary.

    Args:
        folder: what was drawn into.
        progress: of this run.
        common: what all its pictures have in common; None: no worker was ready.

    Raises:
        TilemixError: the disk refuses.
    """
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    worst: list[tuple[float, int, str]] = []
    page = _PageRows(folder.path / "index")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open_atomically(folder.path / "results.jsonl"))
            stack.enter_context(page)
            for row in folder.ledger.results():
                file.write(msgspec.json.encode(row) + b"\n")
                page.add(row)
                counts[row["status"]] += 1
                if row["error"] is not None:
                    faults[row["error"]["code"]] += 1
                error = color_error(row)
                if error is not None and all(row["id"] != identity for _, _, identity in worst):
                    heapq.heappush(worst, (error, row["row"], row["id"]))
                    if len(worst) > WORST:
                        heapq.heappop(worst)
        summary = {
            "rows": progress.total,
            "done": counts[DONE],
            "failed": counts.total() - counts[DONE],
            "open": progress.total - counts.total(),
            "drawn_now": progress.drawn,
            "seconds_now": round(progress.seconds, 1),
            "faults": dict(faults.most_common()),
            "worst_color_errors": [
                {"row": number, "id": identity, "color_error": error}
                for error, number, identity in sorted(worst, reverse=True)
            ],
            "common": None if common is None else {name: getattr(common, name) for name in COMMON},
        }
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        write_atomically(folder.path / "summary.json", text + b"\n")
        data = {"files": page.names, "rows": progress.total, "open": summary["open"]}
        sheet = PAGE_FILE.read_text("utf-8").replace(PAGE_DATA, json.dumps(data), 1)
        write_atomically(folder.path / "index.html", sheet.encode())
    except OSError as error:
        reason = str(error.strerror)
        raise TilemixError("catalogue-folder-unwritable", folder=str(folder.path), reason=reason) from error
    return summary


def color_error(row: dict[str, Any]) -> float | None:
    """Return the mean delta E 2000 of a row's colors; None: nothing was measured."""
    errors = row.get("color_errors")
    return round(fmean(errors.values()), 2) if errors else None


def share_error(row: dict[str, Any]) -> float | None:
    """Return how far the measured shares are from those asked for, in points, in the mean; None: not measured."""
    measured = row.get("measured")
    if not measured:
        return None
    return round(fmean(abs(percent - row["asked"][color]) for color, percent in measured.items()), 2)


class _PageRows:
    """The rows of the page, in scripts of some thousand each, because a page on a disk may load nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None
        self._count = 0
        self.names: list[str] = []

    def __enter__(self) -> _PageRows:
        self._folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *trace: object) -> None:
        self._end_file()
        for earlier in self._folder.glob("*.js"):
            if f"index/{earlier.name}" not in self.names:
                earlier.unlink()

    def add(self, row: dict[str, Any]) -> None:
        """Add one row of the results."""
        if self._file is None or self._count % ROWS_IN_A_FILE == 0:
            self._end_file()
            name = f"{len(self.names):04}.js"
            self.names.append(f"index/{name}")
            self._file = self._stack.enter_context(open_atomically(self._folder / name))
            self._file.write(b"addRows([\n")
        self._count += 1
        shown = [
            row["row"],
            row["id"],
            row.get("path"),
            row.get("prompt", ""),
            row.get("asked", {}),
            row.get("measured"),
            color_error(row),
            share_error(row),
            None if row["error"] is None else row["error"]["message"],
        ]
        self._file.write(msgspec.json.encode(shown) + b",\n")

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.write(b"]);\n")
            self._file = None
            self._stack.close()
