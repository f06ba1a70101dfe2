"""The whole studio on a real port, over a real Cog server or its stand-in, and a browser to look at it."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from tilemix.studio.app import create_app
from tilemix.studio.limits import RateLimit
from tilemix.studio.service import Studio
from tilemix.studio.serving import make_config
from tilemix.studio.settings import Secret, Settings

CHROMIUM = Path("/usr/bin/chromium")  # Debian's; Playwright's own comes from no package index
WEBHOOK_TOKEN = "a-token-of-the-webhooks"  # noqa: S105  a test's own
START_SECONDS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def run_live_studio(folder: Path, cog_url: str, **changes) -> Iterator[str]:
    """Run a studio; give its address."""
    port = free_port()
    settings = Settings(
        folder=folder,
        database_url=Secret(f"sqlite:///{folder / 'studio.sqlite3'}"),
        cog_url=cog_url,
        cog_webhook_token=Secret(WEBHOOK_TOKEN),
        port=port,
        **changes,
    )
    with Studio(settings) as studio:
        app = create_app(studio, rate_limit=RateLimit())
        with run_server_thread(make_config(app, settings)):
            yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def run_server_thread(config: uvicorn.Config) -> Iterator[None]:
    """Serve in a thread of this process."""
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            assert time.monotonic() < deadline, "the studio does not start"
            time.sleep(0.02)
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def run_miniature(folder: Path) -> Iterator[str]:
    """Run the real Cog server with the miniature, whose webhooks the studio takes; give its address."""
    from tests.test_server import serve

    before = os.environ.get("WEBHOOK_AUTH_TOKEN")
    os.environ["WEBHOOK_AUTH_TOKEN"] = WEBHOOK_TOKEN
    try:
        folder.mkdir()
        with serve(folder, schema=True) as server:
            yield str(server.client.base_url).rstrip("/")
    finally:
        if before is None:
            del os.environ["WEBHOOK_AUTH_TOKEN"]
        else:
            os.environ["WEBHOOK_AUTH_TOKEN"] = before


@contextlib.contextmanager
def run_chromium() -> Iterator:
    """Run Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Tests may run as root, where Chromium's own sandbox does not start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
