"""Draws on Ray, on this machine's cores or on a cluster: each actor holds a loaded model.

Pictures come back to this process, which alone writes; so the machines need no common folder. An actor has one plan at
a time: when it dies, it is known of which. Ray Data is not used, because it repeats a row that kills its worker for
ever, and loses a whole block to one bad row unless the job may fail.

Source: Ray 2.60, "Actors" and "Fault tolerance", https://docs.ray.io/en/latest/ray-core/actors.html
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, cast

import msgspec

from tilemix.catalogue import LOCAL
from tilemix.catalogue.greeting import greet
from tilemix.errors import TilemixError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tilemix.catalogue.rows import Row
    from tilemix.catalogue.worker import Drawn, PictureWorker, Plan
    from tilemix.errors import Message
    from tilemix.pictures.record import Record

logger = logging.getLogger(__name__)

START_SECONDS = "300"  # for Ray's own processes on a busy machine; by default 60
WAIT_SECONDS = 1.0  # between looks at signals, and at the cluster's head
SILENCE_SECONDS = 30.0  # of the head; after 60 Ray ends this process without a line of ours
MOST_DEATHS = 3  # of actors in a row that never came to draw; of those asked for the same plans


class Actor:
    """A worker in a process of its own."""

    def __init__(self, load: Callable[[], PictureWorker]) -> None:
        self._load = load
        self._worker: PictureWorker | None = None

    def describe(self) -> Record:
        """Load the worker, and return what all its pictures have in common."""
        self._worker = self._load()
        return self._worker.describe()

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return what is to be drawn for each row."""
        assert self._worker is not None
        return self._worker.plan(rows)

    def draw(self, plan: Plan) -> Drawn | Message:
        """Draw one picture."""
        assert self._worker is not None
        return self._worker.draw(plan)


