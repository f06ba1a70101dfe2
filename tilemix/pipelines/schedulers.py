"""Scheduler name -> diffusers scheduler, always from a pristine configuration.

`from_config(pipe.scheduler.config)` carries settings from one scheduler into the next (Karras sigmas would
stay on for good), so every scheduler here starts from the base model's own file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tilemix.errors import ManifestError
from tilemix.samplers import find_sampler, load_samplers

if TYPE_CHECKING:
    from tilemix.pipelines.parts import Scheduler


def make_scheduler(
    name: str,
    base_config: Mapping[str, object],
    config: Mapping[str, bool | int | float | str] | None = None,
    *,
    is_flow: bool = False,
) -> Scheduler:
    """Make the scheduler `name` from the base's own configuration, with `config` over it.

    With `is_flow`, for a base that is trained by flow matching.

    Raises:
        ManifestError: the name, or a key of `config`, is unknown.
    """
    import diffusers

    sampler = find_sampler(name)
    class_name = None if sampler is None else sampler.flow_scheduler if is_flow else sampler.scheduler
    if sampler is None or class_name is None:
        known = ", ".join(row.name for row in load_samplers().values() if row.flow_scheduler or not is_flow)
        raise ManifestError("manifest-unknown-scheduler", name=name[:80], known=known)
    scheduler_class = getattr(diffusers, class_name)
    settings = set(inspect.signature(scheduler_class.__init__).parameters) - {"self"}
    if unknown := sorted(set(config or {}) - settings):
        raise ManifestError("manifest-unknown-scheduler-setting", name=name, setting=unknown[0][:80])
    # Only settings that this class knows are passed on: another would only raise a warning.
    own = {key: value for key, value in base_config.items() if key in settings}
    scheduler: Scheduler = scheduler_class.from_config(own | sampler.settings | dict(config or {}))
    return scheduler
