"""Webhooks at a steady rate into a running studio: 200 per second for 30 s, on SQLite and on PostgreSQL.

Signed deliveries of 4 kB, shaped like Replicate's, go over HTTP to a studio in its own process. Each is sent when it
is due, whether or not the earlier ones have been answered. Prints the times from due to answered, and counts the
rows: every accepted delivery must be stored once.

With `--slow`, so many other clients each hold a connection meanwhile on which they have sent half a head.

    python -m bench.webhooks [--seconds 30] [--rate 200] [--slow 300]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from sqlalchemy import func, select

from tests.postgres import find_programs, run_server
from tests.soak_crash import make_database
from tests.studio_parts import SECRET, body, sign
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import Database
from tilemix.studio.store.schema import Delivery
from tilemix.system.project import ROOT

LOGS = "100%|####################| 25/25 denoise\n" * 90  # 4 kB
START_SECONDS = 30
CONNECTIONS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description="Load the webhook inbox.")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=200, help="deliveries a second")
    parser.add_argument("--slow", type=int, default=0, help="connections with half a head")
    options = parser.parse_args()
    measured = measure_both(rate=options.rate, seconds=options.seconds, slow=options.slow)
    for kind, load in measured.items():
        sys.stdout.write(
            f"{kind}: {load.sent} sent, {load.taken} taken, {load.lost} lost; "
            f"p50 {load.p50_ms:.1f} ms, p99 {load.p99_ms:.1f} ms, longest {load.longest_ms:.1f} ms; "
            f"{load.processor_ms:.1f} ms of processor each; {load.slow} slow connections\n"
        )
    return int(not all(load.is_whole for load in measured.values()))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent."""

    rate: int  # deliveries a second
    seconds: int
    slow: int  # connections with half a head


@dataclass(frozen=True, slots=True)
class Load:
    """How a studio handled its deliveries; times run from the moment that one is due to its answer."""

    sent: int
    taken: int  # accepted
    lost: int  # accepted, but not in the database
    p50_ms: float
    p99_ms: float
    longest_ms: float
    processor_ms: float  # the studio's, per delivery, including its start
    slow: int  # other connections, held at the end

    @property
    def is_whole(self) -> bool:
        """Whether all were accepted and none was lost or doubled."""
        return self.sent == self.taken and self.lost == 0


def measure_both(*, rate: int, seconds: int, slow: int = 0) -> dict[str, Load]:
    """Load a studio on SQLite, then one on PostgreSQL with fsync on."""
    programs = find_programs()
    if programs is None:
        sys.exit("PostgreSQL's initdb and postgres were not found: apt-get install postgresql")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = Plan(rate, seconds, slow)
        sqlite = measure(f"sqlite:///{folder / 'studio.sqlite3'}", folder / "a", plan)
        with run_server(programs, fsync=True) as server:
            url = make_database(server, "load")
            postgresql = measure(url, folder / "b", plan)
    return {"SQLite": sqlite, "PostgreSQL": postgresql}


def measure(url: str, folder: Path, plan: Plan) -> Load:
    """Load one studio."""
    used = processor_seconds()
    with run_studio(url, folder, WEBHOOK_SECRET=SECRET) as (_, port):
        answers, held = asyncio.run(send_all(port, plan))
    used = processor_seconds() - used
    database = Database.open(Secret(url))
    with database.read() as session:
        stored = session.scalar(select(func.count()).select_from(Delivery))
    database.close()
    taken = [seconds for status, seconds in answers if status == 200]
    milliseconds = sorted(1000 * seconds for seconds in taken)
    p50, p99 = (milliseconds[int(len(milliseconds) * part)] for part in (0.5, 0.99))
    lost = len(taken) - (stored or 0)
    return Load(len(answers), len(taken), lost, p50, p99, milliseconds[-1], 1000 * used / len(answers), held)


def processor_seconds() -> float:
    """Return the processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def hold_slow(port: int, number: int, held: set[int]) -> None:
    """Hold a connection that has sent half a head, from an address of its own; open another when it is closed.

    Args:
        port: the studio's.
        number: tells the connections apart.
        held: the numbers of those that are open.
    """
    place = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0)
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=place)
        writer.write(b"POST /webhooks/replicate HTTP/1.1\r\nHost: ")
        held.add(number)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        held.discard(number)
        writer.close()
        await asyncio.sleep(0.1)


async def send_all(port: int, plan: Plan) -> tuple[list[tuple[int, float]], int]:
    """Send every delivery when it is due; return the status and the seconds of each, and how many slow ones were held.

    This uses bare connections, since an HTTP client's pool takes more processor time than the studio.
    """
    held: set[int] = set()
    slow = [asyncio.create_task(hold_slow(port, number, held)) for number in range(plan.slow)]
    await asyncio.sleep(0.5 + plan.slow / 200)
    requests = [make_request(number) for number in range(plan.rate * plan.seconds)]
    start = time.perf_counter() + 0.5
    numbers = iter(range(len(requests)))
    answers: list[tuple[int, float]] = []

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:  # shared by all connections: a free one takes the next
            due = start + number / plan.rate
            await asyncio.sleep(due - time.perf_counter())
            writer.write(requests[number])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
            answers.append((int(head.split(b" ")[1]), time.perf_counter() - due))
        writer.close()

    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    count = len(held)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    return answers, count


def make_request(number: int) -> bytes:
    """Return a delivery as sent over the wire."""
    data = body(f"p{number}", "processing", logs=LOGS)
    headers = {"Host": "127.0.0.1", "Content-Length": len(data), **sign(data, webhook_id=f"m{number}")}
    lines = ["POST /webhooks/replicate HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


@contextlib.contextmanager
def run_studio(url: str, folder: Path, **settings: str) -> Iterator[tuple[int, int]]:
    """Run a studio on a database and a folder; give its process and its port, and end it as Ctrl-C does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = os.environ | {
        "TILEMIX_STUDIO_FOLDER": str(folder),
        "TILEMIX_STUDIO_DATABASE": url,
        "TILEMIX_STUDIO_PORT": str(port),
        **settings,
    }
    command = [sys.executable, "-m", "tilemix.studio"]
    studio = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603  our own arguments, no shell
    try:
        wait_until_up(f"http://127.0.0.1:{port}")
        yield studio.pid, port
    finally:
        studio.send_signal(signal.SIGINT)
        studio.wait(START_SECONDS)


def wait_until_up(base: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{base}/health").status_code == 200:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the studio does not start"
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
