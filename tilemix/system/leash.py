"""Cleans up after this process, however it ends.

A shell reads from a pipe that nobody writes to. When this process ends, even by SIGKILL, the system closes the pipe and
the shell goes on to its command.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path


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
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    weakref.finalize(owner, _remove, folder, Leash('rm -rf -- "$1"', str(folder)))
    return folder


def _remove(folder: Path, leash: Leash) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    leash.drop()
