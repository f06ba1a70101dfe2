"""Searches by text into a running studio: 8 clients over 10,000 pictures, on SQLite and on PostgreSQL.

Each client asks over HTTP for the next text as soon as it has its answer: through the API, then on the gallery's page,
then through the API for texts of two letters, which no index finds. The texts are rare and frequent ones, and ones
that are not there. Prints the times to an answer.

    python -m bench.searches [--pictures 10000] [--clients 8] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from urllib.parse import quote

import sqlalchemy

from bench.webhooks import run_studio
from tests.postgres import find_programs, run_server
from tests.soak_crash import make_database
from tests.studio_parts import add_pictures, picture
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import Database

TEXTS = ("orchid", "lot 4242", "RUBBER tile", "nothing like this", "0% red")
API, PAGE = "/api/predictions?limit=20&text=", "/gallery?text="
KINDS = {"API": (API, TEXTS), "page": (PAGE, TEXTS), "two letters": (API, ("or", "qz", "мо"))}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, and of how much."""

    pictures: int
    clients: int
    seconds: int  # of each kind


@dataclass(frozen=True, slots=True)
class Searches:
    """How fast a studio answered."""

    pictures: int
    clients: int
    searches: int
    p50_ms: float
    p99_ms: float
    longest_ms: float
    processor_ms: float  # the studio's, per search


def main() -> int:
    parser = argparse.ArgumentParser(description="Search a studio by text.")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=20)
    for name, found in measure_both(Plan(**vars(parser.parse_args()))).items():
        figures = (
            f"{key} {value:.1f}" if isinstance(value, float) else f"{value} {key}"
            for key, value in asdict(found).items()
        )
        sys.stdout.write(f"{name}: {', '.join(figures)}\n")
    return 0


def measure_both(plan: Plan) -> dict[str, Searches]:
    """Search a studio on SQLite, then one on PostgreSQL."""
    programs = find_programs()
    if programs is None:
        sys.exit("PostgreSQL's initdb and postgres were not found: apt-get install postgresql")
    with tempfile.TemporaryDirectory() as name, run_server(programs, fsync=True) as server:
        urls = {"SQLite": f"sqlite:///{name}/studio.sqlite3", "PostgreSQL": make_database(server, "searches")}
        return {
            f"{database}, {kind}": found
            for database, url in urls.items()
            for kind, found in measure(url, Path(name) / database, plan).items()
        }


def measure(url: str, folder: Path, plan: Plan) -> dict[str, Searches]:
    """Fill a studio's database and search it."""
    database = Database.open(Secret(url))
    names = add_pictures(database, plan.pictures)
    if database.engine.dialect.name == "postgresql":  # as its autovacuum does within a minute
        with database.write() as session:
            session.execute(sqlalchemy.text("ANALYZE"))
    database.close()
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    (folder / "one").write_bytes(picture())
    for name in names:
        (pictures / name).hardlink_to(folder / "one")
    with run_studio(url, folder) as (process, port):
        return {kind: measure_kind(process, port, kind, plan) for kind in KINDS}


def measure_kind(studio: int, port: int, kind: str, plan: Plan) -> Searches:
    """Make one kind of search; `studio` is the process."""
    used = processor_seconds(studio)
    times = asyncio.run(search(port, kind, plan))
    used = processor_seconds(studio) - used
    milliseconds = sorted(1000 * seconds for seconds in times)
    p50, p99 = (milliseconds[int(len(milliseconds) * part)] for part in (0.5, 0.99))
    each = 1000 * used / len(times)
    return Searches(plan.pictures, plan.clients, len(times), p50, p99, milliseconds[-1], each)


def processor_seconds(process: int) -> float:
    """Return the processor time of a process."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def search(port: int, kind: str, plan: Plan) -> list[float]:
    """Let all clients search for the plan's seconds; return the seconds of each search.

    This uses bare connections, as `bench.webhooks` does.
    """
    path, texts = KINDS[kind]
    times: list[float] = []
    numbers = count()
    end = time.perf_counter() + plan.seconds

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            text = texts[next(numbers) % len(texts)]
            began = time.perf_counter()
            writer.write(f"GET {path}{quote(text)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
            times.append(time.perf_counter() - began)
            assert head.split(b" ")[1] == b"200", head
        writer.close()

    await asyncio.gather(*(ask() for _ in range(plan.clients)))
    return times


if __name__ == "__main__":
    sys.exit(main())
