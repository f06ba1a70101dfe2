"""`tilemix predict`: draw a tile."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.measure import list_shares
from tilemix.errors import TilemixError
from tilemix.system.garbage import uncollected

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "miniature"
SUFFIXES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


def add_predict(verbs: Verbs) -> None:
    """Add `predict`."""
    predict = verbs.add_parser("predict", help="draw a tile")
    predict.set_defaults(run=_predict)
    predict.add_argument("prompt", help='the colors of the tile: "50%% red, 30%% black, 20%% pearl"')
    predict.add_argument(
        "-o", "--output", type=Path, default=Path("tile.png"), metavar="FILE", help="default: tile.png"
    )
    predict.add_argument("--negative-prompt", metavar="TEXT", help="what to avoid (default: the template's)")
    predict.add_argument("--seed", type=int, metavar="N", help="0 to 4294967295 (default: a fresh draw)")
    predict.add_argument("--width", type=int, metavar="N", help="256 to 1536 pixels, a multiple of 8")
    predict.add_argument("--height", type=int, metavar="N", help="256 to 1536 pixels, a multiple of 8")
    predict.add_argument("--num-inference-steps", type=int, metavar="N", help="1 to 100")
    predict.add_argument("--guidance-scale", type=float, metavar="X", help="1 to 20")
    predict.add_argument("--lora-scale", type=float, metavar="X", help="0 to 1.5; 1 is as trained")
    predict.add_argument(
        "--output-format", choices=sorted(set(SUFFIXES.values())), help="default: FILE's suffix"
    )
    predict.add_argument("--model", metavar="NAME", help=f"default: $TILEMIX_MODEL, else {DEFAULT_MODEL}")
    predict.add_argument(
        "--json", action="store_true", help="print the record and the measured shares as JSON"
    )


def _predict(options: argparse.Namespace) -> None:
    from tilemix.request import GenerationRequest

    output_format = options.output_format or SUFFIXES.get(options.output.suffix.lower())
    if output_format is None:
        raise TilemixError(
            f"{options.output.name!r} has no suffix of {', '.join(SUFFIXES)}; use --output-format"
        )
    if not options.output.parent.is_dir():
        raise TilemixError(f"{options.output}: folder {str(options.output.parent)!r} does not exist")
    request = GenerationRequest(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        width=options.width,
        height=options.height,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        lora_scale=options.lora_scale,
        output_format=output_format,
    )
    with uncollected():
        from tilemix.drawing import draw_to_file
        from tilemix.pipelines.settings import read_settings
        from tilemix.render import Renderer

        model = options.model or os.environ.get("TILEMIX_MODEL") or DEFAULT_MODEL
        renderer = Renderer.load(model, read_settings(os.environ))
    drawing = draw_to_file(renderer, options.output, request, on_step=_show_step)
    rendered, measured = drawing.rendered, drawing.measured
    took = sum(rendered.seconds.values())
    logger.info("%s: %d kB, drawn in %.1f s", options.output, drawing.size // 1000, took)
    if options.json:
        import msgspec

        answer = {"file": str(options.output), "record": rendered.record, "seconds": rendered.seconds}
        if measured:
            answer |= {"measured": measured}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        return
    sys.stdout.write(f"{options.output}\n")
    if measured:
        logger.info("measured: %s", list_shares(measured.shares))


def _show_step(done: int, total: int) -> None:
    logger.info("denoise %d/%d %d%%", done, total, 100 * done // total)