class RayEngine:
    """Draws on the actors of a Ray cluster. A context manager: the actors end with it.

    Args:
        load: makes a worker; called in each actor's process.
        address: of a running cluster, or "local" for one on this machine that ends with this process.
        threads: CPU cores that an actor takes; on a machine with GPUs it takes one GPU.
        actors: how many; None: all that fit.

    Raises:
        TilemixError: Ray is not installed, the cluster does not answer, or no actor fits.
    """

    def __init__(
        self,
        load: Callable[[], PictureWorker],
        *,
        address: str = LOCAL,
        threads: int = 1,
        actors: int | None = None,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers by default
        os.environ.setdefault("RAY_raylet_start_wait_time_s", START_SECONDS)
        try:
            import ray
            from ray import exceptions
        except ImportError as error:
            raise TilemixError("catalogue-needs-ray") from error
        self._ray: Any = ray
        # What Ray raises for an actor whose process or machine is gone.
        self._deaths = (
            exceptions.RayActorError,
            exceptions.OutOfMemoryError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
        )
        self._load = load
        self._busy: dict[Any, tuple[Any, Plan | None]] = {}  # what an actor works on; None: it is loading
        self._idle: list[Any] = []
        self._failed_loads = 0
        self._common: Record | None = None
        self._connect(address)
        self._head = "" if address.startswith("ray://") else ray.get_runtime_context().gcs_address
        self._head_answered_at = time.monotonic()
        try:
            kind, count = self._choose_actors(threads)
            self._kind = self._ray.remote(**kind)(Actor)
            for _ in range(actors or count):
                self._start()
        except BaseException:
            ray.shutdown()
            raise

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *trace: object) -> None:
        self._ray.shutdown()

    def describe(self) -> Record | None:
        """Return what all its pictures have in common; None while no actor is ready."""
        return self._common

    def load_all(self) -> None:
        """Wait until every actor has loaded its worker; drawing begins as soon as one has."""
        while loading := self._list_loading():
            self._take_one(loading)

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return for each row what is to be drawn, or why it cannot be; an idle actor finds out."""
        for _ in range(MOST_DEATHS):
            actor = self._find_idle()
            try:
                return cast("list[Plan | Message]", self._get(actor.plan.remote(rows)))
            except self._deaths:
                self._idle.remove(actor)
                self._start()
        raise TilemixError("catalogue-ray-lost", reason="workers die of reading the rows")

    def draw(
        self, take: Callable[[], Plan | None], on_death: Callable[[Plan], None]
    ) -> Iterator[tuple[Plan, Drawn | Message]]:
        """Draw plans on all actors until there are no more; yield each when it is done, in any order."""
        self._find_idle()
        taken: Plan | None = None
        while True:
            is_over = False
            while self._idle and not is_over:
                taken = taken or take()
                if taken is None:
                    is_over = True
                elif self._idle:  # planning may have lost the last one
                    actor = self._idle.pop()
                    self._busy[actor.draw.remote(taken)] = (actor, taken)
                    taken = None
            if is_over and all(plan is None for _, plan in self._busy.values()):
                return
            plan, outcome = self._take_one(list(self._busy))
            if plan is not None and outcome is not None:
                yield plan, outcome
            elif plan is not None:
                on_death(plan)

    def _connect(self, address: str) -> None:
        options = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == LOCAL:
            options |= {"include_dashboard": False, "num_cpus": len(os.sched_getaffinity(0))}
        else:
            _refuse_other(address)
        try:
            self._ray.init(address=address, **options)
        except Exception as error:  # a bare one where a process of Ray's does not start
            reason = str(error).partition("\n")[0]
            raise TilemixError("catalogue-ray-unreachable", address=address[:80], reason=reason) from error

    def _choose_actors(self, threads: int) -> tuple[dict[str, object], int]:
        """Return what an actor takes, as options of ray.remote, and how many fit."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if gpus := sum(int(node.get("GPU", 0)) for node in nodes):
            return {"num_gpus": 1, "num_cpus": 1, "max_restarts": 0}, gpus
        count = sum(int(node.get("CPU", 0)) // threads for node in nodes)
        if not count:
            raise TilemixError("catalogue-ray-no-room", threads=threads)
        return {"num_cpus": threads, "max_restarts": 0}, count

    def _start(self) -> None:
        """Start an actor; it is busy with loading its worker.

        Raises:
            TilemixError: the cluster is gone, or this machine's part of it.
        """
        while not self._hear_head():  # Ray would wait for it without end
            time.sleep(WAIT_SECONDS)
        own = self._ray.get_runtime_context().get_node_id()
        if not any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == own):
            raise TilemixError("catalogue-ray-lost", reason="this machine's raylet is gone")
        actor = self._kind.remote(self._load)
        self._busy[actor.describe.remote()] = (actor, None)

    def _find_idle(self) -> Any:
        """Return an actor that waits for work, or else the first of those that are loading."""
        while not self._idle:
            self._take_one(self._list_loading())
        return self._idle[-1]

    def _list_loading(self) -> list[Any]:
        """Return the answers of the actors that are loading."""
        return [answer for answer, (_, plan) in self._busy.items() if plan is None]

    def _take_one(self, among: list[Any]) -> tuple[Plan | None, Drawn | Message | None]:
        """Wait for one of the answers; return its plan, None for a load, and the outcome, None if the actor died."""
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(among, num_returns=1, timeout=WAIT_SECONDS)
            if not ready:
                self._hear_head()
        actor, plan = self._busy.pop(ready[0])
        try:
            answer = self._get(ready[0])
        except self._deaths as error:
            if plan is None:
                self._failed_loads += 1
                if self._failed_loads >= MOST_DEATHS:
                    reason = f"{MOST_DEATHS} workers in a row died before they could draw"
                    raise TilemixError("catalogue-ray-lost", reason=reason) from error
            self._start()
            return plan, None
        self._idle.append(actor)
        self._failed_loads = 0
        if plan is None:
            self._compare(answer)
            return None, None
        return plan, answer

    def _hear_head(self) -> bool:
        """Return whether the cluster's head answers.

        Raises:
            TilemixError: it has not done so for a while.
        """
        now = time.monotonic()
        try:
            if self._head:  # otherwise only the machine that this one is a client of reaches it
                greet(self._head)
        except (OSError, ValueError) as error:
            if now - self._head_answered_at > SILENCE_SECONDS:
                reason = f"its head at {self._head} does not answer"
                raise TilemixError("catalogue-ray-lost", reason=reason) from error
            return False
        self._head_answered_at = now
        return True

    def _compare(self, common: Record) -> None:
        """Refuse a worker whose pictures would differ from the others'.

        Raises:
            TilemixError: it has another model, other versions, another device or another dtype.
        """
        if self._common is None:
            self._common = common
        first, other = msgspec.structs.asdict(self._common), msgspec.structs.asdict(common)
        differing = [name for name, value in first.items() if other[name] != value]
        if differing:
            raise TilemixError("catalogue-workers-differ", names=", ".join(differing))

    def _get(self, answer: Any) -> Any:
        """Return an actor's answer; an error of ours in it is raised as it was there.

        Raises:
            TilemixError: the actor raised one, or another error, which no row is to blame for.
        """
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TilemixError):
                raise error.cause from None
            reason = f"{type(error.cause).__name__}: {error.cause}"[:200]
            raise TilemixError("catalogue-ray-lost", reason=reason) from error


def _refuse_other(address: str) -> None:
    """Refuse the address of a cluster where nothing listens, or something other than Ray, which Ray tries for minutes.

    Raises:
        TilemixError: it is such a one.
    """
    if address == "auto":
        return
    try:
        greet(address)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TilemixError("catalogue-ray-unreachable", address=address[:80], reason=reason) from error
