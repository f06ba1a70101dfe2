"""`tilemix compare`: one prompt drawn by several models, tasks or LoRA scales, or with several inputs, on a sheet."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilemix.cli.measure import list_shares
from tilemix.cli.outputs import check_output, open_output
from tilemix.cli.predict import SUFFIXES, check_text
from tilemix.cli.terminal import write, write_json
from tilemix.cli.verbs import default_model
from tilemix.errors import InputError
from tilemix.inputs import IntegerInput, NumberInput, find_input
from tilemix.system.project import DEFAULT_MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

    from tilemix.cli.verbs import Verbs
    from tilemix.models import ModelManager
    from tilemix.pictures.sheet import Cell

logger = logging.getLogger(__name__)

MAX_NAMES = 8
MAX_SCALES = 8
MAX_SEEDS = 16
QUALITY = 85  # of a WebP or JPEG sheet
OWN = "own"  # the scale that the model or the task has by itself


@dataclass(frozen=True, slots=True)
class _Column:
    model: str
    task: str | None
    lora_scale: float | None  # None: its own

    @property
    def name(self) -> str:
        return self.model if self.task is None else self.task

    @property
    def scale(self) -> str:
        if self.lora_scale is None:
            return "its own LoRA scale"
        return f"LoRA {self.lora_scale:g}" if self.lora_scale else "no LoRA"


def add_compare(verbs: Verbs) -> None:
    """Add `compare`."""
    compare = verbs.add_parser(
        "compare", help="draw one prompt with several models, tasks, LoRA scales or inputs, side by side"
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("prompt", metavar="MIX", help="as for predict")
    drawn_by = compare.add_mutually_exclusive_group()
    drawn_by.add_argument(
        "--models",
        metavar="NAME[,NAME...]",
        help=f"packaged models, one a column; with --x and --y one; default: $TILEMIX_MODEL, else {DEFAULT_MODEL}",
    )
    drawn_by.add_argument("--task", metavar="NAME[,NAME...]", help="tasks, one a column")
    compare.add_argument(
        "--lora-scale",
        default=OWN,
        metavar="X[,X...]",
        help=f"one column each; 0: without LoRAs, {OWN}: as the model or the task has it; default: {OWN}",
    )
    compare.add_argument("--seed", default="0", metavar="N[,N...]", help="one row each; default: 0")
    for option, place in (("--x", "column"), ("--y", "row")):
        compare.add_argument(
            option,
            metavar="NAME=VALUE[,VALUE...]",
            help=f"a {place} for each value of an input, of 'scheduler', or of a part of the prompt: prompt=PART,OTHER",
        )
    compare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input of every picture of --x and --y",
    )
    compare.add_argument(
        "-o", "--output", type=Path, default=Path("sheet.png"), help="PNG, WebP or JPEG; default: sheet.png"
    )
    compare.add_argument("--json", action="store_true", help="print the measured shares as JSON")


def _compare(options: argparse.Namespace) -> None:
    from tilemix.models import ModelManager
    from tilemix.pictures.sheet import draw_sheet
    from tilemix.pipelines.settings import read_settings
    from tilemix.request import GenerationRequest

    check_output(options.output, SUFFIXES)
    row = find_input("seed", IntegerInput)
    seeds = [row.read(text) for text in _split(options.seed, "seed", MAX_SEEDS)]
    columns = _list_columns(options)
    if options.x or options.y or options.set:
        from tilemix.cli.axes import draw_axes

        column, *others = columns
        if others:
            given = [options.models, options.task, options.lora_scale if options.lora_scale != OWN else None]
            typed = "; ".join(filter(None, given))
            raise InputError("compare-one-model", count=len(columns), typed=typed[:80])
        own = {"task": column.task, "lora_scale": column.lora_scale}
        fixed = [f"{name}={value}" for name, value in own.items() if value is not None]
        sheet, answer = draw_axes(
            column.model, options.prompt, x=options.x, y=options.y, fixed=fixed + options.set
        )
        _answer(options, sheet, answer)
        return
    labels = _label(columns)
    cells: list[list[Cell]] = []
    shares: list[list[dict[str, float]]] = []
    models = ModelManager(settings=read_settings(os.environ))
    for column in columns:  # a slip is told before a model is loaded
        check_text(GenerationRequest(prompt=options.prompt, task=column.task), column.model)
    for column, label in zip(columns, labels, strict=True):
        models.model = column.model
        drawn, measured = _draw(models, column, options.prompt, seeds, label)
        cells.append(drawn)
        shares.append(measured)
    names = {column.name for column in columns}
    sheet = draw_sheet(
        list(zip(*cells, strict=True)),
        columns=labels,
        rows=[f"seed {seed}" for seed in seeds],
        title=options.prompt if len(names) > 1 else f"{names.pop()}: {options.prompt}",
    )
    _answer(options, sheet, {"seeds": seeds, "shares": dict(zip(labels, shares, strict=True))})


def _answer(options: argparse.Namespace, sheet: Image, answer: dict[str, Any]) -> None:
    """Write the sheet, and say where it is."""
    with open_output(options.output) as file:
        sheet.save(file, SUFFIXES[options.output.suffix.lower()], quality=QUALITY)
    if options.json:
        write_json({"file": str(options.output)} | answer)
    else:
        write(f"{options.output}\n")


def _list_columns(options: argparse.Namespace) -> list[_Column]:
    """Return the columns, those of one model together; every name and number in them can be used.

    Raises:
        InputError, WeightsError: one cannot.
    """
    from tilemix.weights.tasks import find_task

    served = default_model()
    drawn_by: list[tuple[str, str | None]] = [(served, None)]
    if options.models is not None:
        drawn_by = [(model, None) for model in _split(options.models, "models", MAX_NAMES)]
    elif options.task is not None:
        drawn_by = [(served, task) for task in _split(options.task, "task", MAX_NAMES)]
    for model, task in drawn_by:
        if task is not None:
            find_task(task, served=model)
    scales = [_read_scale(text) for text in _split(options.lora_scale, "lora_scale", MAX_SCALES)]
    return [_Column(model, task, scale) for model, task in drawn_by for scale in scales]


def _read_scale(text: str) -> float | None:
    if text == OWN:
        return None
    row = find_input("lora_scale", NumberInput)
    scale = row.read(text)
    row.check(scale)
    return scale


def _label(columns: list[_Column]) -> list[str]:
    """Return what tells the columns apart: their names, their scales, or both."""
    has_scales = any(column.lora_scale is not None for column in columns)
    has_names = len({column.name for column in columns}) > 1
    if not has_scales:
        return [column.name for column in columns]
    return [f"{column.name}, {column.scale}" if has_names else column.scale for column in columns]


def _draw(
    models: ModelManager, column: _Column, prompt: str, seeds: list[int], label: str
) -> tuple[list[Cell], list[dict[str, float]]]:
    """Draw the prompt with each seed."""
    from tilemix.drawing import measure_mix
    from tilemix.pictures.sheet import Cell
    from tilemix.request import GenerationRequest

    cells, shares = [], []
    for seed in seeds:
        request = GenerationRequest(prompt=prompt, seed=seed, task=column.task, lora_scale=column.lora_scale)
        rendered = models.render(request)
        measured = measure_mix(rendered)
        shares.append(measured.shares if measured else {})
        cells.append(Cell(rendered.pixels, list_shares(shares[-1])))
        logger.info("%s, seed %d: %s", label, seed, list_shares(shares[-1]) or "no mix to measure")
    return cells, shares


def _split(text: str, what: str, most: int) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) != len(parts) or len(parts) > most:
        raise InputError("compare-list", field=what, typed=text[:80], most=most)
    return parts
