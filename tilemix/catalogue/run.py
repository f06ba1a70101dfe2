"""Draws a catalogue: every row of a file into a folder, so that a second run draws only what is missing.

A row's fault, whatever it is, stays its own. What stops a run is a fault of what the rows share: the folder, the
model, the cluster. Then what was drawn is kept, and the same command goes on from there.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from tilemix.catalogue.ledger import DONE, FAILED, Entry
from tilemix.errors import Message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from tilemix.catalogue.engines import Engine
    from tilemix.catalogue.folder import Folder
    from tilemix.catalogue.progress import Progress
    from tilemix.catalogue.rows import Row, RowFile
    from tilemix.catalogue.worker import Drawn, Plan

PLANNED_AT_ONCE = 256  # rows
MOST_DEATHS = 3  # of workers, of one row


class Stop:
    """Whether the run is to end after the pictures that are being drawn."""

    def __init__(self) -> None:
        self.is_asked = False


def draw_catalogue(rows: RowFile, folder: Folder, engine: Engine, progress: Progress, stop: Stop) -> None:
    """Draw every row that is missing from the folder, or whose file is not what was recorded.

    Args:
        rows: what to draw.
        folder: where to.
        engine: what draws.
        progress: told of every row.
        stop: asked before every picture.

    Raises:
        TilemixError: something that all rows share does not work. What was drawn is recorded.
    """
    ledger = folder.ledger
    folder.sweep()
    if (identity := folder.end_drawing()) is not None:
        ledger.add_death(identity)

    def keep(plan: Plan, outcome: Drawn | Message) -> None:
        if isinstance(outcome, Message):
            facts = {"prompt": plan.request.prompt, "seed": plan.request.seed, "error": outcome.describe()}
            ledger.record(plan.id, Entry(FAILED, None, None), facts)
        else:
            ledger.record(plan.id, folder.keep(plan, outcome), outcome.facts)

    suspects: deque[Plan] = deque()  # drawn last, so that a row that kills what draws it costs no neighbor

    def judge(plan: Plan, deaths: int) -> None:
        if deaths < MOST_DEATHS:
            suspects.append(plan)
        else:
            keep(plan, Message("catalogue-row-kills", {"times": deaths}))
            progress.count_failed()

    def find_missing() -> Iterator[Plan]:
        progress.begin()
        ledger.begin_listing()
        for row, plan in _plan_rows(rows, engine):
            if stop.is_asked:
                return
            if isinstance(plan, Message):
                ledger.list_fault(row.number, str(row.inputs.get("prompt", "")), plan)
                progress.count_failed()
                continue
            is_first = ledger.list_row(row.number, plan.id)
            entry = ledger.find(plan.id)
            if not is_first or (entry is not None and entry.status == DONE and folder.holds(entry)):
                progress.count_kept()
            elif deaths := ledger.count_deaths(plan.id):
                judge(plan, deaths)
            else:
                yield plan

    missing = find_missing()

    def take() -> Plan | None:
        plan = next(missing, None) or (suspects.popleft() if suspects else None)
        return None if stop.is_asked else plan

    for plan, outcome in engine.draw(take, lambda plan: judge(plan, ledger.add_death(plan.id))):
        keep(plan, outcome)
        if isinstance(outcome, Message):
            progress.count_failed()
        else:
            progress.count_drawn()
    ledger.commit()


def _plan_rows(rows: RowFile, engine: Engine) -> Iterator[tuple[Row, Plan | Message]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, PLANNED_AT_ONCE)):
        yield from zip(chunk, engine.plan(chunk), strict=True)


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask to stop in this context; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_: int, __: FrameType | None) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
