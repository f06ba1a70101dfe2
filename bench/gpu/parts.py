"""The parts of a run on a GPU: one after the other while the time lasts, each written down when it is done.

A part that fails, or for which no time is left, does not cost the others. `gpu.json` in the output folder is
replaced whole after each step, so it always says how far the run came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from bench.figures import FAILURES, Row
from tilemix.system.atomic import write_atomically

logger = logging.getLogger(__name__)

REPORT_FILE = "gpu.json"
Status = Literal["waiting", "running", "done", "failed", "skipped", "cut off"]


class GpuRunError(Exception):
    """A run on a GPU cannot begin, or cannot be kept."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something to check or to measure."""

    name: str
    estimate: float  # seconds at the real size; with less time left it is skipped
    run: Callable[[], Sequence[Row]]


class PartResult(msgspec.Struct, frozen=True):
    """How a part ended."""

    name: str
    status: Status = "waiting"
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    reason: str | None = None  # why it failed, was skipped or cut off


class GpuReport(msgspec.Struct, frozen=True):
    """One run, as far as it came."""

    machine: Mapping[str, str]  # card, driver and versions, by their names
    parts: tuple[PartResult, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all parts."""
        return tuple(row for part in self.parts for row in part.rows)

    @property
    def has_failed(self) -> bool:
        """Whether a part failed or a gate is broken. What there was no time for is no failure."""
        return any(part.status == "failed" for part in self.parts) or any(
            row.verdict in FAILURES for row in self.rows
        )

    def with_part(self, result: PartResult) -> GpuReport:
        """Return this report with a part's new state."""
        parts = tuple(result if part.name == result.name else part for part in self.parts)
        return GpuReport(self.machine, parts)


def read_report(path: Path) -> GpuReport:
    """Read what `write_report` wrote.

    Raises:
        GpuRunError: it is not there, or not a report.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=GpuReport)
    except (OSError, msgspec.DecodeError) as error:
        raise GpuRunError(f"{path}: not a report of a GPU run: {error}") from error


def write_report(report: GpuReport, folder: Path) -> None:
    """Write the report into a folder, whole or not at all.

    Raises:
        GpuRunError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
        write_atomically(folder / REPORT_FILE, data)
    except OSError as error:
        raise GpuRunError(f"{folder}: cannot be written: {error.strerror}") from error


def run_parts(
    parts: Mapping[str, Part],
    report: GpuReport,
    *,
    until: float,
    clock: Callable[[], float],
    save: Callable[[GpuReport], object],
    is_sound: Callable[[], bool] = lambda: True,
) -> GpuReport:
    """Run the parts that the report still has waiting; return the report.

    Args:
        parts: by their names.
        report: what came before.
        until: when the time is over, on `clock`.
        clock: a monotonic clock, in seconds.
        save: takes the report after each step.
        is_sound: asked after a part that failed; False ends the run, the rest stays waiting.
    """
    for name in [part.name for part in report.parts if part.status == "waiting"]:
        part, began = parts[name], clock()
        if began + part.estimate > until:
            reason = f"needs about {part.estimate:.0f} s, {max(0.0, until - began):.0f} s were left"
            report = report.with_part(PartResult(name, "skipped", reason=reason))
            save(report)
            continue
        report = report.with_part(PartResult(name, "running"))
        save(report)
        logger.info("part %s", name)
        try:
            result = PartResult(name, "done", tuple(part.run()))
        except Exception as error:
            logger.exception("part %s", name)
            result = PartResult(name, "failed", reason=describe(error))
        result = msgspec.structs.replace(result, seconds=round(clock() - began, 1))
        report = report.with_part(result)
        save(report)
        if result.status == "failed" and not is_sound():
            break
    return report


def describe(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
