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


def color_error_metric(color: str) -> str:
    """Return the name of the metric that says how far a color's granules are from the palette's."""
    return share_metric(color).replace("share_", "color_error_", 1)


def share_metrics(measured: Measurement) -> dict[str, float]:
    """Return the metrics of a measured mix.

    They are the percent of each color and of all that was not asked for, and the delta E 2000 of each color that
    shows to the palette's.
    """
    shares = {**measured.shares, NOT_ASKED: measured.not_asked}
    metrics = {share_metric(color): round(percent, 1) for color, percent in shares.items()}
    errors = measured.color_errors.items()
    return metrics | {color_error_metric(color): round(error, 1) for color, error in errors}
