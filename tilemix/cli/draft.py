"""`tilemix draft`: write the layout of a mix with its legend, without a model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.outputs import check_output, open_output
from tilemix.cli.predict import add_input
from tilemix.cli.terminal import write
from tilemix.cli.verbs import add_model
from tilemix.errors import TilemixError
from tilemix.inputs import load_inputs

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".svg")
INPUTS = ("seed", "width", "height", "granule_size")
MOST_CHARACTERS = 80  # of a text, in an error


def add_draft(verbs: Verbs) -> None:
    """Add `draft`."""
    draft = verbs.add_parser("draft", help="write a map of the granules of a mix, without a model")
    draft.set_defaults(run=_draft)
    draft.add_argument("text", help="color mix, such as 50%% red, 30%% black, 20%% pearl")
    draft.add_argument(
        "-o", "--output", type=Path, default=Path("draft.png"), metavar="FILE", help="default: draft.png"
    )
    for name in INPUTS:
        add_input(draft, load_inputs()[name])
    add_model(draft, "whose colors and granules")


def _draft(options: argparse.Namespace) -> None:
    from tilemix.drafts.draft import draft_mix, encode_png_with_legend, encode_svg
    from tilemix.prompts.rewrite import log_notes, rewrite
    from tilemix.prompts.template import find_template
    from tilemix.request import GenerationRequest
    from tilemix.weights import load_manifest

    check_output(options.output, SUFFIXES)
    manifest = load_manifest(options.model)
    template = find_template(manifest.prompt_template)
    given = {name: getattr(options, name) for name in INPUTS if getattr(options, name) is not None}
    request = GenerationRequest(prompt=options.text, **given)
    resolved = request.resolve(manifest.defaults, negative_prompt="", lora_scales={})
    palette = manifest.load_palette()
    prompt = rewrite(options.text, template, palette)
    mix = prompt.sent
    if mix is None:
        raise TilemixError("mix-missing", typed=options.text[:MOST_CHARACTERS])
    log_notes(prompt)
    draft = draft_mix(
        mix,
        palette,
        resolved.width,
        resolved.height,
        seed=resolved.seed,
        granule_size=resolved.granule_size,
    )
    if draft is None:
        raise TilemixError("draft-no-swatch", mix=str(mix)[:MOST_CHARACTERS])
    is_svg = options.output.suffix.lower() == ".svg"
    with open_output(options.output) as file:
        file.write(encode_svg(draft) if is_svg else encode_png_with_legend(draft))
    logger.info("Using seed: %d", resolved.seed)
    write(f"{options.output}\n")
