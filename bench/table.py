"""Rows as a table."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import Figure, Row

HEAD = "| # | what | measured (target) | gates | |\n|---|---|---|---|---|"


def render_table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    return "\n".join([HEAD, *(_render_row(row) for row in rows)])


def _render_row(row: Row) -> str:
    figures = "; ".join(render_figure(figure) for figure in row.figures)
    gates = "; ".join(f"{gate.name}: {gate.found}" for gate in row.gates)
    cells = [row.key, row.title, figures or "", gates, row.verdict]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def render_figure(figure: Figure) -> str:
    """Return a figure with its unit and its target."""
    target = render_target(figure)
    return f"{figure.name} {render_value(figure)}{f' ({target})' if target else ''}"


def render_target(figure: Figure) -> str:
    """Return what a figure is to reach, or nothing."""
    if figure.at_least is not None:
        return f"at least {figure.at_least:g}"
    return "" if figure.at_most is None else f"at most {figure.at_most:g}"


def render_value(figure: Figure) -> str:
    """Return a figure's value with its unit."""
    if figure.value is None:
        return "not measured"
    unit = {"x": "x", "%": " %", "": ""}.get(figure.unit, f" {figure.unit}")
    value = figure.value
    digits = 0 if float(value).is_integer() or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{unit}"
