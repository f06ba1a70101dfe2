"""Running a module in its own process, and controlling the page cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tilemix.system.project import ROOT

CPU_ALONE = {"CUDA_VISIBLE_DEVICES": ""}
BLOCK = 8 * 2**20


def run_module(
    module: str,
    *arguments: object,
    timeout: float = 600,
    environment: Mapping[str, str] = CPU_ALONE,
    packages: Path | None = None,
) -> dict[str, float]:
    """Run `python -m module` and return the figures of its last line, which is JSON, with `started_at`."""
    started_at = time.monotonic()
    line = read_last_line(module, *arguments, timeout=timeout, environment=environment, packages=packages)
    return msgspec.json.decode(line, type=dict[str, float]) | {"started_at": started_at}


def read_last_line(
    module: str,
    *arguments: object,
    timeout: float = 600,
    environment: Mapping[str, str] = CPU_ALONE,
    packages: Path | None = None,
) -> str:
    """Run `python -m module` in the project's folder and return the last line that it prints.

    `packages` is a folder of packages that replaces the environment's own, those of PYTHONPATH included.
    """
    own = ["-S"] if packages else []  # no site-packages
    others = str(packages) if packages else os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([str(ROOT), *([others] if others else [])])
    done = subprocess.run(  # noqa: S603  our own command
        [sys.executable, *own, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{module} ended with {done.returncode}: {said[:300]}")
    return done.stdout.splitlines()[-1]


def evict(files: Sequence[Path]) -> None:
    """Ask the system to drop files from its page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(file: Path, *, block: int = BLOCK) -> None:
    """Read a file from beginning to end into one buffer of `block` bytes."""
    buffer = bytearray(block)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass
