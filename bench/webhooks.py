"""Webhooks at a steady rate into a running studio: 200 a second for 30 s, on SQLite and on PostgreSQL.

Signed deliveries of 4 kB in the shape of Replicate's go over HTTP to a studio of its own process, each at its
moment whether the earlier ones have been answered or not. Prints the times from that moment to the answer, and
counts the rows: every delivery that was answered with a yes is there once.

    python -m bench.webhooks [--seconds 30] [--rate 200]
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from sqlalchemy import func, select

from tests.postgres import find_programs, run_server
from tests.soak_crash import make_database
from tests.studio_parts import SECRET, body, sign
from tilemix.project import ROOT
from tilemix.studio.database import Database
from tilemix.studio.schema import Delivery
from tilemix.studio.settings import Secret

LOGS = "100%|####################| 25/25 denoise\n" * 90  # 4 kB
START_SECONDS = 30
CONNECTIONS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description="Load the webhook inbox.")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=200, help="deliveries a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        good = measure("SQLite", f"sqlite:///{name}/studio.sqlite3", Path(name), options)
        programs = find_programs()
        if programs is None:
            sys.exit("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
        with run_server(programs, fsync=True) as server:
            good &= measure("PostgreSQL", make_database(server, 1), Path(name), options)
    return int(not good)


def measure(kind: str, url: str, folder: Path, options: argparse.Namespace) -> bool:
    """Load one studio; print its line; return whether nothing was lost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "TILEMIX_STUDIO_FOLDER": str(folder / kind),
        "TILEMIX_STUDIO_DATABASE": url,
        "TILEMIX_STUDIO_PORT": str(port),
        "WEBHOOK_SECRET": SECRET,
    }
    command = [sys.executable, "-m", "tilemix.studio"]
    studio = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until_up(base)
        answers = asyncio.run(send_all(port, options.rate, options.seconds))
    finally:
        studio.send_signal(signal.SIGINT)
        studio.wait(START_SECONDS)
    database = Database.open(Secret(url))
    with database.read() as session:
        stored = session.scalar(select(func.count()).select_from(Delivery))
    database.close()
    taken = [seconds for status, seconds in answers if status == 200]
    milliseconds = sorted(1000 * seconds for seconds in taken)
    p50, p99 = (milliseconds[int(len(milliseconds) * part)] for part in (0.5, 0.99))
    lost = len(taken) - stored
    print(  # noqa: T201
        f"{kind}: {len(answers)} sent, {len(taken)} taken, {lost} lost; "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {milliseconds[-1]:.1f} ms"
    )
    return lost == 0 and len(taken) == len(answers)


async def send_all(port: int, rate: int, seconds: int) -> list[tuple[int, float]]:
    """Send every delivery at its moment; return status and seconds of each.

    Over bare connections: a client's pool of connections takes more of the processor than the studio does.
    """
    requests = [make_request(number) for number in range(rate * seconds)]
    start = time.perf_counter() + 0.5
    numbers = iter(range(len(requests)))
    answers: list[tuple[int, float]] = []

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:  # of all connections: whichever is free takes the next
            due = start + number / rate
            await asyncio.sleep(due - time.perf_counter())
            writer.write(requests[number])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
            answers.append((int(head.split(b" ")[1]), time.perf_counter() - due))
        writer.close()

    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    return answers


def make_request(number: int) -> bytes:
    """Return a delivery as it goes over the wire."""
    data = body(f"p{number}", "processing", logs=LOGS)
    headers = {"Host": "127.0.0.1", "Content-Length": len(data), **sign(data, webhook_id=f"m{number}")}
    lines = ["POST /webhooks/replicate HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


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
