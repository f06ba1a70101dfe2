"""The GPU bench: its parts at a tiny size on this processor, its clock, and what becomes of it when parts die."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
import torch

from bench import report as reports
from bench.figures import Figure, Gate, Row
from bench.gpu import __main__ as command
from bench.gpu.parts import (
    REPORT_FILE,
    GpuReport,
    GpuRunError,
    Part,
    PartResult,
    read_report,
    run_parts,
    write_report,
)
from bench.gpu.plan import ESTIMATES
from bench.gpu.rows import ROWS, Card, fill_row
from bench.gpu.table import MAX_LINES, render_chapter, render_lines
from bench.gpu.worker import list_parts
from bench.gpu.workshop import TINY_SIZE, Workshop
from tilemix.system.project import ROOT

CPU = torch.device("cpu")
ROW = Row("C1", "a check", (Figure("error", 0.5, "%"),), (Gate("it", "0.5", "at most 1", holds=True),))
BROKEN = Row("C2", "a check", (), (Gate("it", "2", "at most 1", holds=False),))


# The whole script.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`bash bench/gpu.sh` at the tiny size, with this environment's Python."""
    out = tmp_path_factory.mktemp("run") / "out"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh", "30", out, "--tiny"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return done, out


@pytest.mark.slow
def test_the_whole_script_runs_at_a_tiny_size(run):
    done, out = run
    report = read_report(out / REPORT_FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(part.name, part.status) for part in report.parts] == [(name, "done") for name in ESTIMATES]
    assert {"card", "torch", "diffusers"} <= report.machine.keys()
    assert {row.key for row in report.rows} >= {*ROWS, "C1", "C2", "C3", "C4", "C5", "L-graph", "L-fp8"}
    assert all(gate.holds for row in report.rows for gate in row.gates)
    assert {path.name for path in out.iterdir()} == {"gpu.json", "gpu.log"}


@pytest.mark.slow
def test_its_output_is_a_table_of_40_lines_at_most(run):
    lines = run[0].stdout.splitlines()
    assert lines[0].startswith("card none")
    assert 20 < len(lines) <= MAX_LINES
    assert any(line.startswith("C1 ") and " pass " in line for line in lines)


@pytest.mark.parametrize("arguments", [[], ["9"], ["0", "out"], ["nine", "out"], ["9", "out", "--train"]])
def test_the_script_says_how_it_is_called(arguments, tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr.startswith("usage: bash bench/gpu.sh MINUTES OUT")) == (2, True)


# Parts and the clock.


