"""Kill what draws a catalogue on Ray, at random moments, and count what is lost and what is doubled.

The miniature, or a stand-in for it, draws a list of eleven rows with two actors. In each session the driver runs in a
process of its own, and this one sends SIGKILL: to actors, to the driver, to the raylet; or a row of the list kills each
actor that draws it; or the disk that is drawn to is full. Then the same list is drawn to its end without Ray; where
actors were killed, with a retry. Every row must be listed once, every picture must be there once and be byte for byte
the one that an undisturbed run gives.

    python -m tests.soak_catalogue [--sessions N] [--only KIND ...]

Prints one line a session and at the end `N kills, 0 lost, 0 doubled`; the exit status is 1 where that is not so. The
full disk is a tmpfs of its own, which takes root to mount; the stand-in's pictures are too small to fill it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.catalogue_parts import POISON, StandInRenderer, draw
from tilemix.catalogue.cluster import RayEngine
from tilemix.catalogue.engines import LocalEngine
from tilemix.catalogue.folder import Folder
from tilemix.catalogue.results import write_results
from tilemix.catalogue.rows import RowFile
from tilemix.catalogue.run import MOST_DEATHS
from tilemix.catalogue.worker import RendererWorker
from tilemix.errors import TilemixError
from tilemix.pipelines.settings import Settings
from tilemix.pipelines.speed import Precision
from tilemix.system.project import ROOT

KINDS = ("poison", "driver", "raylet", "disk", "actor")
VICTIMS = {"actor": "ray::Actor", "raylet": "raylet/raylet"}  # -> part of the command line
ACTORS = 2
KILLS = 5  # of actors, in one session
COLORS = ("red", "black", "pearl", "blue", "green", "yellow")
ROWS = [
    *(f"{70 - 5 * place}% {color}, {30 + 5 * place}% white" for place, color in enumerate(COLORS)),
    "100% red",
    "100% rot",  # the same picture as the row before
    "100% blak",  # cannot be read
    "50% brown, 50% gray",
    "60% orange, 40% beige",
]
DEADLY = [f"100% {color}, {POISON}" for color in ("purple", "white")]
SIZE = {"width": 256, "height": 256, "num_inference_steps": 1}
DISK_BYTES = 6 * 2**20
LEDGER_BYTES = 2**16  # with its journal
PATIENCE = 900.0  # seconds, for a session
MARK = "CATALOGUE_SOAK"  # the environment variable by which a session knows its processes


class DeadlyWorker(RendererWorker):
    """The miniature, and a prompt that kills the process that draws it."""

    def draw(self, plan):
        if POISON in plan.request.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(plan)


def load_deadly():
    """Return a worker with the miniature, on one thread."""
    return DeadlyWorker.load("miniature", Settings(threads=1, precision=Precision.FP32))


def load_stand_in():
    """Return a worker that takes a second for a picture, and hardly any of the processor's time."""
    return RendererWorker(StandInRenderer(seconds=1.0))


LOADS = {"miniature": load_deadly, "stand-in": load_stand_in}


def write_list(path: Path, prompts: list[str]) -> Path:
    """Write the list of rows."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def drive(listing: Path, out: Path, model: str) -> int:
    """Draw a list on Ray, as the session's driver."""
    rows = RowFile(listing, SIZE)
    try:
        folder = Folder(out)
        try:
            with RayEngine(LOADS[model], threads=1, actors=ACTORS) as engine:
                progress = draw(rows, folder, engine)
                write_results(folder, progress, engine.describe())
        finally:
            folder.close()
    except TilemixError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


