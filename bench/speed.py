"""The speed bench: tilemix against two peers, with the pixels checked; a table and JSON.

    python -m bench.speed                    # all rows; writes bench/REPORT.md, bench/report.json, the README's figures
    python -m bench.speed --rows 1,4         # some, printed; --write replaces them in the written reports
    python -m bench.speed --readme           # fills the README from bench/report.json without measuring

Exit status: 1 if an exactness gate is broken or a row could not be measured, else 0, even if figures miss their
targets. Takes under 15 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from bench import (
    peers,
    rows_levers,
    rows_modes,
    rows_parts,
    rows_process,
    rows_step_levers,
    rows_whole,
)
from bench.figures import Row
from bench.machine import Machine, read_machine
from bench.ours import load_ours
from bench.pictures import order_topology
from bench.report import (
    README,
    REPORT_JSON,
    REPORT_MD,
    Report,
    fill_readme,
    merge_rows,
    read_report,
    render_facts,
    write_report,
)
from bench.table import render_table
from bench.topology import MODEL, TINY, write_project
from tilemix.pictures.record import Record
from tilemix.system.atomic import write_atomically
from tilemix.system.machine import keep_freed_memory

Measure = Callable[["Workshop"], "Row | list[Row]"]


@dataclass
class Workshop:
    """The bench's models, made when they are first needed."""

    folder: Path
    mixes: int = 20

    @cached_property
    def topology(self) -> Path:
        """The project folder of the SDXL with the real topology."""
        return write_project(self.make_folder("topology"))

    @cached_property
    def record(self) -> Record:
        """The record of a real picture."""
        return load_ours(MODEL, self.topology).draw(order_topology(0, steps=1)).record

    @cached_property
    def steadiness(self) -> Future[Row]:
        """Row 9, started on first access: it times nothing, so it runs while row 7 compiles."""
        beside = ThreadPoolExecutor(max_workers=1)
        root = write_project(self.make_folder("steady"), TINY)
        steadiness = beside.submit(rows_process.measure_steadiness, root)
        beside.shutdown(wait=False)
        return steadiness

    def make_folder(self, name: str) -> Path:
        """Return a new folder for one row's files."""
        folder = self.folder / name
        folder.mkdir()
        return folder


# In the order of measuring; the keys of one entry are measured together.
ROWS: Mapping[tuple[str, ...], Measure] = {
    ("1",): lambda shop: rows_parts.measure_tail(shop.record),
    ("2", "3"): lambda shop: rows_parts.measure_steps(shop.topology),
    ("4",): lambda _: rows_parts.measure_prompts(),
    ("5",): lambda shop: rows_parts.measure_lora(shop.topology),
    ("6", "L14"): lambda shop: rows_process.measure_cold_start(shop.topology, shop.make_folder("image")),
    ("6w", "L16", "L17"): lambda shop: rows_process.measure_weights(
        shop.make_folder("wide"), shop.make_folder("narrow")
    ),
    ("7", "L15", "8", "8r"): lambda shop: rows_whole.measure_predictions(shop.steadiness),
    ("9",): lambda shop: shop.steadiness.result(),
    ("M-exact", "M-equivalent", "M-fast"): lambda shop: rows_modes.measure_modes(shop.mixes),
    ("L1", "L2", "L3", "L4", "L13"): lambda shop: rows_step_levers.measure_step_levers(shop.topology),
    ("L5", "L6"): lambda shop: rows_levers.measure_tail_levers(shop.record),
    ("L7", "L8"): lambda _: rows_levers.measure_prompt_levers(),
    ("L9",): lambda _: rows_levers.measure_import_lever(),
    ("L10", "L11"): lambda _: rows_levers.measure_layout_levers(),
    ("L12",): lambda _: rows_levers.measure_memory_lever(),
}


def measure(
    shop: Workshop, wanted: set[str] | None, rows: Mapping[tuple[str, ...], Measure]
) -> Iterable[Row]:
    """Yield the wanted rows, or all for None. A row that fails reports its error, and the next one is measured."""
    for keys, run in rows.items():
        if wanted is not None and not wanted & set(keys):
            continue
        began = time.perf_counter()
        try:
            made = run(shop)
            done = made if isinstance(made, list) else [made]
        except Exception as error:  # noqa: BLE001 one row must not cost the others
            traceback.print_exc()
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            done = [Row(key, "could not be measured", error=reason) for key in keys]
        took = round(time.perf_counter() - began, 1)
        for row in done:
            yield Row(row.key, row.title, row.figures, row.gates, row.notes, row.error, took)


def run_bench(
    machine: Machine,
    shop: Workshop,
    wanted: set[str] | None,
    rows: Mapping[tuple[str, ...], Measure] = ROWS,
) -> Report:
    """Measure, and print each row's verdict as soon as it is known."""
    began = time.perf_counter()
    done = []
    for row in measure(shop, wanted, rows):
        say(f"[{time.perf_counter() - began:5.0f} s] {row.key}: {row.verdict}")
        done.append(row)
    return Report(machine, tuple(done), round(time.perf_counter() - began, 1))


def main(arguments: Sequence[str] | None = None, rows: Mapping[tuple[str, ...], Measure] = ROWS) -> int:
    """Run the bench; return the exit status."""
    known = [key for keys in rows for key in keys]
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed", description="tilemix's speed against its peers'."
    )
    parser.add_argument(
        "--rows", metavar="KEYS", help=f"separated by commas: {','.join(known)}; default: all"
    )
    parser.add_argument(
        "--mixes", type=int, default=20, metavar="N", help="mixes of the modes' rows; default: 20"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads; default: one per core")
    parser.add_argument("--write", action="store_true", help="write the reports even with --rows")
    parser.add_argument(
        "--readme", action="store_true", help="fill the README from the report without measuring"
    )
    parser.add_argument("--report", type=Path, default=REPORT_JSON, metavar="FILE", help="the report as JSON")
    options = parser.parse_args(arguments)
    wanted = set(options.rows.split(",")) if options.rows else None
    if wanted is not None and (unknown := sorted(wanted - set(known))):
        parser.error(f"unknown row {unknown[0]!r}; known: {', '.join(known)}")
    if options.readme:
        write_readme(read_report(options.report))
        return 0
    prepare(options.threads)
    with tempfile.TemporaryDirectory(prefix="tilemix-bench-") as folder:
        # Compile anew, into this temporary folder. torch has set the variable by now, so it is overwritten.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
        machine = read_machine(Path(folder))
        say(render_facts(machine))
        if machine.warning:
            say(f"WARNING: {machine.warning}")
        report = run_bench(machine, Workshop(Path(folder), options.mixes), wanted, rows)
    say(render_table(report.rows))
    if wanted is None or options.write:
        if wanted is not None and options.report.exists():
            old = read_report(options.report)
            report = Report(machine, merge_rows(old.rows, report.rows), report.seconds)
        write_report(report, markdown=options.report.with_name(REPORT_MD.name), data=options.report)
        if options.report == REPORT_JSON:
            write_readme(report)
    return int(report.has_failed)


def write_readme(report: Report) -> None:
    """Put the report's headline figures into the README."""
    write_atomically(README, fill_readme(README.read_text(encoding="utf-8"), report).encode())


def prepare(threads: int | None) -> None:
    """Set torch's threads for all sides, and keep the libraries quiet."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    keep_freed_memory()  # for the peers, too: it cannot be undone between rounds
    peers.quiet()
    logging.getLogger("tilemix").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # the peers' libraries deprecate parts of each other
    os.environ["HF_HUB_OFFLINE"] = "1"


def say(line: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
