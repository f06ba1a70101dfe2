"""What `predict.py` tells Cog while a prediction runs: log lines, its progress, metrics."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping

from cog import current_scope

from tilemix.system.step_log import write_progress

logger = logging.getLogger(__name__)


def log_to_stdout() -> None:
    """Send the package's log lines to standard output, where Cog collects a prediction's logs. Once is enough."""
    package = logging.getLogger("tilemix")
    package.setLevel(logging.INFO)
    if not package.handlers:
        package.addHandler(logging.StreamHandler(sys.stdout))


def log_progress(done: int, total: int) -> None:
    """Log a step as clients and the studio read it."""
    logger.info("%s", write_progress(done, total))


def record_metrics(metrics: Mapping[str, object]) -> None:
    """Record metrics of the running prediction, if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cog 0.16 calls its scope experimental
        try:
            scope = current_scope()
        except RuntimeError:  # cog 0.16 outside of its server
            return
    for name, value in metrics.items():
        scope.record_metric(name, value)
