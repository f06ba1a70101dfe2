"""What the environment says about how to draw: TILEMIX_THREADS, TILEMIX_SPEED, ... and TILEMIX_MEMORY."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from tilemix.errors import TilemixError
from tilemix.pipelines.speed import Precision, Speed
from tilemix.system.environment import check_names

THREADS = re.compile(r"[0-9]{1,4}")
MOST_THREADS = 1024
SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([KMGT]i?B|B)?")
UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """How a process draws."""

    threads: int | None = None  # of torch on the CPU; None: one per core. The number changes the last bits
    speed: Speed = Speed.EQUIVALENT
    compiled: bool = False  # see tilemix.pipelines.compilation
    precision: Precision | None = None  # of `equivalent` and `fast` on a CPU; None: by a trial
    memory: int | None = None  # bytes that loaded models may take together; None: by what is free


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings in `environment`; a variable that is unset or empty has its default.

    Raises:
        TilemixError: a value cannot be used, or a name that begins with TILEMIX_ is not known.
    """
    check_names(environment)
    return Settings(
        threads=parse_threads(environment.get("TILEMIX_THREADS")),
        speed=parse_speed(environment.get("TILEMIX_SPEED")),
        compiled=parse_compile(environment.get("TILEMIX_COMPILE")),
        precision=parse_precision(environment.get("TILEMIX_PRECISION")),
        memory=parse_memory(environment.get("TILEMIX_MEMORY")),
    )


def parse_threads(text: str | None, name: str = "TILEMIX_THREADS") -> int | None:
    """Return the number of CPU threads that a setting or an option asks for; None if it is unset or empty.

    Raises:
        TilemixError: it is not an integer from 1 to MOST_THREADS.
    """
    if not text:
        return None
    if not (THREADS.fullmatch(text) and 1 <= int(text) <= MOST_THREADS):
        raise TilemixError("settings-not-an-integer", name=name, typed=text[:40], low=1, high=MOST_THREADS)
    return int(text)


def parse_speed(text: str | None) -> Speed:
    """Return the mode that TILEMIX_SPEED asks for; `equivalent` if it is unset or empty.

    Raises:
        TilemixError: there is no such mode.
    """
    try:
        return Speed(text or Speed.EQUIVALENT)
    except ValueError as error:
        typed, known = (text or "")[:40], ", ".join(Speed)
        raise TilemixError(
            "settings-unknown-choice", name="TILEMIX_SPEED", typed=typed, known=known
        ) from error


def parse_precision(text: str | None) -> Precision | None:
    """Return the number format that TILEMIX_PRECISION asks for; None if it is unset or empty.

    Raises:
        TilemixError: there is no such format.
    """
    try:
        return Precision(text) if text else None
    except ValueError as error:
        typed, known = (text or "")[:40], ", ".join(Precision)
        raise TilemixError(
            "settings-unknown-choice", name="TILEMIX_PRECISION", typed=typed, known=known
        ) from error


def parse_compile(text: str | None) -> bool:
    """Return whether TILEMIX_COMPILE asks for compiled networks; not if it is unset or empty.

    Raises:
        TilemixError: it is neither 0 nor 1.
    """
    if text not in (None, "", "0", "1"):
        raise TilemixError("settings-unknown-choice", name="TILEMIX_COMPILE", typed=text[:40], known="0, 1")
    return text == "1"


def parse_memory(text: str | None) -> int | None:
    """Return the bytes that TILEMIX_MEMORY allows, such as "24GB"; None if it is unset or empty.

    Raises:
        TilemixError: it is not a size above 0.
    """
    if not text:
        return None
    match = SIZE.fullmatch(text)
    size = int(Decimal(match[1]) * UNITS[match[2] or "B"]) if match else 0
    if not size:
        raise TilemixError("settings-not-a-size", name="TILEMIX_MEMORY", typed=text[:40])
    return size
