"""Kill the studio before and after every COMMIT and every rename, and count what is lost and what is doubled.

One run of the story: eight predictions are asked for. A Cog server draws two, and of one of these the first
answer is lost; Replicate's webhooks bring three, several at once, repeated, out of order and once for a
prediction that nobody knows; one picture comes by URL from a host that fails at first; one prediction is asked
for at Replicate because its webhook never comes; one is canceled, one is past its deadline. The pictures are
taken, and the inbox is purged.

A run that is to die kills itself with SIGKILL at its n-th point, for n = 1, 2, ... until a run comes through
alive; the migration's COMMIT counts as any other. After each death the story is told again on what the dead one
left: its senders repeat what was not answered with a yes, as real ones do. Then everything must be there exactly
once. In a storm, every life dies at a random point of its first 25, until one comes through.

    python -m tests.soak_crash [--postgresql] [--every N] [--storms N]

Prints one line, `N kills, 0 lost, 0 doubled`; the exit status is 1 where that is not so. The machine is not cut
off from its power here: what the kernel has is taken for written.
"""

import argparse
import collections
import itertools
import logging
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine.default import DefaultDialect

from tests.studio_parts import body, data_uri, picture
from tilemix.errors import BackendUncertainError, OutputError
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template
from tilemix.request import GenerationRequest
from tilemix.studio import outputs, reconciler
from tilemix.studio.inbox import Arrival, Inbox
from tilemix.studio.outputs import OutputTaker
from tilemix.studio.predictions import Report
from tilemix.studio.queue import Queue
from tilemix.studio.reconciler import Reconciler
from tilemix.studio.settings import Secret
from tilemix.studio.store.database import Database
from tilemix.studio.store.schema import Delivery, Output, Prediction, Share

