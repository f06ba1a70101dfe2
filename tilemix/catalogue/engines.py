"""Where pictures are drawn: what a run asks of it, and the plainest one, this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tilemix.catalogue.folder import Folder
    from tilemix.catalogue.rows import Row
    from tilemix.catalogue.worker import Drawn, PictureWorker, Plan
    from tilemix.errors import Message
    from tilemix.pictures.record import Record


class Engine(Protocol):
    """One worker or many."""

    def describe(self) -> Record:
        """Return what all its pictures have in common."""

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return for each row what is to be drawn, or why it cannot be."""

    def draw(
        self, plans: Iterable[Plan], on_death: Callable[[Plan], bool]
    ) -> Iterator[tuple[Plan, Drawn | Message]]:
        """Draw the plans, taken one by one as workers become free; yield each when it is done, in any order.

        `on_death` is called when a worker died of a plan, and says whether to try once more.
        """


class LocalEngine:
    """Draws in this process, one picture after the other."""

    def __init__(self, worker: PictureWorker, folder: Folder) -> None:
        self._worker = worker
        self._folder = folder

    def describe(self) -> Record:
        """Return what all its pictures have in common."""
        return self._worker.describe()

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return for each row what is to be drawn, or why it cannot be."""
        return self._worker.plan(rows)

    def draw(
        self,
        plans: Iterable[Plan],
        on_death: Callable[[Plan], bool],  # noqa: ARG002  a death here is this process's own: the next run sees it
    ) -> Iterator[tuple[Plan, Drawn | Message]]:
        """Draw the plans in their order."""
        for plan in plans:
            self._folder.begin_drawing(plan.id)
            try:
                outcome = self._worker.draw(plan)
            finally:
                self._folder.end_drawing()
            yield plan, outcome
