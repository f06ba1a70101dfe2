"""The rows as a table, a report, JSON, and a part of the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.figures import FAILURES, Figure, Row
from bench.gpu.parts import GpuReport
from bench.gpu.parts import read_report as read_gpu_report
from bench.gpu.table import render_chapter
from bench.machine import Machine
from bench.table import render_table, render_target, render_value
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT

REPORT_MD = ROOT / "bench" / "REPORT.md"
REPORT_JSON = ROOT / "bench" / "report.json"
GPU_JSON = ROOT / "bench" / "gpu.json"  # the run on a GPU that is told of, if there was one
README = ROOT / "README.md"
BEGIN, END = "<!-- bench: written by make bench -->", "<!-- end of bench -->"
# What the README shows: a row's key, the name of a figure in it, what to call it there.
HEADLINES = (
    (
        "7",
        "equivalent: N / ours",
        "a whole 512x512 picture by the miniature: plain diffusers' time / tilemix's",
    ),
    ("3", "N / ours", "a denoising step with a LoRA: plain diffusers' time / tilemix's"),
    ("6", "ours / N", "cold start: tilemix's time / plain diffusers'"),
)
HEADLINES_HEAD = "| figure | measured | target | |\n|---|---|---|---|"


class Report(msgspec.Struct, frozen=True):
    """One run of the bench."""

    machine: Machine
    rows: tuple[Row, ...]
    seconds: float  # how long the whole run took

    @property
    def has_failed(self) -> bool:
        """Whether a gate is broken or a row could not be measured."""
        return any(row.verdict in FAILURES for row in self.rows)


def render_facts(machine: Machine) -> str:
    """Return the machine's facts in one line."""
    versions = ", ".join(f"{name} {found}" for name, found in machine.versions.items())
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, "
        f"bf16 instructions: {'yes' if machine.has_bf16 else 'no'}, GPU: {machine.gpu or 'none'}, "
        f"C++ compiler: {'yes' if machine.cxx_compiler else 'no'}, load at the start: {machine.load_at_start:g}; "
        f"{versions}"
    )


def render_report(report: Report, gpu: GpuReport | None) -> str:
    """Return bench/REPORT.md; `gpu` is a run on a GPU, if there was one."""
    lines = [
        "# Speed",
        "",
        "Written by `make bench`; the same data as JSON: [report.json](report.json). N is the usual way to use "
        "diffusers, S its strong recipe ([peers.py](peers.py)). Each ratio is of minima over interleaved runs in "
        "one process. `exact` and `equivalent` are speed modes. pass: every target is met; short: a target is "
        "missed; broken: a gate does not hold, so the figures do not count.",
        "",
        render_facts(report.machine) + ".",
        "",
        f"Took {report.seconds / 60:.1f} minutes.",
        "",
    ]
    if report.machine.warning:
        lines += [f"**Not quiet: {report.machine.warning}.**", ""]
    lines += [render_table(report.rows), ""]
    for row in report.rows:
        lines += [f"* {row.key}: {note}" for note in row.notes]
        lines += [f"* {row.key}: {gate.name}: {gate.found}; the rule: {gate.rule}" for gate in row.gates]
        if row.error is not None:
            lines.append(f"* {row.key}: error: {row.error}")
    lines += [
        "",
        "## On a GPU",
        "",
        "SDXL in its real size with random weights, by `bash bench/gpu.sh` ([gpu.md](../docs/gpu.md) says what each "
        "figure means); medians.",
        "",
        render_chapter(gpu),
    ]
    return "\n".join(lines) + "\n"


def render_readme(report: Report) -> str:
    """Return the text between the README's markers: three figures with their targets, and the machine."""
    rows = {row.key: row for row in report.rows}
    lines = [HEADLINES_HEAD]
    for key, name, title in HEADLINES:
        row = rows.get(key, Row(key, title))
        figure = next((one for one in row.figures if one.name == name), Figure(name, None))
        verdict = row.verdict if row.verdict in FAILURES else Row(key, title, (figure,)).verdict
        lines.append(f"| {title} | {render_value(figure)} | {render_target(figure)} | {verdict} |")
    note = f" *{report.machine.warning.capitalize()}.*" if report.machine.warning else ""
    return "\n".join([*lines, "", f"On {report.machine.cpu}, {report.machine.cores} cores.{note}"])


def write_report(report: Report, *, markdown: Path = REPORT_MD, data: Path = REPORT_JSON) -> None:
    """Write both files, each atomically."""
    write_atomically(markdown, render_report(report, read_gpu()).encode())
    write_atomically(data, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read_gpu(path: Path = GPU_JSON) -> GpuReport | None:
    """Return the run on a GPU, None if there was none yet."""
    return read_gpu_report(path) if path.exists() else None


def read_report(path: Path = REPORT_JSON) -> Report:
    """Read what `write_report` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def merge_rows(old: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows of `old`, replaced by those of `new` with the same key, then the other new rows."""
    fresh = {row.key: row for row in new}
    kept = [fresh.pop(row.key, row) for row in old]
    return (*kept, *fresh.values())


def fill_readme(text: str, report: Report) -> str:
    """Return the README with the report between its markers.

    Raises:
        ValueError: the markers are not there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"README.md: expected {BEGIN!r} and after it {END!r}, each once")
    return f"{before}{BEGIN}\n{render_readme(report)}\n{END}{after}"
