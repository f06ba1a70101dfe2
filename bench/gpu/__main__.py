"""Check and measure on a GPU, in the time there is.

    python -m bench.gpu --minutes 9 --out OUT            # all parts that fit; writes OUT/gpu.json after each
    python -m bench.gpu --minutes 9 --out OUT --parts lora,whole
    python -m bench.gpu --minutes 1 --out OUT --tiny     # the same code at a tiny size, on a CPU too
    python -m bench.gpu --write OUT/gpu.json             # puts a run into bench/REPORT.md

Exit status: 0; 1 when a part failed, a gate is broken or OUT cannot be written. What there was no time for is named
and is no failure. A process of its own runs the parts: when the time is over it is killed, and when it dies, another
one goes on with the rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.gpu.parts import REPORT_FILE, GpuReport, GpuRunError, PartResult, read_report, write_report
from bench.gpu.plan import ESTIMATES
from bench.gpu.table import render_lines
from tilemix.system.project import ROOT

MARGIN = 5.0  # seconds at the end, for ending and telling
LOG_FILE = "gpu.log"
LOG_BYTES = 2000  # of its end, in which the reason of a death is looked for

Command = Callable[[float, Path], Sequence[str]]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 a folder in memory
MODEL_BYTES = 8 * 2**30  # of the packaged model in its real size


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="default: 9")
    parser.add_argument("--out", type=Path, metavar="OUT", help="the folder of gpu.json and gpu.log")
    parser.add_argument("--parts", metavar="NAMES", help=f"with commas between: {','.join(ESTIMATES)}")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put this run into bench/REPORT.md")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60 * options.minutes
    names = options.parts.split(",") if options.parts else list(ESTIMATES)
    if unknown := sorted(set(names) - set(ESTIMATES)):
        parser.error(f"unknown part {unknown[0]!r}; known: {', '.join(ESTIMATES)}")
    if options.write is None and options.out is None:
        parser.error("--out is missing")
    try:
        if options.write is not None:
            keep_report(options.write)
            return 0

        def command(until: float, folder: Path) -> list[str]:
            tiny = ["--tiny"] if options.tiny else []
            worker = [sys.executable, "-m", "bench.gpu.worker", "--out", str(options.out.resolve())]
            return [*worker, "--until", str(until), "--folder", str(folder), *tiny]

        report = supervise(command, [name for name in ESTIMATES if name in names], options.out, until=until)
    except GpuRunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(render_lines(report)) + "\n")
    return int(report.has_failed)


def supervise(command: Command, names: Sequence[str], out: Path, *, until: float) -> GpuReport:
    """Start processes that run the parts until none waits or the time is over; return the report.

    Args:
        command: makes a process's command line; it is given when its time is over, and an empty folder.
        names: the parts.
        out: where the report and the log go.
        until: when all must be over, on the monotonic clock.

    Raises:
        GpuRunError: `out` cannot be written.
    """
    report = GpuReport({}, tuple(PartResult(name) for name in names))
    write_report(report, out)
    (out / LOG_FILE).write_bytes(b"")
    until -= MARGIN
    while any(part.status == "waiting" for part in report.parts):
        waiting = sum(part.status == "waiting" for part in report.parts)
        # Ours, and not the process's own: it may be killed, and 7 GB in memory would stay.
        with tempfile.TemporaryDirectory(prefix="tilemix-gpu-", dir=choose_folder(MODEL_BYTES)) as folder:
            status = run_process(command(until, Path(folder)), out / LOG_FILE, until)
        report = _close(read_report(out / REPORT_FILE), status, out / LOG_FILE)
        if status is not None and sum(part.status == "waiting" for part in report.parts) == waiting:
            # It did not come as far as a part: nor would the next one.
            for part in report.parts:
                if part.status == "waiting":
                    reason = _explain(status, out / LOG_FILE)
                    report = report.with_part(PartResult(part.name, "failed", reason=reason))
        write_report(report, out)
    return report


def choose_folder(needed: int, memory: Path = SHARED_MEMORY) -> Path:
    """Return the folder in memory where it has room for twice what is needed, or else that of temporary files."""
    if memory.is_dir() and shutil.disk_usage(memory).free >= 2 * needed:
        return memory
    return Path(tempfile.gettempdir())


def run_process(command: Sequence[str], log: Path, until: float) -> int | None:
    """Run a process and all that it starts; return its exit status, None if the time was over first."""
    left = until - time.monotonic()
    if left <= 0:
        return None
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  our own command
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # what it started may live on
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _close(report: GpuReport, status: int | None, log: Path) -> GpuReport:
    """Say of the part in which a process ended how it ended."""
    for part in report.parts:
        if part.status == "running":
            if status is None:
                ended = PartResult(part.name, "cut off", reason="the time was over")
            else:
                ended = PartResult(part.name, "failed", reason=_explain(status, log))
            report = report.with_part(ended)
    if status is None:
        for part in report.parts:
            if part.status == "waiting":
                report = report.with_part(PartResult(part.name, "skipped", reason="no time was left"))
    return report


def _explain(status: int, log: Path) -> str:
    """Return why a process died: the last line of its log."""
    tail = log.read_bytes()[-LOG_BYTES:].decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(tail) if line.strip()), "it said nothing")
    return f"the process ended with {status}: {said[:200]}"


def keep_report(path: Path) -> None:
    """Put a run's report beside the bench's own, and write bench/REPORT.md anew."""
    from bench import report  # with torch, which takes seconds that a run does not have

    read_report(path)
    if path.resolve() != report.GPU_JSON:
        shutil.copyfile(path, report.GPU_JSON)
    report.write_report(report.read_report())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it started goes with it
    sys.exit(main())
