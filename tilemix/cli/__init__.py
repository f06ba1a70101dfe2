"""The command line: `tilemix VERB`. Results go to stdout, everything else to stderr.

Exit status: 0 done; 1 refused or failed, with one line that says why; 2 wrong usage.
Each verb imports what it needs when it runs, so that `tilemix rewrite` does not wait for torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tilemix.cli.calibrate import add_calibrate
from tilemix.cli.catalogue import add_catalogue
from tilemix.cli.compare import add_compare
from tilemix.cli.draft import add_draft
from tilemix.cli.inspect import add_inspect
from tilemix.cli.measure import add_measure
from tilemix.cli.mixes import add_mixes
from tilemix.cli.palette import add_palette
from tilemix.cli.predict import add_predict
from tilemix.cli.record import add_record
from tilemix.cli.rewrite import add_rewrite
from tilemix.cli.terminal import make_printable
from tilemix.cli.train import add_train
from tilemix.cli.weights import add_weights
from tilemix.errors import TilemixError
from tilemix.system.environment import check_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    parser = make_parser()
    if sys.stderr is None:  # as in `tilemix ... 2>&-`
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  open as long as the process
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("tilemix").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        check_names(os.environ)
        options.run(options)
    except TilemixError as error:
        sys.stderr.write(f"tilemix {options.verb}: {make_printable(str(error))}\n")
        return 1
    except BrokenPipeError:
        return 1  # the reader is gone, as in `tilemix ... | head`
    except KeyboardInterrupt:
        sys.stderr.write(f"tilemix {options.verb}: interrupted\n")
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of every verb."""
    parser = argparse.ArgumentParser(
        prog="tilemix", description="Pictures of rubber floor tiles from color mixes."
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only warnings on standard error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_predict(verbs)
    add_draft(verbs)
    add_rewrite(verbs)
    add_record(verbs)
    add_measure(verbs)
    add_palette(verbs)
    add_mixes(verbs)
    add_catalogue(verbs)
    add_inspect(verbs)
    add_weights(verbs)
    add_train(verbs)
    add_calibrate(verbs)
    add_compare(verbs)
    return parser
