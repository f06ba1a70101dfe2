"""The line that a prediction's log gets after each denoising step: written by `predict.py`, read by the studio."""

from __future__ import annotations

import re
from typing import NamedTuple

BAR_LENGTH = 20  # characters
LINE = re.compile(r"\b(?P<step>[0-9]{1,4})/(?P<steps>[0-9]{1,4}) denoise")
LAST_LINES = 2_000  # characters at the end of a log, searched for the last step


class Progress(NamedTuple):
    """The step that the model has reached."""

    step: int
    steps: int


def write_progress(step: int, steps: int) -> str:
    """Return the line in the form that Replicate's clients parse: `12%|##------------------| 3/25 denoise`."""
    bar = "#" * (BAR_LENGTH * step // steps)
    return f"{100 * step // steps:3d}%|{bar.ljust(BAR_LENGTH, '-')}| {step}/{steps} denoise"


def read_progress(log: str) -> Progress | None:
    """Return the last step in a log; None before the first."""
    found = LINE.findall(log[-LAST_LINES:])
    return Progress(int(found[-1][0]), int(found[-1][1])) if found else None
