"""`tilemix record`: print how a picture was made."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write, write_json

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

logger = logging.getLogger(__name__)


def add_record(verbs: Verbs) -> None:
    """Add `record`."""
    record = verbs.add_parser(
        "record", help="print how a picture was made, as JSON; other programs' pictures, too"
    )
    record.set_defaults(run=_record)
    record.add_argument("file", type=Path)
    record.add_argument("--parameters", action="store_true", help="print it as the web UIs' parameters text")


def _record(options: argparse.Namespace) -> None:
    from tilemix.pictures.infotext import write_infotext
    from tilemix.pictures.reading import read_origin
    from tilemix.pictures.record import Record, parameters_text

    origin = read_origin(options.file)
    if isinstance(origin, Record):
        if options.parameters:
            write(parameters_text(origin) + "\n")
        else:
            write_json(origin, indent=2)
        return
    for note in origin.notes:
        logger.warning("%s", note)
    if options.parameters:
        text = write_infotext(origin.prompt, origin.negative_prompt, origin.parameters.items())
        write(text + "\n")
    else:
        told = ("prompt", "negative_prompt", "parameters")
        write_json({name: getattr(origin, name) for name in told}, indent=2)
