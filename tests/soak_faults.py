"""A studio under load while disks fill, databases lock or go away, clocks jump, and back ends and the studio die.

    python -m tests.soak_faults [--database sqlite postgresql] [--kinds KIND ...] [--faults 12] [--seed 1]

For each database and kind of fault, a studio in a process of its own gets submits, webhooks, cancels and page views,
while that fault begins at random moments and lasts one to four seconds. Afterwards everything that was accepted must
be there once: predictions with their pictures and their one seed, and webhooks. A stall is the time from a fault's
end until a picture that was asked for after it is there and `/health` says ok. Prints one line for each.

The back end is a stand-in for a Cog server. "stopped worker" is one that neither draws on nor cancels; the same with a
real Cog server is in tests/test_studio_own_server.py. "disk full" needs root, for a small tmpfs.
"""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
from sqlalchemy import select

from tests.cog_stand_in import CogStandIn, run_cog_stand_in
from tests.faulty_studio import serve
from tests.live_studio import free_port
from tests.postgres import find_programs, run_server, user_options
from tests.soak_crash import make_database
from tests.studio_parts import body, sign
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import Database
from tilemix.studio.store.schema import Delivery, Output, Prediction

DISK = "32m"
DRAW_SECONDS = 0.1
SUBMITS_A_SECOND, WEBHOOKS_A_SECOND, VIEWS_A_SECOND, CANCELS_A_SECOND = 2.0, 5.0, 1.0, 0.2
SHORTEST, LONGEST = 1.0, 4.0  # seconds that a fault lasts
PATIENCE = 90.0
PORTION = 12  # faults of one kind on one database