class Clock:
    """A clock that a part's work moves on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make_parts(clock, **seconds):
    def work(taken):
        def run():
            clock.now += abs(taken)
            if taken < 0:
                raise RuntimeError("the kernel\nsank")
            return [ROW]

        return run

    return {name: Part(name, abs(taken), work(taken)) for name, taken in seconds.items()}


def waiting(*names):
    return GpuReport({}, tuple(PartResult(name) for name in names))


def test_a_part_that_would_not_fit_is_skipped_and_named_and_a_shorter_one_behind_it_runs():
    clock, saved = Clock(), []
    parts = make_parts(clock, a=10, b=50, c=5)
    report = run_parts(parts, waiting("a", "b", "c"), until=120.0, clock=clock, save=saved.append)
    assert [(part.name, part.status) for part in report.parts] == [
        ("a", "done"),
        ("b", "skipped"),
        ("c", "done"),
    ]
    assert report.parts[1].reason == "needs about 50 s, 10 s were left"
    assert not report.has_failed
    assert "skipped: b: needs about 50 s, 10 s were left" in render_lines(report)


def test_each_part_is_written_down_before_it_begins_and_when_it_is_done():
    clock, saved = Clock(), []
    run_parts(make_parts(clock, a=1, b=1), waiting("a", "b"), until=math.inf, clock=clock, save=saved.append)
    assert [[part.status for part in report.parts] for report in saved] == [
        ["running", "waiting"],
        ["done", "waiting"],
        ["done", "running"],
        ["done", "done"],
    ]


def test_a_part_that_raises_does_not_stop_the_others_and_the_run_has_failed():
    clock = Clock()
    parts = make_parts(clock, a=-1, b=1)
    report = run_parts(parts, waiting("a", "b"), until=math.inf, clock=clock, save=lambda _: None)
    assert [part.status for part in report.parts] == ["failed", "done"]
    assert report.parts[0].reason == "RuntimeError: the kernel"
    assert report.has_failed
    assert "failed: a: RuntimeError: the kernel" in render_lines(report)


def test_a_sick_device_leaves_the_rest_to_another_process():
    clock = Clock()
    report = run_parts(
        make_parts(clock, a=-1, b=1),
        waiting("a", "b"),
        until=math.inf,
        clock=clock,
        save=lambda _: None,
        is_sound=lambda: False,
    )
    assert [part.status for part in report.parts] == ["failed", "waiting"]


def test_a_broken_gate_is_a_failure():
    assert GpuReport({}, (PartResult("a", "done", (BROKEN,)),)).has_failed
    assert not GpuReport({}, (PartResult("a", "done", (ROW,)), PartResult("b", "cut off"))).has_failed


def test_every_part_of_the_plan_is_there_and_in_its_order(tmp_path):
    parts = list_parts(Workshop(tmp_path, TINY_SIZE, CPU, torch.float32), Card("none"), 0.5)
    assert parts.keys() == ESTIMATES.keys()
    assert parts["whole"].estimate == ESTIMATES["whole"] / 2
    first = list(ESTIMATES)[:6]
    assert {"requests", "pictures", "lora", "tokens", "vae"} < set(first)


# The process that runs them.

WORKER = """
import os, sys
from pathlib import Path
from bench.gpu.parts import *
out = Path(sys.argv[1])
report = read_report(out / REPORT_FILE)
for part in report.parts:
    if part.status != "waiting":
        continue
    report = report.with_part(PartResult(part.name, "running"))
    write_report(report, out)
    if part.name == "dies":
        print("Segmentation fault", flush=True)
        os._exit(139)
    report = report.with_part(PartResult(part.name, "done"))
    write_report(report, out)
"""


@pytest.fixture
def supervise(tmp_path):
    """Runs parts of the names' own behavior in processes; returns the report."""

    def supervise(*names, worker=WORKER):
        def start(_, __):
            return [sys.executable, "-c", worker, str(tmp_path / "out")]

        return command.supervise(start, names, tmp_path / "out", until=time.monotonic() + 600)

    return supervise


def test_a_process_that_dies_costs_its_part_alone(supervise, tmp_path):
    report = supervise("a", "dies", "b")
    assert [part.status for part in report.parts] == ["done", "failed", "done"]
    assert report.parts[1].reason == "the process ended with 139: Segmentation fault"
    assert read_report(tmp_path / "out" / REPORT_FILE) == report


