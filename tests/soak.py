"""The long runs behind docs/RELIABILITY.md: kills, faults, the inbox against its model, the API,
load, searches, catalogues on Ray, switches between models.

    python -m tests.soak [--only PART ...] [--examples N] [--small]

Every run is done on SQLite and on PostgreSQL where it has a database. After each part its figures go to
docs/reliability.json and into the document's table, between the markers; a fault ends the run with a message and
status 1, and leaves the figures before. `--small` does a little of each and writes nothing.
"""

import argparse
import json
import logging
import os
import platform
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import searches
from bench.webhooks import measure_both
from tests import soak_catalogue
from tests.postgres import find_programs, run_server
from tests.soak_api import fuzz
from tests.soak_crash import make_database
from tests.soak_faults import KINDS, run_campaign
from tests.test_studio_inbox_machine import hold_against_the_model
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT

FIGURES = ROOT / "docs" / "reliability.json"
DOCUMENT = ROOT / "docs" / "RELIABILITY.md"
LONG = {
    "every": 1,
    "storms": 20,
    "examples": 100,  # runs of the inbox's machine; requests of each kind to each operation
    "inbox_steps": 50,
    "rate": 200,
    "slow": 300,  # connections that hold up nobody
    "seconds": 30,
    "pictures": 10_000,
    "clients": 8,
    "search_seconds": 20,  # of each kind on each database
    "faults": 12,  # of each kind on each database: 216 in all
    "sessions": 4,  # of each kind, of a catalogue on Ray
    "switches": 1000,
}
SMALL = LONG | {
    "every": 30,
    "storms": 1,
    "examples": 2,
    "inbox_steps": 20,
    "seconds": 2,
    "search_seconds": 1,
    "faults": 1,
    "sessions": 1,
    "switches": 60,
}
FSYNCS = 200

Extent = dict[str, int]
Rows = dict[str, dict[str, Any]]  # a row's name -> column -> figure


def run_webhooks(extent: Extent, _: Path) -> Rows:
    """Load a studio on each database."""
    loads = measure_both(rate=extent["rate"], seconds=extent["seconds"], slow=extent["slow"])
    for kind, load in loads.items():
        assert load.is_whole, f"{kind}: {load}"
    return {kind: asdict(load) for kind, load in loads.items()}


def run_searches(extent: Extent, _: Path) -> Rows:
    """Search a studio on each database by text."""
    plan = searches.Plan(extent["pictures"], extent["clients"], extent["search_seconds"])
    return {name: asdict(found) for name, found in searches.measure_both(plan).items()}


def run_api(extent: Extent, _: Path) -> Rows:
    """Hold the API against its document; raises an ExceptionGroup where it differs."""
    rows = {}
    for is_faulty, over in ((False, "draws"), (True, "fails in every way in turn")):
        statuses = fuzz(extent["examples"], is_faulty=is_faulty)
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
        rows[over] = {"requests": statuses.total(), "answers": answers}
    return rows


