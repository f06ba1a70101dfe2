"""The Cog server that a studio starts, with a real one: its webhooks, its stopped worker, what it leaves behind."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from tests.flat_predictor import write_predictor
from tests.live_studio import free_port, run_server_thread
from tilemix.studio.app import create_app
from tilemix.studio.own_server import place_server, run_own_server
from tilemix.studio.service import Studio
from tilemix.studio.settings import Secret, Settings
from tilemix.system.project import ROOT

START_SECONDS = 60


@contextlib.contextmanager
def run_studio(folder: Path, seconds: float):
    """A studio with a server of its own; gives a client and the keeper."""
    write_predictor(folder / "predictor", seconds=seconds)
    settings = Settings(
        folder=folder, database_url=Secret(f"sqlite:///{folder / 'studio.sqlite3'}"), port=free_port()
    )
    settings = place_server(settings, is_chosen=False)
    studio = Studio(settings)
    with (
        run_own_server(
            settings, is_drawing=lambda: studio.queue.is_awaiting, folder=folder / "predictor"
        ) as keeper,
        studio,
        run_server_thread(uvicorn.Config(create_app(studio), port=settings.port, log_config=None)),
        httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", trust_env=False) as client,
    ):
        yield client, keeper


def wait_until(condition, seconds=START_SECONDS):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def ask(client) -> str:
    return client.post("/api/predictions", json={"prompt": "100% red", "seed": 7}).json()["id"]


def look(client, identity) -> dict:
    return client.get(f"/api/predictions/{identity}").json()


def find_worker(keeper) -> int:
    """The server's worker: its one child."""
    tasks = Path(f"/proc/{keeper.process_id}/task").glob("*/children")
    (child,) = {child for task in tasks for child in task.read_text().split()}
    return int(child)


@pytest.mark.slow
def test_its_webhooks_come_and_a_stopped_worker_is_replaced_when_its_picture_is_canceled(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_studio(tmp_path, seconds=1.5) as (client, keeper):
        drawn = ask(client)
        assert wait_until(lambda: look(client, drawn)["progress"])["steps"] == 4  # by a webhook
        key = {"prediction": drawn, "key": "0" * 64}
        assert client.post("/webhooks/cog", params=key, content=b"{}").status_code == 401
        wait_until(lambda: look(client, drawn)["is_done"])
        worker = find_worker(keeper)
        stopped, next_one = ask(client), ask(client)
        wait_until(lambda: look(client, stopped)["status"] == "processing")
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        client.post(f"/api/predictions/{stopped}/cancel")
        wait_until(lambda: look(client, stopped)["status"] == "canceled", 10)
        wait_until(lambda: look(client, next_one)["url"], 40)
        assert time.monotonic() - began < 40
        assert keeper.restarts == 1
    left = {path.name for path in tmp_path.iterdir()} - {
        "predictor",
        "pictures",
        "lock",
        "torchinductor_root",
    }
    assert {name for name in left if not name.startswith("studio.sqlite3")} == set()


ENDS = ("returned", "failed", "terminated", "killed", "killed without a server")
STUDIO = """
import dataclasses, os, signal, sys, time
from pathlib import Path
from tilemix.studio import own_server
from tilemix.studio.settings import Settings

start = own_server.start_process
own_server.start_process = lambda _, **options: start(["sleep", "60"], **options)
settings = own_server.place_server(Settings.from_environment({}), is_chosen=False)

def run(end):
    with own_server.run_own_server(settings, is_drawing=lambda: False, folder=Path("/")) as keeper:
        while keeper.process_id is None:
            time.sleep(0.01)
        if end == "failed":
            raise SystemExit("it failed")
        if end == "killed without a server":
            keeper.stop()
        if end != "returned":
            os.kill(os.getpid(), signal.SIGTERM if end == "terminated" else signal.SIGKILL)

studios = []
for end in sys.argv[1:]:
    studio = os.fork()
    if studio == 0:
        run(end)
        os._exit(0)
    studios.append(studio)
for studio in studios:
    os.waitpid(studio, 0)
"""


@pytest.mark.slow
def test_twenty_ends_of_every_kind_leave_no_folder(tmp_path):
    """Each left one; and so did a kill while the server was being started again."""
    command = [sys.executable, "-c", STUDIO, *(4 * ENDS)]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, check=True, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: not list(tmp_path.iterdir()), 10)


def test_nothing_of_ours_is_told_to_the_server(tmp_path, monkeypatch):
    """It sends the inbox's token to any address that a local caller names."""
    for name in ("WEBHOOK_AUTH_TOKEN", "TILEMIX_STUDIO_TOKEN", "REPLICATE_API_TOKEN", "WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "a-token-of-the-studio")
    given = []
    monkeypatch.setattr(
        "tilemix.studio.own_server.start_process",
        lambda command, *, folder, environment: given.append(environment) or real(command),
    )
    settings = dataclasses.replace(Settings.from_environment({}), folder=tmp_path)
    with run_own_server(place_server(settings, is_chosen=False), is_drawing=lambda: False):
        wait_until(lambda: given)
    assert "a-token-of-the-studio" not in given[0].values()


def real(_):
    return subprocess.Popen(["sleep", "60"], start_new_session=True)