@pytest.mark.slow
def test_a_process_whose_time_is_over_is_killed_with_all_that_it_started(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    log = tmp_path / "log"
    assert command.run_process([sys.executable, "-c", code], log, time.monotonic() + 0.5) is None
    assert (
        command.run_process([sys.executable, "-c", "raise SystemExit(3)"], log, time.monotonic() + 600) == 3
    )
    sleeping = subprocess.run(["pgrep", "-f", "time.sleep.600"], capture_output=True, text=True, check=False)
    assert sleeping.stdout == ""


def test_the_part_in_which_the_time_ends_is_cut_off_and_the_rest_skipped(tmp_path, monkeypatch):
    def run(_, log, until):
        report = read_report(log.parent / REPORT_FILE)
        for name, status in (("a", "done"), ("b", "running")):
            report = report.with_part(PartResult(name, status))
        write_report(report, log.parent)

    monkeypatch.setattr(command, "run_process", run)
    report = command.supervise(lambda *_: [], ["a", "b", "c"], tmp_path, until=math.inf)
    assert [(part.status, part.reason) for part in report.parts] == [
        ("done", None),
        ("cut off", "the time was over"),
        ("skipped", "no time was left"),
    ]
    assert not report.has_failed


def test_a_process_gets_an_empty_folder_and_nothing_of_it_stays(tmp_path, monkeypatch):
    folders = []

    def start(until, folder):
        assert until < math.inf
        assert folder.is_dir()
        assert not list(folder.iterdir())
        folders.append(folder)
        code = f"import os, pathlib; pathlib.Path({str(folder)!r}, 'model').write_text('7 GB'); os.abort()"
        return [sys.executable, "-c", code]

    command.supervise(start, ["a"], tmp_path / "out", until=time.monotonic() + 600)
    assert len(folders) == 1
    assert not folders[0].exists()


def test_memory_is_taken_only_where_there_is_room_for_twice_as_much(tmp_path):
    assert command.choose_folder(1, tmp_path) == tmp_path
    assert command.choose_folder(2**60, tmp_path) == Path(tempfile.gettempdir())
    assert command.choose_folder(1, tmp_path / "none") == Path(tempfile.gettempdir())


def test_a_process_that_cannot_begin_is_not_started_again_and_again(supervise):
    report = supervise("a", "b", worker="raise SystemExit('no CUDA device here')")
    assert [part.status for part in report.parts] == ["failed", "failed"]
    assert report.parts[0].reason == "the process ended with 1: no CUDA device here"


@pytest.mark.slow
def test_a_run_without_time_names_everything_as_skipped(tmp_path, capsys):
    assert (
        command.main(["--minutes", "0.1", "--out", str(tmp_path), "--tiny", "--parts", "lora,requests"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["skipped: requests: no time was left", "skipped: lora: no time was left"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main(["--out", str(tmp_path / "file" / "out"), "--tiny"]) == 1
    told = capsys.readouterr()
    assert told.err == f"{tmp_path / 'file' / 'out'}: cannot be written: Not a directory\n"
    assert told.out == ""


def test_what_keeps_the_clock_does_not_wait_for_torch():
    code = "import sys, bench.gpu.__main__; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_an_unknown_part_is_wrong_usage(tmp_path):
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path), "--parts", "lora,magic"])
    assert ended.value.code == 2


# What is said of a run.


def test_a_chapter_without_a_run_says_not_measured():
    chapter = render_chapter(None)
    assert chapter.startswith("Not measured:")
    assert chapter.count("| not measured |") == len(ROWS)


def test_a_chapter_tells_the_machine_the_rows_and_what_was_left_out():
    parts = (PartResult("a", "done", (ROW,)), PartResult("b", "skipped", reason="needs about 300 s"))
    chapter = render_chapter(GpuReport({"card": "H100", "driver": "580"}, parts))
    assert chapter.startswith("On card H100, driver 580.")
    assert "| C1 | a check | error 0.50 % | it: 0.5 | pass |" in chapter
    assert "* b: skipped: needs about 300 s" in chapter
    assert "not measured" in chapter  # G1 and the others


def test_the_table_keeps_to_40_lines_whatever_there_is():
    rows = tuple(msgspec.structs.replace(ROW, key=f"R{number}") for number in range(60))
    lines = render_lines(GpuReport({"card": "x"}, (PartResult("a", "done", rows),)))
    assert len(lines) == MAX_LINES
    assert lines[-1] == "and 22 rows more in gpu.json"


def test_the_target_in_seconds_is_the_cards_own():
    rows = {
        name: fill_row("G1", [3.0, 1.2, 1.0], card=Card(name))
        for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "T4")
    }
    assert {name: row.verdict for name, row in rows.items()} == {
        "NVIDIA H200": "short",
        "NVIDIA H100 80GB HBM3": "pass",
        "T4": "pass",
    }


def test_a_run_is_kept_and_the_report_written_anew(tmp_path, monkeypatch):
    kept, written = tmp_path / "kept.json", []
    monkeypatch.setattr(reports, "GPU_JSON", kept)
    monkeypatch.setattr(reports, "write_report", written.append)
    run = GpuReport({"card": "H100"}, (PartResult("a", "done", (ROW,)),))
    write_report(run, tmp_path)
    for path in (tmp_path / REPORT_FILE, kept):
        assert command.main(["--write", str(path)]) == 0
        assert read_report(kept) == run
    assert written == [reports.read_report()] * 2
    text = reports.render_report(reports.read_report(), run)
    assert "On card H100." in text.partition("## On a GPU")[2]


def test_a_report_that_is_none_is_told(tmp_path):
    (tmp_path / REPORT_FILE).write_text("{}")
    with pytest.raises(GpuRunError, match=r"gpu\.json: not a report of a GPU run"):
        read_report(tmp_path / REPORT_FILE)
