"""A row of the speed bench: its figures with their targets, its exactness gates, and how times are measured.

A time is the minimum over interleaved rounds, A/B/A/B, in one process: the least disturbed run of each variant
under the same load, temperature and clock. Figures are ratios of such minima wherever possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PASS, SHORT, BROKEN, ERROR, NOT_MEASURED = "pass", "short", "broken", "error", "not measured"
FAILURES = (BROKEN, ERROR)  # being slow is not a failure
EXACT_PERCENT = 99.9  # of 8-bit values within 1: the gate of `exact`
EQUAL_PSNR = 100.0  # dB, instead of infinity, which JSON lacks
EQUIVALENT_PSNR = 40.0  # dB against `exact`: the gate of `equivalent`


class Figure(msgspec.Struct, frozen=True):
    """One number of a row, with its target if it has one."""

    name: str
    value: float | None  # None: not measured
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_short(self) -> bool:
        """Whether it was measured and misses its target."""
        if self.value is None:
            return False
        too_low = self.at_least is not None and self.value < self.at_least
        return too_low or (self.at_most is not None and self.value > self.at_most)


class Gate(msgspec.Struct, frozen=True):
    """A condition that must hold for the row's figures to count."""

    name: str
    found: str  # the value, as printed
    rule: str
    holds: bool


class Row(msgspec.Struct, frozen=True):
    """One row of the report."""

    key: str  # its name for --rows
    title: str
    figures: tuple[Figure, ...] = ()
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None  # why it could not be measured
    seconds: float = 0.0  # how long measuring took

    @property
    def verdict(self) -> str:
        """The worst verdict that applies to the row."""
        if self.error is not None:
            return ERROR
        if not all(gate.holds for gate in self.gates):
            return BROKEN
        if any(figure.is_short for figure in self.figures):
            return SHORT
        if all(figure.value is None for figure in self.figures):
            return NOT_MEASURED
        return PASS


@dataclass(frozen=True, slots=True)
class Timing:
    """The rounds of one variant."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The minimum, in seconds."""
        return min(self.seconds)


def interleave(
    variants: Mapping[str, Callable[[int], object]], rounds: int, *, warm_ups: int = 1
) -> dict[str, Timing]:
    """Time all variants in turn, `rounds` times each, after `warm_ups` rounds that do not count.

    A variant is called with the number of the round, from 0 and including warm-ups, so that all variants can use
    the same new input in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_ups + rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run(number)
            took = time.perf_counter() - began
            if number >= warm_ups:
                seconds[name].append(took)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def measure_psnr(picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of 8-bit pictures in dB; 100 for equal ones."""
    error = float(np.mean((picture.astype(np.float64) - reference) ** 2))
    return EQUAL_PSNR if error == 0 else float(10 * np.log10(255**2 / error))


def count_within_one(picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Return the percentage of 8-bit values that differ by at most 1."""
    return float((np.abs(picture.astype(np.int16) - reference) <= 1).mean() * 100)


def exact_gate(name: str, percents: list[float]) -> Gate:
    """Return the gate of `exact` from each picture's percentage within 1; the worst counts."""
    worst = min(percents)
    return Gate(
        name, f"{worst:.3f} %", f"at least {EXACT_PERCENT} % of 8-bit values within 1", worst >= EXACT_PERCENT
    )


def equivalent_gate(name: str, psnrs: list[float]) -> Gate:
    """Return the gate of `equivalent` from each picture's PSNR; the worst counts."""
    worst = min(psnrs)
    return Gate(name, f"{worst:.1f} dB", f"PSNR of at least {EQUIVALENT_PSNR:g} dB", worst >= EQUIVALENT_PSNR)


def equal_gate(name: str, *, is_equal: bool) -> Gate:
    """Return a gate that demands equality."""
    return Gate(name, "equal" if is_equal else "different", "equal", is_equal)
