"""Where pictures are drawn: what a run asks of it, and the plainest one, this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tilemix.catalogue.folder import Folder
    from tilemix.catalogue.rows import Row
    from tilemix.catalogue.worker import Drawn, PictureWorker, Plan
    from tilemix.errors import Message
    from tilemix.pictures.record import Record


class Engine(Protocol):
    """One worker or many."""

    def describe(self) -> Record | None:
        """Return what all its pictures have in common; None while that is not known."""

    def plan(self, rows: Sequence[Row]) -> list[Plan | Message]:
        """Return for each row what is to be drawn, or why it cannot be."""

    def draw(
        self, take: Callable[[], Plan | None], on_death: Callable[[Plan], None]
    ) -> Iterator[tuple[Plan, Drawn | Message]]:
        """Draw plans, taken one by one as workers become free; yield each when it is done, in any order.

        `take` returns None when there is nothing to draw; it is asked again after a death. `on_death` is told of a
        plan that a worker died of.
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
        take: Callable[[], Plan | None],
        on_death: Callable[[Plan], None],  # noqa: ARG002  a death here is this process's own: the next run sees it
    ) -> Iterator[tuple[Plan, Drawn | Message]]:
        """Draw the plans in their order."""
        while (plan := take()) is not None:
            self._folder.begin_drawing(plan.id)
            try:
                outcome = self._worker.draw(plan)
            finally:
                self._folder.end_drawing()
            yield plan, outcome
