"""The keeper of the local Cog server, with small real processes in the server's place."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tilemix.errors import BackendDownError
from tilemix.studio.server_keeper import (
    CHANCES,
    IDLE_BUSY_SECONDS,
    START_SECONDS,
    ServerKeeper,
    start_process,
)
from tilemix.system.project import ROOT

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


class Setup:
    """A keeper with its clock, the health that the server tells, and the processes started."""

    def __init__(self, tmp_path, command=SLEEPER):
        self.now, self.health = 0.0, "READY"
        self.processes: list[subprocess.Popen] = []
        self.command, self.folder = command, tmp_path
        self.is_drawing = True
        self.keeper = ServerKeeper(
            self.start,
            self.ask,
            longest_prediction_seconds=100,
            is_drawing=lambda: self.is_drawing,
            leftovers=str(tmp_path / "leftovers"),
            clock=lambda: self.now,
        )

    def start(self):
        self.processes.append(start_process(self.command, folder=self.folder, environment=os.environ))
        return self.processes[-1]

    def ask(self):
        if self.health is None:
            raise BackendDownError("backend-unreachable", backend="Cog", reason="not there")
        return self.health

    def steps(self, count, seconds=1.0):
        for _ in range(count):
            self.now += seconds
            self.keeper.step()


@pytest.fixture
def setup(tmp_path):
    made = Setup(tmp_path)
    yield made
    made.keeper.stop()
    assert all(process.poll() is not None for process in made.processes)


def test_a_healthy_server_is_left_alone(setup):
    setup.steps(50)
    assert (len(setup.processes), setup.keeper.restarts) == (1, 0)


@pytest.mark.parametrize("health", ["UNHEALTHY", "DEFUNCT", "SETUP_FAILED", None])
def test_a_server_that_is_broken_three_times_in_a_row_is_started_anew(setup, health):
    setup.steps(3)
    for _ in range(3):  # twice, and then well again
        setup.health = health
        setup.steps(CHANCES - 1)
        setup.health = "READY"
        setup.steps(1)
    assert len(setup.processes) == 1
    setup.health = health
    setup.steps(CHANCES)
    assert setup.processes[0].poll() is not None
    setup.health = "READY"
    setup.steps(3)
    assert (len(setup.processes), setup.keeper.restarts) == (2, 1)


def test_a_server_that_stays_busy_longer_than_any_prediction_is_started_anew(setup):
    setup.steps(2)
    setup.health = "BUSY"
    setup.steps(10, seconds=10)
    assert len(setup.processes) == 1
    setup.steps(3, seconds=10)
    assert len(setup.processes) == 2


def test_a_server_that_is_busy_for_nobody_is_started_anew_soon(setup):
    """A canceled prediction whose worker was stopped kept it busy for the deadline and 60 seconds."""
    setup.steps(2)
    setup.health = "BUSY"
    setup.steps(20)
    setup.is_drawing = False
    setup.steps(int(IDLE_BUSY_SECONDS))
    assert len(setup.processes) == 1
    setup.is_drawing = True  # the next one has begun
    setup.steps(1)
    setup.is_drawing = False
    setup.steps(int(IDLE_BUSY_SECONDS) + 2)
    assert len(setup.processes) == 2


def test_short_predictions_one_after_another_are_not_one_long_one(setup):
    setup.steps(2)
    for _ in range(30):
        setup.health = "BUSY"
        setup.steps(1, seconds=9)
        setup.health = "READY"
        setup.steps(1, seconds=1)
    assert len(setup.processes) == 1


def test_nothing_answers_while_a_server_starts_but_not_for_ever(setup):
    setup.health = None
    setup.steps(START_SECONDS // 10, seconds=10)
    assert len(setup.processes) == 1
    setup.steps(4, seconds=10)
    assert len(setup.processes) == 2


def test_a_server_that_ends_by_itself_is_started_anew_ever_more_slowly(tmp_path):
    setup = Setup(tmp_path, (sys.executable, "-c", ""))
    setup.health = None
    starts = []
    for _ in range(40):
        before = len(setup.processes)
        setup.steps(1)
        if len(setup.processes) > before:
            starts.append(setup.now)
            setup.processes[-1].wait(10)
    assert [later - sooner for sooner, later in itertools.pairwise(starts)] == [1, 2, 4, 8, 16]
    setup.keeper.stop()


def test_what_the_server_has_started_ends_with_it(tmp_path):
    """The worker is a process of its own, and may not listen to SIGTERM any more."""
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit());"
        "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        " print(1, flush=True); time.sleep(60)';"
        "child = subprocess.Popen([sys.executable, '-c', deaf], stdout=subprocess.PIPE); child.stdout.readline();"
        "open('child', 'w').write(str(child.pid)); time.sleep(60)"
    )
    setup = Setup(tmp_path, (sys.executable, "-c", code))
    setup.steps(1)
    deadline = time.monotonic() + 20
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = int((tmp_path / "child").read_text())
    setup.keeper.stop()
    deadline = time.monotonic() + 5
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_studio_that_is_killed_takes_its_server_along(tmp_path):
    """The server outlived it: it kept the port, and the next studio refused the token of its webhooks."""
    code = (
        "import sys, time; from pathlib import Path; from tests.test_studio_server_keeper import Setup\n"
        "setup = Setup(Path(sys.argv[1])); setup.steps(1)\n"
        "print(setup.processes[0].pid, flush=True); time.sleep(60)"
    )
    studio = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    server = int(studio.stdout.readline())
    assert is_running(server)
    (tmp_path / "leftovers" / "pred").mkdir(parents=True)
    studio.kill()
    studio.communicate()
    deadline = time.monotonic() + 10
    while is_running(server) or (tmp_path / "leftovers").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
