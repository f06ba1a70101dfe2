"""`tilemix record`: print the record inside a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs


def add_record(verbs: Verbs) -> None:
    """Add `record`."""
    record = verbs.add_parser("record", help="print the record inside a picture as JSON")
    record.set_defaults(run=_record)
    record.add_argument("file", type=Path)
    record.add_argument("--parameters", action="store_true", help="print it as the web UIs' parameters text")


def _record(options: argparse.Namespace) -> None:
    import msgspec

    from tilemix.pictures.reading import read_record
    from tilemix.pictures.record import parameters_text

    record = read_record(options.file)
    if options.parameters:
        sys.stdout.write(parameters_text(record) + "\n")
    else:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n")
