"""Reads a pickled model file with torch's weights-only unpickler; to be called in a process with limits.

Besides tensors, real checkpoints hold a few objects of their trainers. Stand-ins take their places, so nothing of those
libraries runs, and what they would hold is left out.

Source: the globals in published checkpoints of Stable Diffusion 1 and in files of the web UI's trainers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

import torch

from tilemix.conversion.archive import ZIP_START, check_archive
from tilemix.conversion.names import find_foreign_name
from tilemix.errors import ModelFileError
from tilemix.system.regular import open_regular

# What torch's messages call a global that it does not allow.
GLOBAL = re.compile(
    r"\bGLOBAL ([\w.<>-]{1,200})|unrecognized function (.{1,80})|but got <class '([\w.]{1,200})'>"
)
INNER = re.compile(r"WeightsUnpickler error:\s*(\S.*)")  # the reason, after torch's advice
NO_MEMORY = re.compile(r"allocate memory|bad_alloc|Cannot allocate|unable to mmap", re.IGNORECASE)


class LeftOut:
    """Stands for an object that is not a tensor."""

    def __new__(cls, *_: object) -> LeftOut:
        """Take whatever the object would have been made of."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget what it would have held."""


class ParameterTable:
    """Stands for `torch.nn.ParameterDict`, in which the web UI's embeddings keep their rows."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.parameters: object = None

    def __setstate__(self, state: object) -> None:
        """Keep the tensors of a module's state."""
        self.parameters = state.get("_parameters") if isinstance(state, dict) else None


def _leave_out(*_: object) -> LeftOut:
    return LeftOut()


STAND_INS: tuple[tuple[Callable[..., object], str], ...] = (
    (ParameterTable, "torch.nn.modules.container.ParameterDict"),
    (LeftOut, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (LeftOut, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (LeftOut, "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint"),
    (LeftOut, "numpy.dtype"),
    (LeftOut, "numpy.ndarray"),
    (_leave_out, "numpy.core.multiarray.scalar"),
    (_leave_out, "numpy.core.multiarray._reconstruct"),
    (_leave_out, "numpy._core.multiarray.scalar"),
    (_leave_out, "numpy._core.multiarray._reconstruct"),
)  # fmt: skip


def read_pickled(path: Path) -> object:
    """Return what the pickled file `path` holds: tensors in plain containers, mapped from the file where it is a zip.

    Raises:
        ModelFileError: it names anything else, or is broken.
        MemoryError: it takes more memory than this process may have.
    """
    try:
        with open_regular(path) as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
        if is_zip:
            check_archive(path)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    try:
        # Some of torch's warnings concern legacy storage classes, which old files name.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals(list(STAND_INS)),
            TemporaryDirectory() as folder,
        ):
            # torch goes by the name: it takes whatever ends in .safetensors for such a file.
            link = Path(folder, "pickled")
            link.symlink_to(path.absolute())
            return torch.load(link, map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError:
        raise
    except Exception as error:  # a hostile file makes torch raise anything
        text = str(error)
        if NO_MEMORY.search(text):
            raise MemoryError from error
        if found := GLOBAL.search(text):
            name = next(group for group in found.groups() if group)
            raise ModelFileError("pickle-global", file=path.name, name=name) from error
        # torch stops at the first instruction that it does not know, which may stand before the name.
        if (
            foreign := find_foreign_name(path, is_zip=is_zip, known={name for _, name in STAND_INS})
        ) is not None:
            raise ModelFileError("pickle-global", file=path.name, name=foreign) from error
        inner = INNER.search(text)
        line = inner[1] if inner else next(iter(text.splitlines()), "") or type(error).__name__
        reason = shorten(line, 120, placeholder=" ...")
        raise ModelFileError("pickle-unreadable", file=path.name, reason=reason) from error
