"""`python -m tilemix.studio [--with-server]`: run the studio, with the local Cog server if wanted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys

import uvicorn

from tilemix.errors import SettingsError, TilemixError
from tilemix.studio.app import create_app
from tilemix.studio.log import log_to_stderr
from tilemix.studio.own_server import place_server, run_own_server, try_port
from tilemix.studio.service import Studio
from tilemix.studio.serving import make_config
from tilemix.studio.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    """Run until interrupted; return the exit status: 0 done, 1 refused."""
    parser = argparse.ArgumentParser(prog="python -m tilemix.studio", description=__doc__)
    parser.add_argument(
        "--with-server", action="store_true", help="start the local Cog server, and keep it alive"
    )
    options = parser.parse_args(arguments)
    formatter = log_to_stderr()
    try:
        settings = Settings.from_environment(os.environ)
        formatter.secrets = settings.secrets
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
            uvicorn.Server(make_config(create_app(studio), settings)).run()
    except TilemixError as error:
        sys.stderr.write(f"tilemix.studio: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
