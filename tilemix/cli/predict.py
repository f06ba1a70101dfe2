"""`tilemix predict`: draw a tile."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.measure import list_shares
from tilemix.cli.terminal import write, write_json
from tilemix.cli.verbs import add_model
from tilemix.errors import LIST_SEPARATOR, TilemixError
from tilemix.inputs import ChoiceInput, Input, IntegerInput, NumberInput, describe, find_input, load_inputs
from tilemix.system.garbage import uncollected

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs
    from tilemix.request import GenerationRequest

logger = logging.getLogger(__name__)

OUTPUT_FORMAT = "output_format"  # usually follows from the file's suffix
SUFFIXES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


def add_predict(verbs: Verbs) -> None:
    """Add `predict`."""
    predict = verbs.add_parser("predict", help="draw a tile")
    predict.set_defaults(run=_predict)
    predict.add_argument(
        "-o", "--output", type=Path, default=Path("tile.png"), metavar="FILE", help="default: tile.png"
    )
    for row in load_inputs().values():
        if row.name != OUTPUT_FORMAT:
            add_input(predict, row)
    predict.add_argument(
        "--output-format",
        choices=find_input(OUTPUT_FORMAT, ChoiceInput).choices,
        help="default: FILE's suffix",
    )
    add_model(predict)
    predict.add_argument(
        "--json", action="store_true", help="print the record and the measured shares as JSON"
    )


def add_input(parser: argparse.ArgumentParser, row: Input) -> None:
    """Add the argument for one input of predict()."""
    text = describe(row, left_out="the model's own", with_limits=True).replace("%", "%%")
    option = f"--{row.name.replace('_', '-')}"
    if row.required:
        parser.add_argument(row.name, help=text)
    elif isinstance(row, IntegerInput):
        parser.add_argument(option, type=partial(_read_integer, row), metavar="N", help=text)
    elif isinstance(row, NumberInput):
        parser.add_argument(option, type=float, metavar="X", help=text)
    elif isinstance(row, ChoiceInput):
        parser.add_argument(option, choices=row.choices, default=row.default, help=text)
    else:
        parser.add_argument(option, metavar="TEXT", help=text)


def _read_integer(row: IntegerInput, text: str) -> int:
    """Return the integer of an option, refused in tilemix's words instead of argparse's "invalid int value"."""
    try:
        return row.read(text)
    except TilemixError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _predict(options: argparse.Namespace) -> None:
    from tilemix.request import GenerationRequest

    output_format = options.output_format or SUFFIXES.get(options.output.suffix.lower())
    if output_format is None:
        known = LIST_SEPARATOR.join(SUFFIXES)
        raise TilemixError("picture-unknown-suffix", file=options.output.name, known=known)
    if options.output.is_dir():
        raise TilemixError("file-not-a-file", file=str(options.output))
    folder = options.output.parent
    if not folder.is_dir():
        raise TilemixError("file-no-folder", file=str(options.output), folder=str(folder))
    given = {name: getattr(options, name) for name in load_inputs()}
    request = GenerationRequest(**given | {OUTPUT_FORMAT: output_format})
    model: str = options.model
    _check_text(request, model)  # a slip in the text is told before the model is loaded
    with uncollected():
        from tilemix.drawing import draw_to_file
        from tilemix.pipelines.settings import read_settings
        from tilemix.render import Renderer

        renderer = Renderer.load(model, read_settings(os.environ))
    drawing = draw_to_file(renderer, options.output, request, on_step=_show_step)
    rendered, measured = drawing.rendered, drawing.measured
    took = sum(rendered.seconds.values())
    logger.info("%s: %d kB, drawn in %.1f s", options.output, drawing.size // 1000, took)
    if options.json:
        answer = {"file": str(options.output), "record": rendered.record, "seconds": rendered.seconds}
        if measured:
            answer |= {"measured": measured}
        write_json(answer)
        return
    write(f"{options.output}\n")
    if measured:
        logger.info("measured: %s", list_shares(measured.shares))


def _check_text(request: GenerationRequest, model: str) -> None:
    """Read the text as the renderer will.

    Raises:
        PromptError: it cannot be read.
    """
    from tilemix.prompts.rewrite import rewrite
    from tilemix.prompts.template import find_template
    from tilemix.weights import load_manifest
    from tilemix.weights.prompting import make_context

    manifest = load_manifest(model)
    context = make_context(
        manifest,
        seed=request.seed or 0,
        steps=request.num_inference_steps or manifest.defaults.num_inference_steps,
    )
    template = find_template(manifest.prompt_template)
    rewrite(
        request.prompt,
        template,
        manifest.load_palette(),
        negative_prompt=request.negative_prompt,
        context=context,
    )


def _show_step(done: int, total: int) -> None:
    logger.info("denoise %d/%d %d%%", done, total, 100 * done // total)