class Session:
    """A driver in a process of its own, and all processes that it has started."""

    def __init__(self, listing: Path, out: Path, model: str) -> None:
        self.out = out
        self._token = uuid.uuid4().hex
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "tests.soak_catalogue", "--drive", listing, out, model],
            cwd=ROOT,
            env=os.environ | {MARK: self._token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def find(self, part: str) -> list[int]:
        """Return the processes of this session whose command line begins with or holds `part`."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                with contextlib.suppress(OSError):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if part in command and self._token.encode() in (process / "environ").read_bytes():
                        found.append(int(process.name))
        return found

    def count_pictures(self) -> int:
        """Return how many pictures there are."""
        return sum(1 for _ in self.out.glob("pictures/*/*.png"))

    def wait_for(self, pictures: int) -> bool:
        """Wait until there are so many pictures; return whether the driver still runs."""
        deadline = time.monotonic() + PATIENCE
        while self.count_pictures() < pictures and self.driver.poll() is None:
            assert time.monotonic() < deadline, "no pictures"
            time.sleep(0.1)
        return self.driver.poll() is None

    def kill(self, victim: str, rng: random.Random) -> int:
        """Kill one of the processes that are such a victim; return how many that were."""
        found = [self.driver.pid] if victim == "driver" else self.find(VICTIMS[victim])
        if not found or self.driver.poll() is not None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(found), signal.SIGKILL)
            return 1
        return 0

    def end(self) -> str:
        """Wait for the driver; kill what it leaves behind; return what it wrote to standard error."""
        _, text = self.driver.communicate(timeout=PATIENCE)
        for process in self.find(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return text


def disturb(victims: list[str], session: Session, pictures: int, rng: random.Random) -> int:
    """Kill the victims at random moments of drawing so many pictures; return how many kills there were."""
    kills = 0
    moments = sorted(rng.choices(range(pictures - 1), k=len(victims)))
    for victim, moment in zip(victims, moments, strict=True):
        if not session.wait_for(moment):
            break
        time.sleep(rng.random() * 0.5)
        kills += session.kill(victim, rng)
    return kills


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a small tmpfs."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


class Outcome(NamedTuple):
    """What became of a session."""

    kills: int
    lost: int  # rows
    doubled: int  # rows, or pictures
    said: str  # the driver's last line


class Campaign:
    """Sessions of every kind, each held against an undisturbed run."""

    def __init__(
        self, folder: Path, *, seed: int = 0, model: str = "miniature", prompts: list[str] | None = None
    ) -> None:
        self._folder = folder
        self._model = model
        self._rng = random.Random(seed)
        self._worker = LOADS[model]()
        self._prompts = ROWS if prompts is None else prompts
        undisturbed = folder / "undisturbed"
        self._done = self.finish(write_list(folder / "list.jsonl", self._prompts), undisturbed)["done"]
        self._expected = hash_pictures(undisturbed)
        self._picture_bytes = sum(path.stat().st_size for path in undisturbed.glob("*s/*/*"))

    def finish(self, listing: Path, out: Path, *, retry: bool = False) -> dict:
        """Draw a list to its end, without Ray; return the summary."""
        rows, folder = RowFile(listing, SIZE), Folder(out)
        if retry:
            folder.ledger.forget_deaths()
        engine = LocalEngine(self._worker, folder)
        progress = draw(rows, folder, engine)
        summary = write_results(folder, progress, engine.describe())
        folder.close()
        rows.close()
        return summary

    def run_session(self, kind: str, *, actor_kills: int = KILLS) -> Outcome:
        """Disturb a session, draw what is missing without Ray, and count."""
        place = Path(tempfile.mkdtemp(dir=self._folder))
        out, deadly = place / "out", DEADLY if kind == "poison" else []
        listing = write_list(place / "list.jsonl", [*self._prompts[:2], *deadly, *self._prompts[2:]])
        with small_disk(out) if kind == "disk" else contextlib.nullcontext():
            if kind == "disk":  # what is free is too little for all pictures
                free = int(self._picture_bytes * (0.1 + 0.6 * self._rng.random())) + LEDGER_BYTES
                (out / "other-data").write_bytes(bytes(DISK_BYTES - free))
            session = Session(listing, out, self._model)
            victims = {"actor": ["actor"] * actor_kills, "driver": ["driver"], "raylet": ["raylet"]}
            kills = disturb(victims.get(kind, []), session, len(self._expected), self._rng)
            text = session.end()
            if kind == "disk":
                kills += bool(session.driver.returncode)
                (out / "other-data").unlink()
            if kind == "poison":  # otherwise the deadly rows would be this process's turn
                assert session.driver.returncode == 0, text
                kills += MOST_DEATHS * len(DEADLY)
            # Kills may hit the actor that draws a row three times; that row is listed as failed until a retry.
            self.finish(listing, out, retry=kind == "actor")
            lost, doubled = self.compare(out, len(deadly))
        return Outcome(kills, lost, doubled, (text.strip().splitlines() or [""])[-1])

    def compare(self, out: Path, deadly: int) -> tuple[int, int]:
        """Return how many rows are lost and how many are doubled."""
        results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        found = hash_pictures(out)
        numbers = {row["row"] for row in results}
        done = sum(row["status"] == "done" for row in results)
        lost = (len(self._prompts) + deadly - len(numbers)) + (self._done - done)
        lost += sum(found.get(name) != digest for name, digest in self._expected.items())
        doubled = len(results) - len(numbers) + len(set(found) - set(self._expected))
        doubled += sum(1 for _ in out.rglob("*.tmp"))
        return lost, doubled


def hash_pictures(out: Path) -> dict[str, str]:
    """Return the hash of every picture by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("pictures/*/*")}


def run(sessions: dict[str, int], seed: int = 0, model: str = "miniature") -> dict[str, dict[str, int]]:
    """Run so many sessions of each kind; return the sessions, kills, lost and doubled of each."""
    totals = {}
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), seed=seed, model=model)
        for kind, count in sessions.items():
            found = []
            for _ in range(count):
                found.append(campaign.run_session(kind))
                sys.stderr.write(f"{kind}: {found[-1]}\n")
            counts = {name: sum(getattr(one, name) for one in found) for name in ("kills", "lost", "doubled")}
            totals[f"{model}, {kind}"] = {"sessions": count} | counts
    return totals


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill what draws a catalogue on Ray.")
    parser.add_argument(
        "--drive", nargs=3, metavar=("LIST", "OUT", "MODEL"), help="draw as a session's driver"
    )
    parser.add_argument("--sessions", type=int, default=4, metavar="N", help="of each kind; default: 4")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--model", choices=LOADS, default="miniature")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.drive:
        listing, out, model = options.drive
        return drive(Path(listing), Path(out), model)
    totals = run(dict.fromkeys(options.only, options.sessions), options.seed, options.model)
    kills, lost, doubled = (
        sum(total[name] for total in totals.values()) for name in ("kills", "lost", "doubled")
    )
    sys.stdout.write(f"{json.dumps(totals)}\n{kills} kills, {lost} lost, {doubled} doubled\n")
    return int(bool(lost or doubled))


if __name__ == "__main__":
    sys.exit(main())