def run_kills(extent: Extent, _: Path) -> Rows:
    """Count kills and their faults, in processes without threads, for they fork."""
    rows = {}
    for kind, options in (("SQLite", []), ("PostgreSQL", ["--postgresql"])):
        command = [sys.executable, "-m", "tests.soak_crash", *options]
        limits = [f"--every={extent['every']}", f"--storms={extent['storms']}"]
        done = subprocess.run([*command, *limits], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        found = re.fullmatch(r"([0-9]+) kills, 0 lost, 0 doubled\n", done.stdout)
        assert found is not None, f"{kind}: status {done.returncode}, {done.stdout}"
        rows[kind] = {"kills": int(found[1]), "lost": 0, "doubled": 0}
    return rows


def run_inbox(extent: Extent, programs: Path) -> Rows:
    """Hold the inbox against its model; raises where it differs."""
    counts = {"runs": extent["examples"], "steps": extent["inbox_steps"]}
    with tempfile.TemporaryDirectory() as name, run_server(programs) as server:
        urls = {"SQLite": f"sqlite:///{name}/studio.sqlite3", "PostgreSQL": make_database(server, "model")}
        for url in urls.values():
            hold_against_the_model(url, examples=counts["runs"], steps=counts["steps"])
    return {kind: counts | {"differences": 0} for kind in urls}


def run_faults(extent: Extent, _: Path) -> Rows:
    """Load a studio while faults come and go; raises where something was lost, doubled or answered with 500."""
    rows = dict(run_campaign(["SQLite", "PostgreSQL"], list(KINDS), faults=extent["faults"], seed=1))
    for name, row in rows.items():
        assert row["lost"] == row["doubled"] == row["answers_500"] == 0, f"{name}: {row}"
    return rows


def run_catalogue(extent: Extent, _: Path) -> Rows:
    """Kill what draws a catalogue on Ray; raises where a row was lost or doubled."""
    rows: Rows = {}
    for model in soak_catalogue.LOADS:
        kinds = [kind for kind in soak_catalogue.KINDS if (model, kind) != ("stand-in", "disk")]
        rows |= soak_catalogue.run(dict.fromkeys(kinds, extent["sessions"]), model=model)
    for name, row in rows.items():
        assert row["lost"] == row["doubled"] == 0, f"{name}: {row}"
    return rows


def run_switches(extent: Extent, _: Path) -> Rows:
    """Switch between models, in a process of its own; raises where a model's tensors stayed."""
    command = [sys.executable, "-m", "tests.soak_switches", f"--switches={extent['switches']}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout)
    assert row["tensors_more"] == 0, row
    return {"two tiny models": row}


PARTS: dict[str, Callable[[Extent, Path], Rows]] = {
    "webhooks": run_webhooks,
    "searches": run_searches,
    "api": run_api,
    "kills": run_kills,
    "inbox": run_inbox,
    "faults": run_faults,
    "catalogue": run_catalogue,
    "switches": run_switches,
}


def describe_machine(programs: Path) -> Rows:
    """Return what the figures depend on and what stays the same."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    shown = [programs / "postgres", "--version"]
    version = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    facts = {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "fsync after 4 kB": f"{measure_fsync():.2f} ms",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": version.split()[2],
    }
    return {name: {"": value} for name, value in facts.items()}


def measure_fsync() -> float:
    """Return what an fsync after 4 kB takes here, in milliseconds: the median."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(FSYNCS):
            file.write(bytes(4096))
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def describe_moment() -> str:
    """Return when a part is run, and what else runs then."""
    cores = len(os.sched_getaffinity(0))
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{date}, on {cores} of the cores, niceness {priority}, {os.getloadavg()[0]:.1f} other processes running"


def render(rows: Rows, moment: str | None) -> str:
    """Return a table in Markdown, and below it when it was measured."""
    columns = list(next(iter(rows.values())))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, figures in rows.items():
        shown = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in figures.values()]
        lines.append([name, *shown])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return text if moment is None else f"{text}\n\nMeasured {moment}."


def fill(document: str, name: str, text: str) -> str:
    """Return the document with a text put between the markers `<!-- NAME -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    document, count = pattern.subn(lambda found: f"{found[1]}{text}\n{found[2]}", document)
    assert count == 1, f"{count} places for the table {name}"
    return document


def write(name: str, rows: Rows, moment: str | None) -> None:
    """Put a part's figures into the data file, and its table into the document."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figures[name] = {"rows": rows, "moment": moment}
    write_atomically(FIGURES, (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomically(DOCUMENT, fill(DOCUMENT.read_text(), name, render(rows, moment)).encode())


def main() -> int:
    parser = argparse.ArgumentParser(description="Do the long runs behind docs/RELIABILITY.md.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--small", action="store_true", help="a little of each; nothing is written")
    parser.add_argument("--examples", type=int, help="other than 100, of the inbox's and the API's parts")
    options = parser.parse_args()
    extent = SMALL if options.small else LONG
    if options.examples is not None:
        extent = extent | {"examples": options.examples}
    logging.disable()  # of faults that are meant
    programs = find_programs()
    if programs is None:
        sys.exit("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
    if not options.small:
        write("machine", describe_machine(programs), None)
    for name in options.only:
        moment = describe_moment()
        rows = PARTS[name](extent, programs)
        sys.stdout.write(f"{name}: {json.dumps(rows, ensure_ascii=False)}\n")
        sys.stdout.flush()
        if not options.small:
            write(name, rows, moment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
