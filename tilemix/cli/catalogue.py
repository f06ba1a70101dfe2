"""`tilemix catalogue`: draw every row of a file."""

from __future__ import annotations

import argparse
import logging
import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilemix.catalogue import LOCAL
from tilemix.cli.predict import add_input
from tilemix.cli.terminal import write
from tilemix.cli.verbs import add_model
from tilemix.errors import TilemixError
from tilemix.inputs import load_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tilemix.catalogue.engines import Engine
    from tilemix.catalogue.folder import Folder
    from tilemix.cli.verbs import Verbs

logger = logging.getLogger(__name__)

MOST_ACTORS = 10_000


def add_catalogue(verbs: Verbs) -> None:
    """Add `catalogue`."""
    catalogue = verbs.add_parser(
        "catalogue", help="draw every row of a file; a second run draws what is missing"
    )
    catalogue.set_defaults(run=_catalogue, refuse=catalogue.error)
    catalogue.add_argument(
        "file", type=Path, metavar="FILE", help="CSV or JSON lines with a mix or a prompt in each row"
    )
    catalogue.add_argument("folder", type=Path, metavar="OUT", help="the folder to draw into")
    catalogue.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="draw on a Ray cluster, such as head:6379 or auto; without ADDRESS on one of this machine alone",
    )
    catalogue.add_argument("--actors", type=_count, metavar="N", help="workers on Ray; default: all that fit")
    catalogue.add_argument(
        "--threads",
        metavar="N",
        help="of a worker on a CPU; default: $TILEMIX_THREADS, else one per core here",
    )
    catalogue.add_argument(
        "--retry", action="store_true", help="try again the rows that ended their process three times"
    )
    add_model(catalogue)
    for row in load_inputs().values():  # of the rows that do not have their own
        if not row.required:
            add_input(catalogue, row)


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_ACTORS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_ACTORS}")
    return int(text)


def _catalogue(options: argparse.Namespace) -> None:
    from tilemix.catalogue.folder import Folder
    from tilemix.catalogue.progress import Progress
    from tilemix.catalogue.results import write_results
    from tilemix.catalogue.rows import RowFile
    from tilemix.catalogue.run import Stop, draw_catalogue, stop_on_signals

    if options.actors is not None and options.ray is None:
        options.refuse("--actors counts workers on Ray; give --ray, too")
    given: dict[str, Any] = {}  # to every row that does not have its own
    for name, row in load_inputs().items():
        if not row.required and (value := getattr(options, name)) is not None:
            row.check(value)
            given[name] = value
    stop = Stop()
    with ExitStack() as stack:
        rows = RowFile(options.file, given)
        stack.callback(rows.close)
        logger.info("%d rows", rows.count)
        folder = Folder(options.folder)
        stack.callback(folder.close)
        if options.retry:
            folder.ledger.forget_deaths()
        engine = stack.enter_context(_open_engine(options, folder))
        stack.enter_context(stop_on_signals(stop))
        for noisy in ("tilemix.planning", "tilemix.render", "tilemix.prompts"):  # they tell of every picture
            logging.getLogger(noisy).setLevel(logging.ERROR)
        progress = Progress(rows.count)
        try:
            draw_catalogue(rows, folder, engine, progress, stop)
        finally:
            progress.close()
            if progress.has_begun:  # otherwise the results of the run before stand
                summary = write_results(folder, progress, engine.describe())
    write(f"{options.folder / 'index.html'}\n")
    logger.info("%d of %d rows done, %d of them drawn now", summary["done"], rows.count, progress.drawn)
    if stop.is_asked:
        logger.info("stopped; the same command goes on from here")
        raise KeyboardInterrupt
    if summary["failed"]:
        raise TilemixError(
            "catalogue-failed-rows",
            failed=summary["failed"],
            rows=rows.count,
            file=str(options.folder / "results.jsonl"),
        )


@contextmanager
def _open_engine(options: argparse.Namespace, folder: Folder) -> Iterator[Engine]:
    """Load the model here, or in the actors of a Ray cluster."""
    from tilemix.catalogue.cluster import RayEngine
    from tilemix.catalogue.engines import LocalEngine
    from tilemix.catalogue.worker import RendererWorker
    from tilemix.pipelines.settings import parse_threads, read_settings
    from tilemix.pipelines.speed import Precision

    model: str = options.model
    settings = read_settings(os.environ)
    # The same in every process, with Ray and without, because both decide bits; no trial may choose the format.
    threads = parse_threads(options.threads, "--threads") or settings.threads or len(os.sched_getaffinity(0))
    precision = settings.precision or Precision.FP32
    settings = replace(settings, threads=threads, precision=precision)
    load = partial(RendererWorker.load, model, settings, task=options.task)
    if options.ray is None:
        yield LocalEngine(load(), folder)
        return
    with RayEngine(load, address=options.ray, threads=threads, actors=options.actors) as engine:
        yield engine
