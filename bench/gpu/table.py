"""A GPU run as the lines that end its output, and as a chapter of bench/REPORT.md."""

from __future__ import annotations

from bench.figures import Row
from bench.gpu.parts import GpuReport
from bench.gpu.rows import ROWS
from bench.table import render_figure, render_table

MAX_LINES = 40
WIDTH = 160  # characters of a line


def render_lines(report: GpuReport) -> list[str]:
    """Return at most 40 lines: the machine, what was left out, then the rows as far as there is room."""
    left_out = [
        f"{part.status}: {part.name}: {part.reason or ''}" for part in report.parts if part.status != "done"
    ]
    head = [render_machine(report), *left_out]
    rows = [_render_line(row) for row in report.rows]
    room = MAX_LINES - len(head)
    if len(rows) > room:
        rows = [*rows[: room - 1], f"and {len(rows) - room + 1} rows more in gpu.json"]
    return [line[:WIDTH] for line in (*head, *rows)]


def render_machine(report: GpuReport) -> str:
    """Return the card, the driver and the versions in one line."""
    return ", ".join(f"{name} {value}" for name, value in report.machine.items())


def render_chapter(report: GpuReport | None) -> str:
    """Return the chapter for bench/REPORT.md; None stands for no run yet."""
    if report is None:
        return f"Not measured: `bash bench/gpu.sh` has not run on a GPU yet.\n\n{render_table(list(ROWS.values()))}"
    measured = {row.key for row in report.rows}
    rows = [*report.rows, *(row for key, row in ROWS.items() if key not in measured)]
    lines = [f"On {render_machine(report)}.", "", render_table(rows), ""]
    for row in rows:
        lines += [f"* {row.key}: {note}" for note in row.notes]
        lines += [f"* {row.key}: {gate.name}: {gate.found}; the rule: {gate.rule}" for gate in row.gates]
    lines += [
        f"* {part.name}: {part.status}{f': {part.reason}' if part.reason else ''}"
        for part in report.parts
        if part.status != "done"
    ]
    return "\n".join(lines)


def _render_line(row: Row) -> str:
    figures = "; ".join(render_figure(figure) for figure in row.figures)
    broken = [f"{gate.name}: {gate.found}, not {gate.rule}" for gate in row.gates if not gate.holds]
    return f"{row.key:12} {row.verdict:8} {'; '.join([*broken, figures])}"
