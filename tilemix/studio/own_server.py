"""The Cog server that the studio starts for itself: where it listens, what it is told, what it leaves behind.

A Cog server answers to every Host, and takes predictions from whoever reaches it. So ours listens on a loopback address
drawn at random, which a web page can neither know nor find by trying, and it gets no token: a webhook proves itself by
a key in its address, made for one prediction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import getpass
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tilemix.errors import SettingsError
from tilemix.studio.cog_backend import CogBackend, cog_client
from tilemix.studio.server_keeper import ServerKeeper, start_process
from tilemix.studio.settings import Secret
from tilemix.studio.workers import Worker
from tilemix.system.leash import own_folder
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tilemix.studio.settings import Settings

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
KEEPER_SECONDS = 1.0
PORT_SECONDS = 3  # enough for the server of a killed studio to end
EXTRA_BUSY_SECONDS = 60  # beyond the deadline, when a prediction is canceled
NOT_FOR_IT = (
    "REPLICATE_API_TOKEN",
    "TILEMIX_STUDIO_DATABASE",
    "TILEMIX_STUDIO_TOKEN",
    "WEBHOOK_AUTH_TOKEN",
    "WEBHOOK_SECRET",
)


def place_server(settings: Settings, *, is_chosen: bool) -> Settings:
    """Return the settings with the address of our own server and the key of its webhooks; a chosen address is kept.

    Raises:
        SettingsError: the studio would ask another server, or something else listens there.
    """
    key = Secret(secrets.token_urlsafe(32))
    settings = dataclasses.replace(settings, cog_webhook_key=key, cog_webhook_token=None)
    if not is_chosen:
        host = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
        try:
            port, _ = try_port(host, 0)
        except SettingsError:  # a system that has one loopback address
            host, port = LOOPBACK, try_port(LOOPBACK, 0)[0]
        return dataclasses.replace(settings, cog_url=f"http://{host}:{port}")
    parts = urlsplit(settings.cog_url)
    if parts.scheme != "http" or parts.hostname not in {LOOPBACK, "localhost"}:
        raise SettingsError("settings-cog-not-local", url=settings.cog_url[:80])
    deadline = time.monotonic() + PORT_SECONDS
    while (fault := try_port(LOOPBACK, parts.port or 80)[1]) is not None:
        if time.monotonic() > deadline:
            raise SettingsError("settings-cog-port-unusable", url=settings.cog_url[:80], reason=fault)
        time.sleep(0.1)
    return settings


@contextlib.contextmanager
def run_own_server(
    settings: Settings, *, is_drawing: Callable[[], bool], folder: Path = ROOT
) -> Iterator[ServerKeeper]:
    """Keep a Cog server of the predictor in `folder` running in this context; nothing of it is left afterward.

    Args:
        settings: as `place_server` returns them.
        is_drawing: whether the studio waits for a picture; a server that is busy for nobody hangs.
        folder: where predict.py is.
    """
    parts = urlsplit(settings.cog_url)
    command = (sys.executable, "-m", "cog.server.http", "--host", parts.hostname or LOOPBACK)
    with own_folder("tilemix-server-") as own:
        environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT} | {
            # The server starts its worker as `python`.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PORT": str(parts.port or 80),
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "TILEMIX_MODEL": settings.model,
            # It makes two folders for every prediction and never removes them.
            "TMPDIR": str(own),
        }
        # What is compiled is kept, where it would be without a folder of its own.
        compiled = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)
        keeper = ServerKeeper(
            lambda: start_process(command, folder=folder, environment=environment),
            CogBackend(cog_client(settings.cog_url)).health,
            longest_prediction_seconds=settings.deadline_seconds + EXTRA_BUSY_SECONDS,
            is_drawing=is_drawing,
            leftovers=str(own),
        )

        def step() -> bool:
            keeper.step()
            return False

        worker = Worker("keeper", step, idle_seconds=KEEPER_SECONDS)
        worker.start()
        try:
            yield keeper
        finally:
            worker.stop()
            worker.join()
            keeper.stop()


def try_port(host: str, port: int) -> tuple[int, str | None]:
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
