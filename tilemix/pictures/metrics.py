"""The names under which a prediction reports what was measured, as predict.py writes and the studio reads them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.pictures.measure import Measurement

NOT_ASKED = "not_asked"


@lru_cache(1024)  # a page of the gallery asks for some two hundred, mostly the same ones
def share_metric(color: str) -> str:
    """Return the metric's name for a color: Cog allows letters, digits and single underscores only."""
    return "share_" + re.sub(r"[^a-z0-9]+", "_", color.lower()).strip("_")


def color_error_metric(color: str) -> str:
    """Return the name of the metric that says how far a color's granules are from the palette's."""
    return share_metric(color).replace("share_", "color_error_", 1)


def lightness_error_metric(color: str) -> str:
    """Return the name of the metric that says how much lighter a color's granules are than the palette's."""
    return share_metric(color).replace("share_", "lightness_error_", 1)


def share_metrics(measured: Measurement) -> dict[str, float]:
    """Return the metrics of a measured mix.

    They are the percent of each color and of all that was not asked for; of each color that shows, the delta E 2000
    to the palette's and the difference in L*.
    """
    shares = {**measured.shares, NOT_ASKED: measured.not_asked}
    metrics = {share_metric(color): round(percent, 1) for color, percent in shares.items()}
    return metrics | error_metrics(measured.color_errors, measured.lightness_errors)


def error_metrics(
    color_errors: Mapping[str, float], lightness_errors: Mapping[str, float]
) -> dict[str, float]:
    """Return the metrics of the colors' errors."""
    metrics = {color_error_metric(color): round(error, 1) for color, error in color_errors.items()}
    return metrics | {
        lightness_error_metric(color): round(error, 1) for color, error in lightness_errors.items()
    }


def read_number(metric: object) -> float | None:
    """Return a metric's value; None: it is not a number. What another program may have written is not trusted."""
    return float(metric) if isinstance(metric, int | float) and not isinstance(metric, bool) else None


def find_share_error(asked: Mapping[str, float], metrics: Mapping[str, Any]) -> float | None:
    """Return how far the measured shares are from those asked for, in points, in the mean; None: not measured.

    Args:
        asked: color -> percent.
        metrics: of the prediction.
    """
    errors = []
    for color, percent in asked.items():
        measured = read_number(metrics.get(share_metric(color)))
        if measured is None:
            return None
        errors.append(abs(measured - percent))
    return sum(errors) / len(errors) if errors else None
