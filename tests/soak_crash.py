"""Kill the studio before and after every COMMIT and every rename, and count what is lost and what is doubled.

One run of the story: five predictions are asked for; a Cog server draws the first two and Replicate's webhooks
bring the others, repeated, out of order and once unknown; the pictures are taken. A run that is to die kills
itself with SIGKILL at its n-th point, for n = 1, 2, ... until a run comes through alive. After each death the
story is told again on what the dead one left: its senders repeat what was not answered with a yes, as real ones
do. Then everything must be there exactly once.

    python -m tests.soak_crash [--database URL] [--every N]

Prints one line, `N kills, 0 lost, 0 doubled`; the exit status is 1 where that is not so. The machine is not cut
off from its power here: what the kernel has is taken for written.
"""

import argparse
import collections
import itertools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from tests.studio_parts import body, data_uri, picture
from tilemix.request import GenerationRequest
from tilemix.rewriter import rewrite
from tilemix.studio.database import Database
from tilemix.studio.inbox import Arrival, Inbox
from tilemix.studio.outputs import OutputTaker
from tilemix.studio.predictions import Report
from tilemix.studio.queue import Queue
from tilemix.studio.schema import Delivery, Output, Prediction, Share
from tilemix.studio.settings import Secret
from tilemix.templates import find_template

PROMPTS = ("50% red, 50% black", "30% red, 70% pearl", "100% blue", "100% green", "100% grey")
BY_COG = 2  # the others are brought by webhooks
MAX_STEPS = 100


class Outside:
    """What is not the studio and does not die with it: callers and senders, their memory on a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def remember(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")

    def remembered(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


class Drawer:
    """A Cog server that draws at once, and remembers what it was asked."""

    name = "cog"
    slots = 1
    is_synchronous = True

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def is_ready(self) -> bool:
        return True

    def submit(self, attempt_id, inputs, *, webhook, seconds) -> Report:
        self._outside.remember(f"drawn {attempt_id} {inputs['seed']}")
        output = data_uri(picture_of(inputs["prompt"]))
        return Report(
            remote_id=attempt_id, status="succeeded", output=output, metrics={"seed": inputs["seed"]}
        )

    def cancel(self, remote_id) -> None:
        raise AssertionError("nothing is canceled here")

    def look_up(self, remote_id) -> None:
        return None

    def find(self, inputs) -> None:
        return None


def picture_of(prompt: str) -> bytes:
    """A picture of its own for every prompt."""
    return picture((PROMPTS.index(prompt) * 40, 90, 90))


def arm(database: Database, countdown: int | None) -> None:
    """Kill this process at its n-th point: before or after a COMMIT of the database or a rename."""
    left = itertools.count(1)

    def point() -> None:
        if next(left) == countdown:
            os.kill(os.getpid(), signal.SIGKILL)

    def between(action: Callable) -> Callable:
        def act(*given):
            point()
            done = action(*given)
            point()
            return done

        return act

    database.engine.dialect.do_commit = between(database.engine.dialect.do_commit)
    os.replace = between(os.replace)


def deliveries() -> list[Arrival]:
    """The webhooks of the predictions that Replicate draws, repeated and out of order."""
    arrivals = [Arrival(source="replicate", body=body("nobody", "processing"), webhook_id="unknown")]
    for number, prompt in list(enumerate(PROMPTS))[BY_COG:]:
        output = data_uri(picture_of(prompt))
        news = [
            body(f"r{number}", "succeeded", output=output, logs="1\n2\n"),
            body(f"r{number}", "processing", logs="1\n"),
        ]
        sent = [
            Arrival(source="replicate", body=data, webhook_id=f"r{number}-{place}")
            for place, data in enumerate(news)
        ]
        arrivals += [*(sent if number % 2 else reversed(sent)), sent[0]]
    return arrivals


def live(url: str, folder: Path, outside: Outside, countdown: int | None) -> None:
    """Tell the story, going on from what an earlier life left, until the end or the n-th point."""
    database = Database.open(Secret(url))
    arm(database, countdown)
    inbox, taker = Inbox(database), OutputTaker(database, folder)
    queue = Queue(database, Drawer(outside), deadline_seconds=3600)
    taker.recover()
    queue.recover()
    done = collections.Counter(outside.remembered())
    for number, prompt in enumerate(PROMPTS):
        if f"asked {number}" not in done:
            ask(database, queue, number, prompt)
            outside.remember(f"asked {number}")
        queue.step()
    for place, arrival in enumerate(deliveries()):
        if f"delivered {place}" not in done:
            inbox.store(arrival)  # its return is the yes
            outside.remember(f"delivered {place}")
        inbox.step()
        taker.step()
    for step in (queue.step, inbox.step, taker.step):
        for _ in range(MAX_STEPS):
            if not step():
                break
    database.close()


def ask(database: Database, queue: Queue, number: int, prompt: str) -> None:
    """Ask for a prediction; a caller that heard no yes looks whether it was taken before it asks again."""
    with database.read() as session:
        if session.scalar(select(Prediction.id).where(Prediction.prompt == prompt)) is not None:
            return
    if number < BY_COG:
        queue.add(GenerationRequest(prompt=prompt), rewrite(prompt, find_template("rubber_tile")))
        return
    with database.write() as session:  # one that runs at Replicate
        sample = GenerationRequest(prompt=prompt).with_seed()
        now = queue._clock()
        row = {
            "id": f"{number:032x}",
            "backend": "replicate",
            "remote_id": f"r{number}",
            "status": "starting",
        }
        texts = {"prompt": prompt, "sent_prompt": prompt, "inputs": {"seed": sample.seed}}
        session.add(Prediction(**row, **texts, created_at=now, deadline_at=now + queue._deadline))


def find_faults(url: str, folder: Path, outside: Outside) -> tuple[list[str], list[str]]:
    """Return what was lost and what was doubled."""
    lost, doubled = [], []
    database = Database.open(Secret(url))
    with database.read() as session:
        rows = session.execute(
            select(
                Prediction.prompt, Prediction.status, Prediction.id, Output.state, Output.file, Output.sha256
            )
            .outerjoin(Output, Output.prediction == Prediction.number)
            .order_by(Prediction.number)
        ).all()
        stored = collections.Counter(session.scalars(select(Delivery.delivery_id)))
        shares = session.scalar(select(func.count()).select_from(Share))
        unread = session.scalars(select(Delivery.delivery_id).where(Delivery.state == "pending")).all()
    database.close()
    found = collections.Counter(prompt for prompt, *_ in rows)
    for prompt in PROMPTS:
        (lost if found[prompt] < 1 else doubled).extend([prompt] * abs(found[prompt] - 1))
    for prompt, status, identity, state, file, _ in rows:
        whole = (status, state, file) == ("succeeded", "taken", f"{identity}.png")
        if not whole or (folder / file).read_bytes() != picture_of(prompt):
            lost.append(f"{prompt}: {status}, {state}, {file}")
    for delivery_id in {arrival.webhook_id for arrival in deliveries()}:
        (lost if not stored[delivery_id] else doubled).extend([delivery_id] * abs(stored[delivery_id] - 1))
    lost += [f"unread: {delivery_id}" for delivery_id in unread]
    if shares != 4:
        (lost if shares < 4 else doubled).append(f"{shares} shares")
    names = {path.name for path in folder.iterdir()}
    doubled += sorted(names - {file for *_, file, _ in rows})  # files that no row knows
    drawn = collections.defaultdict(set)
    for line in outside.remembered():
        if line.startswith("drawn "):
            _, attempt, seed = line.split()
            drawn[attempt.partition("-")[0]].add(seed)
    doubled += [f"{name} with two seeds" for name, seeds in drawn.items() if len(seeds) > 1]
    return lost, doubled


def run_child(action: Callable[[], None]) -> bool:
    """Run in a process of its own; return whether it came through, raise if it failed in any other way."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001  of a process that ends here
            traceback.print_exc()
        finally:
            os._exit(status)  # without the parent's clean-up
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"the story failed with status {status}"
    return True


