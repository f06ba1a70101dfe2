"""`tilemix measure`: measure the shares of a mix's colors in a picture."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.outputs import check_output, open_output
from tilemix.cli.terminal import write, write_json
from tilemix.errors import TilemixError

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs
    from tilemix.pictures.record import Record

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 80  # of a text, in an error


def add_measure(verbs: Verbs) -> None:
    """Add `measure`."""
    measure = verbs.add_parser("measure", help="measure the shares of a mix's colors in a picture")
    measure.set_defaults(run=_measure)
    measure.add_argument("file", type=Path)
    measure.add_argument("--mix", metavar="TEXT", help="default: the mix in the picture's record")
    by = measure.add_mutually_exclusive_group()
    by.add_argument(
        "--model",
        metavar="NAME",
        help="by this model's palette; default: that of the record's, else the chart",
    )
    by.add_argument("--palette", metavar="FILE", help="measure by this palette, a file or the name of one")
    measure.add_argument("--map", metavar="PNG", type=Path, help="draw which color each place was taken for")
    measure.add_argument("--json", action="store_true", help="as JSON")


def _measure(options: argparse.Namespace) -> None:
    from tilemix.colors.palette import load_palette
    from tilemix.pictures.files import read_pixels
    from tilemix.pictures.measure import draw_labels, has_swatch, measure_shares
    from tilemix.pictures.photographed import find_tile
    from tilemix.pictures.png import encode_png
    from tilemix.pictures.reading import read_record
    from tilemix.prompts.reading import read_mix

    if options.map is not None:
        check_output(options.map, (".png",), source=options.file)
    pixels = find_tile(read_pixels(options.file))
    record = None if options.mix is not None else read_record(options.file)
    text = options.mix if record is None else record.prompt
    name = options.palette or (palette_of(options.model) if options.model else _find_own(record))
    palette = load_palette(name) if name else None
    read = read_mix(text, palette)
    for note in read.notes:
        logger.warning("%s", note)
    mix = read.sent
    if mix is None:
        raise TilemixError("mix-missing", typed=text[:MOST_CHARACTERS])
    if not has_swatch(mix, palette):
        raise TilemixError("mix-not-on-chart", mix=str(mix)[:MOST_CHARACTERS])
    measured = measure_shares(pixels, mix, palette)
    if options.map is not None:
        with open_output(options.map) as file:
            file.write(encode_png(draw_labels(pixels, mix, palette), []))
    if options.json:
        write_json(measured)
        return
    write(f"{list_shares(measured.shares)}\n")
    found = f" ({list_shares(measured.others)})" if measured.others else ""
    write(f"not asked for: {measured.not_asked:.1f}%{found}\n")
    write(f"mean delta E 2000: {measured.mean_delta_e:.1f}\n")
    errors = ", ".join(f"{color} {error:.1f}" for color, error in measured.color_errors.items())
    write(f"delta E 2000 of each color: {errors}\n")
    for doubt in measured.uncertain:
        write(f"uncertain: {doubt}\n")


def _find_own(record: Record | None) -> str | None:
    """Return the palette of the model that drew a picture; None: it is not known, or has none."""
    from tilemix.weights.manifest import load_manifest

    if record is None:
        return None
    try:
        return load_manifest(record.model).palette
    except TilemixError:  # it is not packaged here
        return None


def palette_of(model: str) -> str:
    """Return the name of a packaged model's palette."""
    from tilemix.weights.manifest import load_manifest

    name = load_manifest(model).palette
    if name is None:
        raise TilemixError("palette-none", model=model)
    return name


def list_shares(shares: dict[str, float]) -> str:
    """Return shares, color -> percent, as one line of text."""
    return ", ".join(f"{percent:.1f}% {color}" for color, percent in shares.items())
