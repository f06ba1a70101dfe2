"""`tilemix compare`: one mix drawn by several models, or with several inputs, side by side on a sheet."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilemix.cli.measure import list_shares
from tilemix.cli.terminal import write, write_json
from tilemix.cli.verbs import default_model
from tilemix.errors import ImageFileError, InputError
from tilemix.inputs import IntegerInput, find_input
from tilemix.system.project import DEFAULT_MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

    from tilemix.cli.verbs import Verbs
    from tilemix.pictures.sheet import Cell

logger = logging.getLogger(__name__)

MAX_MODELS = 8
MAX_SEEDS = 16


def add_compare(verbs: Verbs) -> None:
    """Add `compare`."""
    compare = verbs.add_parser(
        "compare", help="draw one mix with several models or inputs, side by side on a sheet"
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("prompt", metavar="MIX", help="as for predict")
    compare.add_argument(
        "--models",
        metavar="NAME[,NAME...]",
        help=f"packaged models, one a column; with --x and --y one; default: $TILEMIX_MODEL, else {DEFAULT_MODEL}",
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
    compare.add_argument("-o", "--output", type=Path, default=Path("sheet.png"), help="default: sheet.png")
    compare.add_argument("--json", action="store_true", help="print the measured shares as JSON")


def _compare(options: argparse.Namespace) -> None:
    from tilemix.pictures.sheet import draw_sheet

    models = _split(options.models or default_model(), "models", MAX_MODELS)
    if options.x or options.y or options.set:
        from tilemix.cli.axes import draw_axes

        if len(models) > 1:
            raise InputError("compare-list", field="models", typed=options.models[:80], most=1)
        sheet, answer = draw_axes(models[0], options.prompt, x=options.x, y=options.y, fixed=options.set)
        _answer(options, sheet, answer)
        return
    row = find_input("seed", IntegerInput)
    seeds = [row.read(text) for text in _split(options.seed, "seed", MAX_SEEDS)]
    cells: dict[str, list[Cell]] = {}
    shares: dict[str, list[dict[str, float]]] = {}
    for model in models:
        cells[model], shares[model] = _draw(model, options.prompt, seeds)
    grid = [[cells[model][number] for model in models] for number in range(len(seeds))]
    sheet = draw_sheet(grid, columns=models, rows=[f"seed {seed}" for seed in seeds], title=options.prompt)
    _answer(options, sheet, {"seeds": seeds, "shares": shares})


def _answer(options: argparse.Namespace, sheet: Image, answer: dict[str, Any]) -> None:
    """Write the sheet, and say where it is."""
    from tilemix.system.atomic import open_atomically

    try:
        with open_atomically(options.output) as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise ImageFileError(
            "file-unwritable", file=str(options.output), reason=str(error.strerror)
        ) from error
    if options.json:
        write_json({"file": str(options.output)} | answer)
    else:
        write(f"{options.output}\n")


def _draw(model: str, prompt: str, seeds: list[int]) -> tuple[list[Cell], list[dict[str, float]]]:
    """Draw the prompt with each seed; the model is loaded for it and forgotten."""
    from tilemix.drawing import measure_mix
    from tilemix.pictures.sheet import Cell
    from tilemix.pipelines.settings import read_settings
    from tilemix.render import Renderer
    from tilemix.request import GenerationRequest

    renderer = Renderer.load(model, read_settings(os.environ))
    cells, shares = [], []
    for seed in seeds:
        rendered = renderer.render(GenerationRequest(prompt=prompt, seed=seed))
        measured = measure_mix(rendered)
        shares.append(measured.shares if measured else {})
        cells.append(Cell(rendered.pixels, list_shares(shares[-1])))
        logger.info("%s, seed %d: %s", model, seed, list_shares(shares[-1]) or "no mix to measure")
    return cells, shares


def _split(text: str, what: str, most: int) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) != len(parts) or len(parts) > most:
        raise InputError("compare-list", field=what, typed=text[:80], most=most)
    return parts
