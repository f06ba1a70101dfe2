"""`python -m tilemix.studio [--with-server]`: run the studio, with the local Cog server if wanted."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
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
from tilemix.studio.app import create_app
from tilemix.studio.cog_backend import CogBackend, cog_client
from tilemix.studio.server_keeper import ServerKeeper, start_process
from tilemix.studio.service import Studio
from tilemix.studio.settings import Secret, Settings, mask
from tilemix.studio.workers import Worker
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("tilemix.studio")  # not "__main__"

SERVER_HOST = "127.0.0.1"
KEEPER_SECONDS = 1.0
PORT_SECONDS = 3  # enough for the server of a killed studio to end
SHUTDOWN_SECONDS = 3
EXTRA_BUSY_SECONDS = 60  # beyond the deadline, when a prediction is canceled


class MaskingFormatter(logging.Formatter):
    """Replaces secrets by stars in every log line and traceback, whoever wrote it."""

    secrets: frozenset[str] = frozenset()  # the known ones; what looks like a key is masked anyway

    def format(self, record: logging.LogRecord) -> str:
        """Format a record and mask it."""
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
            # For the server that is started here; one that runs already has its own token or none.
            token = Secret(secrets.token_urlsafe(32)) if options.with_server else None
            settings = dataclasses.replace(settings, cog_webhook_token=token)
        formatter.secrets = settings.secrets
        port, fault = _try_port(settings.host, settings.port)
        if fault is not None:
            raise SettingsError(
                "settings-port-unusable", port=str(port), host=settings.host[:80], reason=fault
            )
        settings = dataclasses.replace(settings, port=port)  # webhooks are sent there
        is_wanted = options.with_server and settings.backend == "cog"
        if is_wanted:
            settings = place_server(settings, is_chosen=bool(os.environ.get("TILEMIX_COG_URL")))
        studio = Studio(settings)
        # The studio ends first and cancels what the server draws; the next start draws it again.
        with _server(settings, is_wanted=is_wanted), studio:
            uvicorn.run(
                create_app(studio),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,  # a caller may be waiting for a picture
            )
    except TilemixError as error:
        sys.stderr.write(f"tilemix.studio: {error}\n")
        return 1
    return 0


@contextlib.contextmanager
def _server(settings: Settings, *, is_wanted: bool) -> Iterator[None]:
    """Keep a Cog server running in this context, started like `make serve`."""
    if not is_wanted:
        yield
        return
    port = urlsplit(settings.cog_url).port or 80
    environment = dict(os.environ) | {
        # The server starts its worker as `python`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "TILEMIX_MODEL": settings.model,
    }
    for name in ("REPLICATE_API_TOKEN", "WEBHOOK_SECRET", "TILEMIX_STUDIO_TOKEN", "TILEMIX_STUDIO_DATABASE"):
        environment.pop(name, None)  # the model does not need them
    if settings.cog_webhook_token is not None:
        environment["WEBHOOK_AUTH_TOKEN"] = settings.cog_webhook_token.reveal()
    command = (sys.executable, "-m", "cog.server.http", "--host", SERVER_HOST)
    keeper = ServerKeeper(
        lambda: start_process(command, folder=ROOT, environment=environment),
        CogBackend(cog_client(settings.cog_url)).health,
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


def place_server(settings: Settings, *, is_chosen: bool) -> Settings:
    """Return the settings with the address for our own server; an address that was chosen is kept.

    Raises:
        SettingsError: the studio would ask another server, or something else listens there.
    """
    parts = urlsplit(settings.cog_url)
    if parts.scheme != "http" or parts.hostname not in {SERVER_HOST, "localhost"}:
        raise SettingsError("settings-cog-not-local", url=settings.cog_url[:80])
    port = parts.port or 80
    deadline = time.monotonic() + PORT_SECONDS
    while (fault := _try_port(SERVER_HOST, port)[1]) is not None:
        if not is_chosen:
            free, _ = _try_port(SERVER_HOST, 0)
            logger.info("port %d: %s; the Cog server gets port %d", port, fault, free)
            return dataclasses.replace(settings, cog_url=f"http://{SERVER_HOST}:{free}")
        if time.monotonic() > deadline:
            raise SettingsError("settings-cog-port-unusable", url=settings.cog_url[:80], reason=fault)
        time.sleep(0.1)
    return settings


def _try_port(host: str, port: int) -> tuple[int, str | None]:
    """Return the port (a free one for 0) and why it cannot be listened on, or None if it can.

    Raises:
        SettingsError: the host is not one of this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may linger
        try:
            probe.bind((host, port))
        except (socket.gaierror, TypeError) as error:  # TypeError: the host is not UTF-8
            reason = (error.strerror if isinstance(error, OSError) else None) or "not a host's name"
            raise SettingsError("settings-host-unusable", host=host[:80], reason=reason.lower()) from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingsError(
                    "settings-host-unusable", host=host[:80], reason="not an address of this machine"
                ) from error
            return port, (error.strerror or type(error).__name__).lower()
        return probe.getsockname()[1], None


def log_to_stderr() -> MaskingFormatter:
    """Set up logging; return its formatter, so that it can be told the secrets."""
    formatter = MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for every health check
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return formatter


if __name__ == "__main__":
    sys.exit(main())