def run(make_url: Callable[[Path, int], str], folder: Path, every: int) -> tuple[int, list[str], list[str]]:
    """Kill at every n-th point; return the number of kills, what was lost and what was doubled."""
    kills, lost, doubled = 0, [], []
    for point in itertools.count(1, every):
        home = folder / str(point)
        home.mkdir()
        url, pictures, outside = make_url(home, point), home / "pictures", Outside(home / "outside")
        came_through = run_child(lambda: live(url, pictures, outside, point))  # noqa: B023  runs at once
        if not came_through:
            kills += 1
            assert run_child(lambda: live(url, pictures, outside, None))  # noqa: B023
        some_lost, some_doubled = find_faults(url, pictures, outside)
        lost += [f"point {point}: {what}" for what in some_lost]
        doubled += [f"point {point}: {what}" for what in some_doubled]
        if came_through:
            return kills, lost, doubled
    raise AssertionError("endless")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the studio at every COMMIT and rename.")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th point only")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL server of its own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.postgresql:
            from tests.postgres import find_programs, run_server

            programs = find_programs()
            if programs is None:
                sys.exit("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
            with run_server(programs) as server:
                kills, lost, doubled = run(
                    lambda _, point: make_database(server, point), Path(name), options.every
                )
        else:
            kills, lost, doubled = run(
                lambda home, _: f"sqlite:///{home / 'studio.sqlite3'}", Path(name), options.every
            )
    for line in (*lost, *doubled):
        sys.stderr.write(line + "\n")
    sys.stdout.write(f"{kills} kills, {len(lost)} lost, {len(doubled)} doubled\n")
    return int(bool(lost or doubled))


def make_database(server: str, point: int) -> str:
    """Make an empty database on the server; return its URL."""
    import psycopg

    with psycopg.connect(server.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE crash_{point}")
    return server.format(name=f"crash_{point}")


if __name__ == "__main__":
    sys.exit(main())
