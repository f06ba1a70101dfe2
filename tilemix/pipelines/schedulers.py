"""Scheduler name -> diffusers scheduler, always from a pristine configuration.

`from_config(pipe.scheduler.config)` carries settings from one scheduler into the next (Karras sigmas would
stay on for good), so every scheduler here starts from the base model's own file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tilemix.errors import ManifestError

if TYPE_CHECKING:
    from tilemix.pipelines.parts import Scheduler

# name -> (diffusers class, settings that override the base's configuration)
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, bool | int | float | str]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}
# For bases that are trained on straight paths from noise to picture, as Flux.1 is.
FLOW_SCHEDULERS: Mapping[str, tuple[str, Mapping[str, bool | int | float | str]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
}


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

    known_names = FLOW_SCHEDULERS if is_flow else SCHEDULERS
    if name not in known_names:
        raise ManifestError("manifest-unknown-scheduler", name=name[:80], known=", ".join(known_names))
    class_name, preset = known_names[name]
    scheduler_class = getattr(diffusers, class_name)
    known = set(inspect.signature(scheduler_class.__init__).parameters) - {"self"}
    if unknown := sorted(set(config or {}) - known):
        raise ManifestError("manifest-unknown-scheduler-setting", name=name, setting=unknown[0][:80])
    # Only settings that this class knows are passed on: another would only raise a warning.
    own = {key: value for key, value in base_config.items() if key in known}
    scheduler: Scheduler = scheduler_class.from_config(own | dict(preset) | dict(config or {}))
    return scheduler