class Campaign:
    """One studio, its load, and what was accepted."""

    def __init__(self, home: Path, url: str, cog: CogStandIn) -> None:
        self.home, self.folder, self.url, self.cog = home, home / "studio", url, cog
        self.port = free_port()
        self.seeds: dict[str, int] = {}  # of what was accepted
        self.canceled: set[str] = set()
        self.delivered: set[str] = set()
        self.broken: list[str] = []
        self._next = 0
        self._stopping = threading.Event()
        self._turn = threading.Lock()
        self.start()

    def start(self) -> None:
        given = (str(self.folder), self.url, self.port, self.cog.url)
        self.process = multiprocessing.get_context("forkserver").Process(target=serve, args=given)
        self.process.start()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def number(self) -> int:
        with self._turn:
            self._next += 1
            return self._next

    def call(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        """Call the studio; None if it cannot be reached now."""
        address = f"http://127.0.0.1:{self.port}{path}"
        try:
            answer = httpx.request(method, address, timeout=20, trust_env=False, **more)
        except httpx.TransportError:
            return None
        if answer.status_code == 500:
            self.broken.append(f"{method} {path}: 500")
        return answer

    def tell_health(self) -> str:
        """Return what the studio says of itself."""
        answer = self.call("GET", "/health")
        return "no answer" if answer is None else answer.text

    def submit(self) -> str | None:
        seed = self.number()
        answer = self.call("POST", "/api/predictions", json={"prompt": "100% red", "seed": seed})
        if answer is None or answer.status_code != 201:
            return None
        identity: str = answer.json()["id"]
        self.seeds[identity] = seed
        return identity

    def deliver(self) -> None:
        name = f"m{self.number()}"
        data = body(name, "processing")
        answer = self.call("POST", "/webhooks/replicate", content=data, headers=sign(data, webhook_id=name))
        if answer is not None and answer.status_code == 200:
            self.delivered.add(name)

    def cancel(self) -> None:
        for identity in [*self.seeds][-1:]:
            self.canceled.add(identity)  # whatever the answer
            self.call("POST", f"/api/predictions/{identity}/cancel")

    def view(self) -> None:
        for path in ("/", "/gallery", *(f"/results/{identity}" for identity in [*self.seeds][-1:])):
            self.call("GET", path, headers={"Accept": "text/html"})

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Keep all of it going."""

        def repeat(action: Callable[[], object], rate: float) -> None:
            while not self._stopping.wait(random.expovariate(rate)):
                action()

        rates = {
            self.submit: SUBMITS_A_SECOND,
            self.deliver: WEBHOOKS_A_SECOND,
            self.view: VIEWS_A_SECOND,
            self.cancel: CANCELS_A_SECOND,
        }
        threads = [threading.Thread(target=repeat, args=pair) for pair in rates.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def wait_for_picture(self) -> float:
        """Return the seconds until a picture asked for from now on is there, and nothing is wrong."""
        began, identity = time.monotonic(), None
        while True:
            assert time.monotonic() - began < PATIENCE, f"it stands still: {self.tell_health()}"
            identity = identity or self.submit()
            if identity is not None and identity not in self.canceled:
                found = self.call("GET", f"/api/predictions/{identity}")
                health = self.call("GET", "/health")
                if found is not None and found.status_code == 200 and found.json()["url"] is not None:
                    if health is not None and health.json()["status"] == "ok":
                        return time.monotonic() - began
                    continue
            elif identity in self.canceled:
                identity = None
            time.sleep(0.1)

    def judge(self) -> tuple[list[str], list[str]]:
        """Return what was lost and what was doubled."""
        deadline = time.monotonic() + PATIENCE
        while any(not self._is_done(identity) for identity in self.seeds) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.kill()
        database = Database.open(Secret(self.url))
        with database.read() as session:
            rows = session.execute(
                select(Prediction.id, Prediction.status, Prediction.inputs, Output.file).outerjoin(
                    Output, Output.prediction == Prediction.number
                )
            ).all()
            stored = list(session.scalars(select(Delivery.delivery_id)))
        database.close()
        found = {identity: (status, file) for identity, status, _, file in rows}
        lost = [name for name in self.delivered if name not in stored]
        for identity in self.seeds:
            status, file = found.get(identity, ("absent", None))
            is_whole = (
                status == "succeeded" and file is not None and (self.folder / "pictures" / file).is_file()
            )
            if not is_whole and not (status == "canceled" and identity in self.canceled):
                lost.append(f"{identity}: {status}, {file}")
        seeds = [inputs["seed"] for _, _, inputs, _ in rows]
        doubled = [f"seed {seed}" for seed in set(seeds) if seeds.count(seed) > 1]
        drawn: dict[str, set[int]] = {}
        for attempt, asked in self.cog.asked:
            drawn.setdefault(attempt.partition("-")[0], set()).add(asked["input"]["seed"])
        doubled += [f"{identity} with two seeds" for identity, its in drawn.items() if len(its) > 1]
        known = {file for _, _, _, file in rows}
        doubled += [path.name for path in (self.folder / "pictures").iterdir() if path.name not in known]
        return lost, doubled

    def _is_done(self, identity: str) -> bool:
        answer = self.call("GET", f"/api/predictions/{identity}")
        return answer is not None and answer.status_code == 200 and answer.json()["is_done"]


@contextlib.contextmanager
def disk_full(campaign: Campaign) -> Iterator[None]:
    ballast = campaign.folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    ballast.unlink()


@contextlib.contextmanager
def database_locked(campaign: Campaign) -> Iterator[None]:
    if campaign.url.startswith("sqlite"):
        other = sqlite3.connect(campaign.folder / "studio.sqlite3", isolation_level=None, timeout=10)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()
        other.close()
        return
    with psycopg.connect(campaign.url) as connection:
        is_locked = False
        while not is_locked:
            try:
                connection.execute("LOCK TABLE predictions, deliveries IN ACCESS EXCLUSIVE MODE")
                is_locked = True
            except (
                psycopg.errors.DeadlockDetected
            ):  # a transaction of the studio's has one table and wants the other
                connection.rollback()
        yield


@contextlib.contextmanager
def database_away(campaign: Campaign) -> Iterator[None]:
    folder = Path(campaign.url.rpartition("host=")[2])
    data = folder / "data"
    server = int((data / "postmaster.pid").read_text().split()[0])
    command = (data / "postmaster.opts").read_text()
    os.kill(server, signal.SIGINT)  # it ends every connection
    yield
    while (data / "postmaster.pid").exists():
        time.sleep(0.02)
    log = (folder / "log").open("ab")
    started = ["/bin/sh", "-c", f"exec {command}"]
    subprocess.Popen(started, stdout=log, stderr=log, cwd=folder, start_new_session=True, **user_options())


@contextlib.contextmanager
def clock(campaign: Campaign, seconds: int) -> Iterator[None]:
    (campaign.home / "clock").write_text(str(seconds))
    yield  # and the clock stays as it is, until the next one
    (campaign.home / "clock").write_text("0")


@contextlib.contextmanager
def studio_killed(campaign: Campaign) -> Iterator[None]:
    campaign.kill()
    yield
    campaign.start()


@contextlib.contextmanager
def changed(campaign: Campaign, **changes: Any) -> Iterator[None]:
    """The back end is different for a while."""
    before = {name: getattr(campaign.cog, name) for name in changes}
    vars(campaign.cog).update(changes)
    yield
    vars(campaign.cog).update(before)


@contextlib.contextmanager
def worker_stopped(campaign: Campaign) -> Iterator[None]:
    """It draws no further and does not cancel; whoever waits for it cancels."""
    campaign.cog.gate.clear()
    with changed(campaign, is_deaf=True):
        campaign.cancel()
        yield
    campaign.cog.gate.set()


CRASH = {"status": "failed", "error": "Worker crashed"}
KINDS: dict[str, Callable[[Campaign], contextlib.AbstractContextManager[None]]] = {
    "disk full": disk_full,
    "database locked": database_locked,
    "database away": database_away,
    "clock +1 h": lambda campaign: clock(campaign, 3600),
    "clock -1 h": lambda campaign: clock(campaign, -3600),
    "worker stopped": worker_stopped,
    "worker killed": lambda campaign: changed(campaign, outcome=CRASH, health="UNHEALTHY"),
    "studio killed": studio_killed,
    "Cog server killed": lambda campaign: changed(campaign, hangs_up=True, health="UNREACHABLE"),
    "network cut": lambda campaign: changed(campaign, is_cut=True),
}
ONLY_SQLITE, ONLY_POSTGRESQL = {"disk full"}, {"database away"}


def run_portion(home: Path, url: str, kind: str, *, faults: int, seed: int) -> dict[str, Any]:
    """Run so many faults of one kind on one database; return the figures."""
    moments = random.Random(seed)
    with run_cog_stand_in() as cog, small_disk(home / "studio", is_small=kind == "disk full"):
        cog.draw_seconds = DRAW_SECONDS
        campaign = Campaign(home, url, cog)
        try:
            campaign.wait_for_picture()
            stalls = []
            with campaign.load():
                for _ in range(faults):
                    time.sleep(moments.uniform(0.2, 1.5))
                    with KINDS[kind](campaign):
                        time.sleep(moments.uniform(SHORTEST, LONGEST))
                    stalls.append(campaign.wait_for_picture())
            lost, doubled = campaign.judge()
        finally:
            campaign.process.kill()
            campaign.process.join()
    for line in (*lost, *doubled, *campaign.broken):
        sys.stderr.write(f"{kind}: {line}\n")
    return {
        "faults": faults,
        "predictions": len(campaign.seeds),
        "webhooks": len(campaign.delivered),
        "lost": len(lost),
        "doubled": len(doubled),
        "answers_500": len(campaign.broken),
        "longest_stall_s": max(stalls),
    }


@contextlib.contextmanager
def small_disk(folder: Path, *, is_small: bool) -> Iterator[None]:
    folder.mkdir()
    if not is_small:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def run_campaign(
    databases: list[str], kinds: list[str], *, faults: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the faults of each kind on each database; give each row's name and figures as they come."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.faulty_studio"])
    programs = find_programs()
    assert programs is not None, "PostgreSQL's initdb and postgres are not here: apt-get install postgresql"
    for database in databases:
        left_out = ONLY_POSTGRESQL if database == "SQLite" else ONLY_SQLITE
        for number, kind in enumerate(kind for kind in kinds if kind not in left_out):
            if kind == "disk full" and os.geteuid() != 0:
                continue
            with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
                url = f"sqlite:///{name}/studio/studio.sqlite3"
                if database == "PostgreSQL":
                    server = stack.enter_context(run_server(programs, fsync=True))
                    stack.callback(end_server, server)
                    url = make_database(server, "faults")
                figures = run_portion(Path(name), url, kind, faults=faults, seed=seed + number)
            yield f"{database}, {kind}", figures


def end_server(url: str) -> None:
    """End the PostgreSQL server of a folder, whoever started it."""
    pid = Path(url.rpartition("host=")[2]) / "data" / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(pid.read_text().split()[0]), signal.SIGINT)
        while pid.exists():
            time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description="Load a studio while faults come and go.")
    parser.add_argument(
        "--database", nargs="+", choices=("SQLite", "PostgreSQL"), default=["SQLite", "PostgreSQL"]
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--faults", type=int, default=PORTION, help="of each kind, on each database")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable()
    is_whole = True
    for name, figures in run_campaign(
        options.database, options.kinds, faults=options.faults, seed=options.seed
    ):
        sys.stdout.write(f"{name}: {json.dumps(figures)}\n")
        sys.stdout.flush()
        is_whole = is_whole and not (figures["lost"] or figures["doubled"] or figures["answers_500"])
    return int(not is_whole)


if __name__ == "__main__":
    sys.exit(main())
