"""Checkpoints: the whole state of a training stage in one file, replaced atomically."""

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
    """Open a file under a temporary name; it is renamed when the block ends without an error.

    A crash at any moment leaves the previous file in place.

    Raises:
        TrainingError: it cannot be written, for example because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns the system's error into a RuntimeError.
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError("training-file-unwritable", file=str(path), reason=reason) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and numbers; a crash at any moment leaves the previous checkpoint in place.

    Raises:
        TrainingError: it cannot be written.
    """
    with write_whole(path) as file:
        torch.save(state, file)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array; a reader finds the whole new array or the previous one.

    Raises:
        TrainingError: it cannot be written.
    """
    with write_whole(path) as file:
        np.save(file, array)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state, or None if there is no checkpoint.

    Raises:
        TrainingError: the file is not a readable checkpoint.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError("training-checkpoint-broken", file=str(path)) from error
    return state


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the factor (0..1) on the peak learning rate: a linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
