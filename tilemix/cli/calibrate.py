"""`tilemix calibrate`: find how a model best draws the palette's colors in their shares."""

from __future__ import annotations

import argparse
import io
import logging
import os
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write
from tilemix.errors import TilemixError
from tilemix.inputs import NumberInput, find_input
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tilemix.calibration.trials import Outcome
    from tilemix.cli.verbs import Verbs
    from tilemix.weights.calibration import Calibration

logger = logging.getLogger(__name__)

STRENGTHS = (0.6, 0.5, 0.4, 0.3, 0.2)
LORA_SCALES = (0.5, 0.6, 0.8, 0.9)
SHEET_QUALITY = 60


def add_calibrate(verbs: Verbs) -> None:
    """Add `calibrate`."""
    calibrate = verbs.add_parser("calibrate", help="find how a model draws colors in their shares best")
    calibrate.set_defaults(run=_calibrate)
    calibrate.add_argument("model", help="a packaged model with a palette")
    calibrate.add_argument(
        "--colors", metavar="LIST", help="words of its palette, with commas between; default: all"
    )
    calibrate.add_argument(
        "--strengths",
        type=_read_list("strength"),
        default=STRENGTHS,
        metavar="LIST",
        help=f"to try, with commas between; default: {','.join(map(str, STRENGTHS))}",
    )
    calibrate.add_argument(
        "--lora-scales",
        type=_read_list("lora_scale"),
        default=LORA_SCALES,
        metavar="LIST",
        help=f"to try at the best strength; default: {','.join(map(str, LORA_SCALES))}",
    )


def _calibrate(options: argparse.Namespace) -> None:
    from tilemix.weights.manifest import load_manifest

    palette = load_manifest(options.model).load_palette()
    if palette is None:
        raise TilemixError("palette-none", model=options.model)
    from tilemix.calibration.trials import Trials
    from tilemix.catalogue.mixes import pick_colors
    from tilemix.pipelines.settings import read_settings
    from tilemix.prompts.template import find_template
    from tilemix.render import Renderer
    from tilemix.system.atomic import write_atomically
    from tilemix.weights.calibration import encode_calibration

    names = None if options.colors is None else [name.strip() for name in options.colors.split(",")]
    chosen = pick_colors(names, palette)
    templates = [find_template(name) for name in load_manifest(options.model).trial_templates]
    renderer = Renderer.load(options.model, read_settings(os.environ))
    folder = ROOT / "build" / "calibration" / options.model
    folder.mkdir(parents=True, exist_ok=True)
    for noisy in ("tilemix.planning", "tilemix.render"):  # a line for each picture would hide the figures
        logging.getLogger(noisy).setLevel(logging.WARNING)
    trials = Trials(renderer, palette, chosen, folder, templates)
    scales = options.lora_scales if renderer.ready.lora_scales else ()
    logger.info(
        "%d pictures at most; about %.1f minutes",
        trials.count(options.strengths, scales),
        trials.count(options.strengths, scales) * trials.estimate() / 60,
    )
    outcome = trials.run(options.strengths, scales)
    path = renderer.ready.model.calibration
    write_atomically(path, encode_calibration(outcome.calibration))
    write_atomically(path.with_suffix(".webp"), _draw_sheet(outcome))
    _tell_choice(outcome.calibration)
    write(f"{path}\n")


def _tell_choice(calibration: Calibration) -> None:
    scale, template = calibration.lora_scale, calibration.prompt_template
    own = "" if scale is None else f", LoRA scale {scale:g}"
    logger.info("chosen: strength %g%s", calibration.strength, own)
    widths = ", ".join(f"{width:g} pixels {name}" for name, width in calibration.granule_width.items())
    if widths:
        logger.info("granules are %s wide; the palette's `granules` say how wide a draft's are", widths)
    if template is not None:
        logger.info("the template %s measured better; name it as `prompt_template` to use it", template)


def _draw_sheet(outcome: Outcome) -> bytes:
    from tilemix.calibration.trials import SIDE
    from tilemix.pictures.sheet import Cell, draw_sheet

    names = list(outcome.pictures)
    grid = [[Cell(outcome.pictures[name][number]) for name in names] for number in range(len(outcome.mixes))]
    labels = [str(mix).replace(", ", "\n") for mix in outcome.mixes]
    sheet = draw_sheet(
        [[Cell(row[0].pixels, label), *row[1:]] for row, label in zip(grid, labels, strict=True)],
        columns=names,
        side=SIDE,
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=SHEET_QUALITY)
    return buffer.getvalue()


def _read_list(name: str) -> Callable[[str], tuple[float, ...]]:
    """Return what reads values of an input, with commas between."""

    def read(text: str) -> tuple[float, ...]:
        row = find_input(name, NumberInput)
        try:
            values = tuple(row.read(part.strip()) for part in text.split(","))
            for value in values:
                row.check(value)
        except TilemixError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return values

    return read
