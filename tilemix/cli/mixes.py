"""`tilemix mixes`: write every mix of some colors."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.outputs import check_output, open_output
from tilemix.cli.terminal import write
from tilemix.cli.verbs import add_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tilemix.catalogue.mixes import MixRange
    from tilemix.cli.verbs import Verbs
    from tilemix.colors.palette import Palette

logger = logging.getLogger(__name__)

FORMATS = ("csv", "jsonl")
BLOCK = 1000  # mixes written at once


def add_mixes(verbs: Verbs) -> None:
    """Add `mixes`."""
    mixes = verbs.add_parser("mixes", help="write every mix of some colors, for `catalogue`")
    mixes.set_defaults(run=_mixes)
    mixes.add_argument(
        "--colors", metavar="NAMES", help="with commas between them; default: all of the model's palette"
    )
    mixes.add_argument(
        "--step", type=_percent, default=Decimal(10), metavar="PERCENT", help="of the shares; default: 10"
    )
    mixes.add_argument(
        "--min-share",
        type=_percent,
        default=Decimal(10),
        metavar="PERCENT",
        help="of each color of a mix; default: 10",
    )
    mixes.add_argument("--min-colors", type=int, default=1, metavar="N", help="of a mix; default: 1")
    mixes.add_argument("--max-colors", type=int, default=3, metavar="N", help="of a mix; default: 3")
    mixes.add_argument("--format", choices=FORMATS, help="default: FILE's suffix, else csv")
    mixes.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    add_model(mixes)


def _percent(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _mixes(options: argparse.Namespace) -> None:
    from tilemix.catalogue.mixes import MixRange, pick_colors
    from tilemix.weights.manifest import load_manifest

    manifest = load_manifest(options.model)
    palette = manifest.load_palette()
    names = [name.strip() for name in options.colors.split(",")] if options.colors is not None else None
    mixes = MixRange(
        pick_colors(names, palette),
        step=options.step,
        least_share=options.min_share,
        fewest_colors=options.min_colors,
        most_colors=options.max_colors,
    )
    _warn_of_the_palette(mixes, palette)
    logger.info("%d mixes", mixes.count())
    suffix = options.output.suffix.removeprefix(".").lower() if options.output else ""
    lines = _write_lines(mixes, options.format or (suffix if suffix in FORMATS else "csv"))
    with _open_output(options.output) as write_text:
        while block := "".join(islice(lines, BLOCK)):
            write_text(block)


def _warn_of_the_palette(mixes: MixRange, palette: Palette | None) -> None:
    """Say where mixes leave what the model was trained on."""
    if palette is None:
        return
    if palette.most_colors is not None and mixes.most_colors > palette.most_colors:
        logger.warning(
            "mixes of up to %d colors: the model was trained on up to %d",
            mixes.most_colors,
            palette.most_colors,
        )
    if palette.step is not None and mixes.step % palette.step:
        logger.warning(
            "shares in steps of %s%%: the model was trained on steps of %d%%", mixes.step, palette.step
        )


def _write_lines(mixes: MixRange, form: str) -> Iterator[str]:
    if form == "jsonl":
        for mix in mixes:
            yield json.dumps({"mix": str(mix)}, ensure_ascii=False) + "\n"
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["mix"])
    for mix in mixes:
        writer.writerow([str(mix)])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


@contextlib.contextmanager
def _open_output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Open the file, which appears complete or not at all, or standard output; yield what writes text to it."""
    if path is None:
        yield write
        return
    check_output(path)
    with open_output(path) as file:
        yield lambda text: file.write(text.encode())
