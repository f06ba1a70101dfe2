"""`tilemix record`: print the record inside a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write, write_json

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs


def add_record(verbs: Verbs) -> None:
    """Add `record`."""
    record = verbs.add_parser("record", help="print the record inside a picture as JSON")
    record.set_defaults(run=_record)
    record.add_argument("file", type=Path)
    record.add_argument("--parameters", action="store_true", help="print it as the web UIs' parameters text")


def _record(options: argparse.Namespace) -> None:

    from tilemix.pictures.reading import read_record
    from tilemix.pictures.record import parameters_text

    record = read_record(options.file)
    if options.parameters:
        write(parameters_text(record) + "\n")
    else:
        write_json(record, indent=2)
