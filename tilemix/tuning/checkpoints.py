"""Checkpoints of a stage: all of its state in one file that is old or new, never half written."""

from __future__ import annotations

import math
import pickle
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from tilemix.errors import TrainingError
from tilemix.system.atomic import open_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written under a temporary name; it takes its own name at the end, or never.

    A crash at any moment leaves what stood there before.

    Raises:
        TrainingError: it cannot be written, the disk being full for one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # torch turns the system's own error into a RuntimeError of its zip writer.
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError("training-file-unwritable", file=str(path), reason=reason) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and numbers; a crash at any moment leaves the checkpoint before this one.

    Raises:
        TrainingError: it cannot be written.
    """
    with write_whole(path) as file:
        torch.save(state, file)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array; a reader finds all of it or what stood there before.

    Raises:
        TrainingError: it cannot be written.
    """
    with write_whole(path) as file:
        np.save(file, array)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state, None if there is no checkpoint.

    Raises:
        TrainingError: it is none.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError("training-checkpoint-broken", file=str(path)) from error
    return state


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the factor (0..1) of the highest learning rate: a linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
