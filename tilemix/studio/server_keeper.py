"""Keeps a local Cog server alive: starts it, watches its health, and restarts it when it will not recover.

A server whose worker has died stays up, says UNHEALTHY and answers 409 to everything, for ever. One whose worker
hangs stays BUSY. Neither ends by itself, nor when the studio ends; for that there is a leash. A server that outlived
its studio would keep the port and send webhooks that nobody takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tilemix.errors import BackendDownError
from tilemix.system.leash import Leash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

BROKEN = frozenset({"UNHEALTHY", "DEFUNCT", "SETUP_FAILED"})
UNREACHABLE = "UNREACHABLE"
CHANCES = 3  # bad health checks in a row before a server is restarted
START_SECONDS = 600  # enough to load 7 GB from a slow disk
STOP_SECONDS = 10
BROKEN_STOP_SECONDS = 2  # of a server that does not work anyway
IDLE_BUSY_SECONDS = 5.0  # how long a server may be BUSY for nobody: its worker has stopped or hangs
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0  # seconds before restarting a server that was never ready


class ServerKeeper:
    """Looks after one server process; call `step()` about every second."""

    def __init__(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        ask_health: Callable[[], str],
        *,
        longest_prediction_seconds: float,
        is_drawing: Callable[[], bool] = lambda: True,
        leftovers: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._ask_health = ask_health
        self._longest = longest_prediction_seconds
        self._is_drawing = is_drawing
        self._leftovers = leftovers  # a folder that goes with the server when this process is killed
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: Leash | None = None
        self._not_before = clock()
        self._wait = FIRST_WAIT
        self.restarts = -1  # the first start does not count
        self._last_health, self._since = UNREACHABLE, clock()
        self._bad = 0
        self._has_answered = False
        self._idle_since: float | None = None  # BUSY, and nobody waits for a picture

    def step(self) -> None:
        """Start the server if it is not running; stop it if it is broken, so that the next step restarts it."""
        now = self._clock()
        if self._process is None or self._process.poll() is not None:
            if now >= self._not_before:
                self._run(now)
            return
        health = self._health()
        if health != self._last_health:
            self._last_health, self._since = health, now
            logger.info("the Cog server is %s", health)
        lasted = now - self._since
        # UNREACHABLE is normal during the start and a failure afterward.
        is_bad = health in BROKEN or (health == UNREACHABLE and self._has_answered)
        self._bad = self._bad + 1 if is_bad else 0
        self._has_answered = self._has_answered or health != UNREACHABLE
        if health != "BUSY" or self._is_drawing():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if health == "READY":
            self._wait = FIRST_WAIT
        elif self._idle_since is not None and now - self._idle_since >= IDLE_BUSY_SECONDS:
            self._end(f"it has been BUSY for {now - self._idle_since:.0f} seconds, and nobody waits for it")
        elif self._bad >= CHANCES:
            self._end(f"it said {health} {self._bad} times")
        elif health == "BUSY" and lasted > self._longest:
            self._end(f"it has been BUSY for {lasted:.0f} seconds")
        elif health in {"STARTING", UNREACHABLE} and lasted > START_SECONDS:
            self._end(f"it has been {health} for {lasted:.0f} seconds")

    @property
    def process_id(self) -> int | None:
        """The server's process; None while none runs."""
        return None if self._process is None else self._process.pid

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop the server and every process that it started."""
        if self._process is None:
            return
        _signal_group(self._process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        _signal_group(self._process, signal.SIGKILL)  # its worker is a separate process
        self._process.wait()
        self._process = None
        self._drop_leash()

    def _run(self, now: float) -> None:
        self._drop_leash()
        self._process = self._start()
        clean = 'kill -KILL "-$1"; rm -rf -- "$2"' if self._leftovers else 'kill -KILL "-$1"'
        self._leash = Leash(clean, str(self._process.pid), self._leftovers or "")
        self.restarts += 1
        self._not_before, self._wait = now + self._wait, min(2 * self._wait, LONGEST_WAIT)
        self._forget()
        logger.info("the Cog server is process %d", self._process.pid)

    def _drop_leash(self) -> None:
        if self._leash is not None:
            self._leash.drop()
            self._leash = None

    def _end(self, reason: str) -> None:
        logger.error("stopping the Cog server: %s", reason)
        self.stop(BROKEN_STOP_SECONDS)

    def _forget(self) -> None:
        self._last_health = UNREACHABLE
        self._since = self._clock()
        self._bad = 0
        self._has_answered = False
        self._idle_since = None

    def _health(self) -> str:
        try:
            return self._ask_health()
        except BackendDownError:
            return UNREACHABLE


def start_process(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a program in its own process group, so that its children can be stopped with it."""
    return subprocess.Popen(  # noqa: S603  our own arguments, no shell
        command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
    )


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the whole group has gone
        os.killpg(process.pid, number)
