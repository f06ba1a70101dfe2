"""Cleans up after this process, however it ends.

A shell reads from a pipe that nobody writes to. When this process ends, even by SIGKILL, the system closes the pipe and
the shell goes on to its command.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Leash:
    """Runs a shell command when this process ends; `$1`, `$2`, ... in it are the arguments."""

    def __init__(self, command: str, *arguments: str) -> None:
        self._shell = subprocess.Popen(  # noqa: S603  our own arguments, no shell
            ("/bin/sh", "-c", f"read -r _; {command}", "leash", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # whoever reads this process's output must not wait for the shell
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to this process's group is not for the shell
        )

    def drop(self) -> None:
        """Forget the command."""
        self._shell.kill()
        self._shell.communicate()


def make_own_folder(prefix: str, *, owner: object) -> Path:
    """Return a new temporary folder that goes with its owner, and at the latest with this process.

    Raises:
        OSError: there is no room for it.
    """
    folder, leash = _make_folder(prefix)
    weakref.finalize(owner, _remove, folder, leash)
    return folder


@contextlib.contextmanager
def own_folder(prefix: str) -> Iterator[Path]:
    """Give a new temporary folder that goes at the end of the context, and at the latest with this process.

    Raises:
        OSError: there is no room for it.
    """
    folder, leash = _make_folder(prefix)
    try:
        yield folder
    finally:
        _remove(folder, leash)


def _make_folder(prefix: str) -> tuple[Path, Leash]:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    return folder, Leash('rm -rf -- "$1"', str(folder))


def _remove(folder: Path, leash: Leash) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    leash.drop()