# What is asked for, who brings it, and the status in which it must end.
STORY = {
    "100% brown": ("canceled", "canceled"),  # first, so that nobody draws it meanwhile
    "50% red, 50% black": ("cog", "succeeded"),
    "30% red, 70% pearl": ("cog, its first answer lost", "succeeded"),
    "100% blue": ("webhooks", "succeeded"),
    "100% green": ("webhooks, the picture by URL", "succeeded"),
    "100% gray": ("webhooks", "succeeded"),
    "100% beige": ("asking Replicate", "succeeded"),
    "100% olive": ("too late", "failed"),
}
PROMPTS = list(STORY)
SHARES = 5  # of the predictions that go through the queue
AT_ONCE = 3  # deliveries that come in together, and are committed together
MAX_STEPS = 100
STORM_POINTS = 25
MAX_LIVES = 1000


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
    """A Cog server that draws at once, remembers what it was asked, and once is lost with its answer."""

    name = "cog"
    slots = 1
    is_synchronous = True

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def is_ready(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def find_fault(self) -> None:
        return None

    def submit(self, attempt_id, inputs, *, webhook, seconds) -> Report:
        is_first = not any(attempt_id[:32] in line for line in self._outside.remembered())
        self._outside.remember(f"drawn {attempt_id} {inputs['seed']}")
        if is_first and "lost" in STORY[inputs["prompt"]][0]:
            raise BackendUncertainError("backend-answer-lost", backend="Cog", reason="killed")
        output = data_uri(picture_of(inputs["prompt"]))
        return Report(
            remote_id=attempt_id, status="succeeded", output=output, metrics={"seed": inputs["seed"]}
        )

    def abandon(self, remote_id) -> None:
        raise AssertionError("nothing hangs here")

    def cancel(self, remote_id) -> None:
        raise AssertionError("nothing that runs is canceled here")

    def look_up(self, remote_id) -> None:
        return None

    def find(self, inputs) -> None:
        return None


class Replicate(Drawer):
    """Replicate's API, which is only asked."""

    name = "replicate"
    is_synchronous = False

    def look_up(self, remote_id) -> Report:
        prompt = PROMPTS[int(remote_id[1:])]
        is_done = STORY[prompt][0] == "asking Replicate"
        output = data_uri(picture_of(prompt)) if is_done else None
        return Report(remote_id=remote_id, status="succeeded" if is_done else "processing", output=output)

    def cancel(self, remote_id) -> None:
        assert STORY[PROMPTS[int(remote_id[1:])]][0] == "too late"


class Host:
    """Where pictures have URLs; it fails the first time in each life of the studio."""

    def __init__(self) -> None:
        self._is_up = False

    def fetch(self, url: str) -> bytes:
        if not self._is_up:
            self._is_up = True
            raise OutputError("output-host-answers", status=503, is_final=False)
        return picture_of(PROMPTS[int(url.rpartition("/")[2])])


def picture_of(prompt: str) -> bytes:
    """A picture of its own for every prompt."""
    return picture((PROMPTS.index(prompt) * 30, 90, 90))


def arm(countdown: int | None) -> None:
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

    DefaultDialect.do_commit = between(DefaultDialect.do_commit)
    os.replace = between(os.replace)


def deliveries() -> list[Arrival]:
    """The webhooks of the predictions that Replicate draws, repeated and out of order."""
    arrivals = [Arrival(source="replicate", body=body("nobody", "processing"), webhook_id="unknown")]
    for number, prompt in enumerate(PROMPTS):
        way, _ = STORY[prompt]
        if not way.startswith("webhooks"):
            continue
        by_url = f"https://replicate.delivery/{number}"
        output = by_url if way.endswith("URL") else data_uri(picture_of(prompt))
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
    arm(countdown)
    database = Database.open(Secret(url), is_shared=False)
    inbox = Inbox(database)
    # What waits for some seconds is tried again at once, by this life or the next.
    outputs.FIRST_WAIT = reconciler.SILENCE_WITHOUT = 0.0
    taker = OutputTaker(database, folder, fetcher=Host())
    queue = Queue(database, Drawer(outside), deadline_seconds=3600)
    elsewhere = Queue(database, Replicate(outside), deadline_seconds=3600)
    asker = Reconciler(database, Replicate(outside), has_webhooks=False)
    folder.mkdir(exist_ok=True)
    taker.recover()
    done = set(outside.remembered())
    for number, prompt in enumerate(PROMPTS):
        if f"asked {number}" not in done:
            ask(database, queue, number, prompt)
            outside.remember(f"asked {number}")
        if STORY[prompt][0] == "canceled" and f"canceled {number}" not in done:
            queue.cancel(find_id(database, prompt))
            outside.remember(f"canceled {number}")
        queue.step()
    with ThreadPoolExecutor(AT_ONCE) as senders:
        places = [place for place in range(len(deliveries())) if f"delivered {place}" not in done]
        for start in range(0, len(places), AT_ONCE):

            def deliver(place: int) -> None:
                inbox.store(deliveries()[place]).result()  # its return is the yes
                outside.remember(f"delivered {place}")

            list(senders.map(deliver, places[start : start + AT_ONCE]))
            inbox.step()
            taker.step()
    elsewhere.end_late()
    for step in (queue.step, inbox.step, asker.step, taker.step):
        for _ in range(MAX_STEPS):
            if not step():
                break
    inbox.purge()
    database.close()


def find_id(database: Database, prompt: str) -> str | None:
    with database.read() as session:
        return session.scalar(select(Prediction.id).where(Prediction.prompt == prompt))


def ask(database: Database, queue: Queue, number: int, prompt: str) -> None:
    """Ask for a prediction; a caller that heard no yes looks whether it was taken before it asks again."""
    if find_id(database, prompt) is not None:
        return
    way, _ = STORY[prompt]
    if way.startswith(("cog", "canceled")):
        queue.add(GenerationRequest(prompt=prompt), rewrite(prompt, find_template("rubber_tile")))
        return
    with database.write() as session:  # one that runs at Replicate
        begun = datetime.now(UTC) - timedelta(hours=1)
        row = {
            "id": f"{number:032x}",
            "backend": "replicate",
            "remote_id": f"r{number}",
            "status": "starting",
        }
        texts = {"prompt": prompt, "sent_prompt": prompt, "inputs": {"seed": number}}
        left = 0 if way == "too late" else 3600
        session.add(Prediction(**row, **texts, created_at=begun, submitted_at=begun, seconds_left=left))


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
        _, end = STORY[prompt]
        kept = ("taken", f"{identity}.png") if end == "succeeded" else (None, None)
        is_whole = (status, state, file) == (end, *kept)
        if not is_whole or (file is not None and (folder / file).read_bytes() != picture_of(prompt)):
            lost.append(f"{prompt}: {status}, {state}, {file}")
    for delivery_id in {arrival.webhook_id for arrival in deliveries()}:
        (lost if not stored[delivery_id] else doubled).extend([delivery_id] * abs(stored[delivery_id] - 1))
    lost += [f"unread: {delivery_id}" for delivery_id in unread]
    if shares != SHARES:
        (lost if shares < SHARES else doubled).append(f"{shares} shares")
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


class Count:
    """How many times the studio was killed, and what was lost and doubled."""

    def __init__(self, make_url: Callable[[Path], str], folder: Path) -> None:
        self._make_url = make_url
        self._folder = folder
        self.kills = 0
        self.lost: list[str] = []
        self.doubled: list[str] = []

    def kill_at_every_point(self, every: int) -> None:
        """Kill at every n-th point in turn, until a run has fewer."""
        for point in itertools.count(1, every):
            if self.run(f"point {point}", iter([point])) == 1:
                return

    def run_storms(self, storms: int) -> None:
        """Kill every life at a random point, until one comes through; so many times."""
        for storm in range(storms):
            random_points = random.Random(storm)
            points = (random_points.randint(1, STORM_POINTS) for _ in range(MAX_LIVES))
            assert self.run(f"storm {storm}", points) < MAX_LIVES, "no life came through"

    def run(self, name: str, points: Iterable[int]) -> int:
        """Live and die at these points, at last undisturbed; judge; return the number of lives."""
        home = self._folder / name.replace(" ", "_")
        home.mkdir()
        url, pictures, outside = self._make_url(home), home / "pictures", Outside(home / "outside")
        lives = 0
        for point in itertools.chain(points, [None]):
            lives += 1
            if run_child(lambda: live(url, pictures, outside, point)):  # noqa: B023  runs at once
                break
            self.kills += 1
        lost, doubled = find_faults(url, pictures, outside)
        self.lost += [f"{name}: {what}" for what in lost]
        self.doubled += [f"{name}: {what}" for what in doubled]
        return lives


def soak(folder: Path, *, server: str | None, every: int, storms: int) -> Count:
    """Kill everywhere and in storms: on SQLite in the folder, or on a PostgreSQL server given by its URL."""

    def make_url(home: Path) -> str:
        if server is None:
            return f"sqlite:///{home / 'studio.sqlite3'}"
        return make_database(server, f"crash_{home.name}")

    count = Count(make_url, folder)
    count.kill_at_every_point(every)
    count.run_storms(storms)
    return count


def make_database(server: str, name: str) -> str:
    """Make an empty database on the server; return its URL."""
    import psycopg

    with psycopg.connect(server.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.format(name=name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the studio at every COMMIT and rename.")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th point only")
    parser.add_argument("--storms", type=int, default=20, help="runs in which every life dies somewhere")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL server of its own")
    options = parser.parse_args()
    logging.disable()  # the faults are meant
    limits = {"every": options.every, "storms": options.storms}
    with tempfile.TemporaryDirectory() as name:
        if options.postgresql:
            from tests.postgres import find_programs, run_server

            programs = find_programs()
            if programs is None:
                sys.exit("PostgreSQL's initdb and postgres are not here: apt-get install postgresql")
            with run_server(programs) as server:
                count = soak(Path(name), server=server, **limits)
        else:
            count = soak(Path(name), server=None, **limits)
    for line in (*count.lost, *count.doubled):
        sys.stderr.write(line + "\n")
    sys.stdout.write(f"{count.kills} kills, {len(count.lost)} lost, {len(count.doubled)} doubled\n")
    return int(bool(count.lost or count.doubled))


if __name__ == "__main__":
    sys.exit(main())
