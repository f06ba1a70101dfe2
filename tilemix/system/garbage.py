"""Python's garbage collector, kept still while much is made that stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector still: what is made within is many objects, and hardly one of them garbage.

    Each full collection walks through everything that has been imported. A start of tilemix, whose imports make a
    million objects, takes 0.8 of its time without them; a header of a hundred thousand tensors takes half.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
