"""`python -m tilemix.studio [--with-server]`: run the studio, and with it the local Cog server."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import uvicorn

from tilemix.errors import SettingsError, TilemixError
from tilemix.project import ROOT
from tilemix.studio.app import create_app
from tilemix.studio.backends import CogBackend
from tilemix.studio.server_keeper import ServerKeeper, start_process
from tilemix.studio.service import Studio
from tilemix.studio.settings import Secret, Settings, mask
from tilemix.studio.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER_HOST = "127.0.0.1"
KEEPER_SECONDS = 1.0
PORT_SECONDS = 3  # in which the server of a studio that was killed ends
SHUTDOWN_SECONDS = 3
EXTRA_BUSY_SECONDS = 60  # over the deadline, at which a prediction is canceled


class MaskingFormatter(logging.Formatter):
    """Writes log lines, tracebacks included, with stars in place of secrets, whoever wrote them."""

    secrets: frozenset[str] = frozenset()  # known ones; what looks like a key is masked anyway

    def format(self, record: logging.LogRecord) -> str:
        """Return the masked lines of a record."""
        return mask(super().format(record), self.secrets)


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
        if settings.backend == "cog" and settings.cog_webhook_token is None:
            # For the server that is started here; one that runs already has its own, or none.
            token = Secret(secrets.token_urlsafe(32)) if options.with_server else None
            settings = dataclasses.replace(settings, cog_webhook_token=token)
        formatter.secrets = settings.secrets
        if not _is_free(settings.host, settings.port):
            raise SettingsError(f"TILEMIX_STUDIO_PORT is {settings.port}, which is in use at {settings.host}")
        studio = Studio(settings)
        # The studio ends first, and so lets go of what the server draws: the next start takes it up again.
        is_wanted = options.with_server and settings.backend == "cog"
        with _server(settings, is_wanted=is_wanted), studio:
            uvicorn.run(
                create_app(studio),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,  # somebody may be waiting for a picture
            )
    except TilemixError as error:
        sys.stderr.write(f"tilemix.studio: {error}\n")
        return 1
    return 0


@contextlib.contextmanager
def _server(settings: Settings, *, is_wanted: bool) -> Iterator[None]:
    """Keep a Cog server running meanwhile, started as `make serve` does."""
    if not is_wanted:
        yield
        return
    port = _find_server_port(settings.cog_url)
    environment = dict(os.environ) | {
        # The server starts its worker as `python`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "TILEMIX_MODEL": settings.model,
    }
    for name in ("REPLICATE_API_TOKEN", "WEBHOOK_SECRET", "TILEMIX_STUDIO_TOKEN", "TILEMIX_STUDIO_DATABASE"):
        environment.pop(name, None)  # the model has no use for them
    if settings.cog_webhook_token is not None:
        environment["WEBHOOK_AUTH_TOKEN"] = settings.cog_webhook_token.reveal()
    command = (sys.executable, "-m", "cog.server.http", "--host", SERVER_HOST)
    keeper = ServerKeeper(
        lambda: start_process(command, folder=ROOT, environment=environment),
        CogBackend(settings.cog_url).health,
        longest_prediction_seconds=settings.deadline_seconds + EXTRA_BUSY_SECONDS,
    )

    def step() -> bool:
        keeper.step()
        return False

    worker = Worker("keeper", step, idle_seconds=KEEPER_SECONDS)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
        worker.join()
        keeper.stop()


def _find_server_port(url: str) -> int:
    """Return the port that a server of ours shall listen on.

    Raises:
        SettingsError: it would not be the one that the studio asks, or something else listens there.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in {SERVER_HOST, "localhost"}:
        raise SettingsError(
            f"TILEMIX_COG_URL is {url[:80]!r}; with --with-server expected http://{SERVER_HOST}:PORT"
        )
    port = parts.port or 80
    deadline = time.monotonic() + PORT_SECONDS
    while not _is_free(SERVER_HOST, port):
        if time.monotonic() > deadline:
            raise SettingsError(
                f"port {port} of TILEMIX_COG_URL is in use; end what listens there, or name another port"
            )
        time.sleep(0.1)
    return port


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last one may linger
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def log_to_stderr() -> MaskingFormatter:
    """Set logging up; return its formatter, to be told the secrets."""
    formatter = MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every question about health
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return formatter


if __name__ == "__main__":
    sys.exit(main())
