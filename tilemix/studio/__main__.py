"""`python -m tilemix.studio [--with-server] [--import FOLDER]`: run the studio, with the local Cog server if wanted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import logging
import os
import sys
from pathlib import Path

import uvicorn

from tilemix.errors import SettingsError, TilemixError
from tilemix.studio import check
from tilemix.studio.app import create_app
from tilemix.studio.importing import import_catalogue
from tilemix.studio.log import log_to_stderr
from tilemix.studio.own_server import place_server, run_own_server, try_port
from tilemix.studio.service import Studio
from tilemix.studio.serving import make_config
from tilemix.studio.settings import Settings
from tilemix.system.environment import check_names

logger = logging.getLogger("tilemix.studio")  # not "__main__"


def main(arguments: list[str] | None = None) -> int:
    """Run until interrupted; return the exit status: 0 done, 1 refused."""
    parser = argparse.ArgumentParser(prog="python -m tilemix.studio", description=__doc__)
    parser.add_argument(
        "--with-server", action="store_true", help="start the local Cog server, and keep it alive"
    )
    parser.add_argument(
        "--check", action="store_true", help="print every setting and what can be reached; start nothing"
    )
    parser.add_argument(
        "--import",
        dest="catalogue",
        type=Path,
        metavar="FOLDER",
        help="take the pictures of a finished catalogue into the gallery, and end",
    )
    options = parser.parse_args(arguments)
    formatter = log_to_stderr()
    try:
        check_names(os.environ)
        settings = Settings.from_environment(os.environ)
        formatter.secrets = settings.secrets
        if (warning := check.warn(settings)) is not None:
            logger.warning("%s", warning)
        if options.check:
            return print_check(settings, with_server=options.with_server)
        if options.catalogue is not None:
            imported = import_catalogue(options.catalogue, settings)
            logger.info("%d pictures taken, %d known already, %d refused", *imported)
            return int(bool(imported.refused))
        port, fault = try_port(settings.host, settings.port)
        if fault is not None:
            raise SettingsError(
                "settings-port-unusable", port=str(port), host=settings.host[:80], reason=fault
            )
        settings = dataclasses.replace(settings, port=port)  # webhooks are sent there
        has_own_server = options.with_server and settings.backend == "cog"
        if has_own_server:
            settings = place_server(settings, is_chosen=bool(os.environ.get("TILEMIX_COG_URL")))
            formatter.secrets = settings.secrets
        studio = Studio(settings)
        with contextlib.ExitStack() as running:
            if has_own_server:
                running.enter_context(run_own_server(settings, is_drawing=lambda: studio.queue.is_awaiting))
            # The studio ends first and cancels what the server draws; the next start draws it again.
            running.enter_context(studio)
            # What is there now stays. Python looked through it again each second under load, and the page waited 60 ms.
            gc.collect()
            gc.freeze()
            uvicorn.Server(make_config(create_app(studio), settings)).run()
    except TilemixError as error:
        sys.stderr.write(f"tilemix.studio: {error}\n")
        return 1
    return 0


def print_check(settings: Settings, *, with_server: bool) -> int:
    """Print what `--check` prints; return the exit status."""
    for line in check.list_settings(settings, os.environ):
        sys.stdout.write(f"{line}\n")
    is_whole = True
    for name, fault in check.find_unreachable(settings, with_server=with_server):
        sys.stdout.write(f"{name}: {fault or 'ok'}\n")
        is_whole = is_whole and fault is None
    return int(not is_whole)


if __name__ == "__main__":
    sys.exit(main())
