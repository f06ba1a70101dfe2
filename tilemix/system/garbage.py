"""Pauses Python's garbage collector while many lasting objects are created."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector, where many objects are created and hardly any of them is garbage.

    Each full collection visits every object so far. Importing tilemix's libraries creates a million objects, and
    without collections it takes 0.8 of the time; reading a header of a hundred thousand tensors takes half.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
