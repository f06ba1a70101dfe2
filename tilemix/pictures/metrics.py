"""The names under which a prediction reports what was measured, as predict.py writes and the studio reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilemix.pictures.measure import Measurement

NOT_ASKED = "not_asked"


def share_metric(color: str) -> str:
    """Return the metric's name for a color: Cog allows letters, digits and single underscores only."""
    return "share_" + re.sub(r"[^a-z0-9]+", "_", color.lower()).strip("_")


def share_metrics(measured: Measurement) -> dict[str, float]:
    """Return the metrics of a measured mix: the percent of each color and of all that was not asked for."""
    shares = {**measured.shares, NOT_ASKED: measured.not_asked}
    return {share_metric(color): round(percent, 1) for color, percent in shares.items()}
