"""Limits on processor time that also hold on a slower machine.

A limit is written in seconds of the machine it was set on. Beside each measurement a yardstick is run: where it takes
twice as long, the limit is twice as long too. On a faster machine the limit stays.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

# What `measure_yardstick` takes with CPython 3.11 on one 2.45 GHz core of AMD Zen 3, where the limits were set.
REFERENCE_SECONDS = 0.040
TRIES = 5
ENTRIES = {f"down_blocks.{i}": {"dtype": "F32", "shape": [i, 2], "text": "x" * 40} for i in range(6_000)}


def measure_yardstick() -> float:
    """Return the processor seconds of a fixed piece of interpreter work: JSON there and back, sorted."""

    def work() -> None:
        for _ in range(2):
            table = json.loads(json.dumps(ENTRIES))
            sorted(table, key=lambda name: table[name]["text"] + name)

    return processor_seconds(work)


def assert_quick(measure: Callable[[], float], limit: float) -> None:
    """Fail unless one of five tries keeps the limit; another program may slow down a try, not all of them.

    Args:
        measure: does the work and returns the seconds that it took.
        limit: the most seconds, on the machine of the reference.
    """
    tries = []
    for _ in range(TRIES):
        seconds, pace = measure(), measure_yardstick() / REFERENCE_SECONDS
        if seconds <= limit * max(1.0, pace):
            return
        tries.append(f"{seconds:.4f} s at {pace:.2f} of the reference's time")
    raise AssertionError(f"none of {TRIES} tries within {limit} s: {', '.join(tries)}")


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of a piece of work in this process."""
    began = time.process_time()
    work()
    return time.process_time() - began
