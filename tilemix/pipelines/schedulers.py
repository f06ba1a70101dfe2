"""Scheduler name -> diffusers scheduler, always from a pristine configuration.

`from_config(pipe.scheduler.config)` carries settings from one scheduler into the next (Karras sigmas would
stay on for good), so every scheduler here starts from the base model's own file.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tilemix.errors import ManifestError
from tilemix.samplers import find_sampler, list_samplers

if TYPE_CHECKING:
    from tilemix.pipelines.parts import Scheduler

TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}  # in messages


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
        ManifestError: the name, or a key of `config`, is unknown, or a value is of another type or cannot be used.
    """
    import diffusers

    sampler = find_sampler(name)
    class_name = None if sampler is None else sampler.find_class(is_flow=is_flow)
    if sampler is None or class_name is None:
        known = ", ".join(list_samplers(is_flow=is_flow))
        raise ManifestError("manifest-unknown-scheduler", name=name[:80], known=known)
    scheduler_class = getattr(diffusers, class_name)
    settings = inspect.signature(scheduler_class.__init__).parameters
    for key, value in (config or {}).items():
        if key == "self" or key not in settings:
            raise ManifestError("manifest-unknown-scheduler-setting", name=name, setting=key[:80])
        _check_type(name, key, value, settings[key].default)
    # Only settings that this class knows are passed on: another would only raise a warning.
    own = {key: value for key, value in base_config.items() if key in settings}
    with _refusing(name):
        scheduler: Scheduler = scheduler_class.from_config(own | sampler.settings | dict(config or {}))
    return scheduler


def prove_scheduler(name: str, scheduler: Any) -> None:
    """Take two steps with a scheduler, which is used up by that: many settings are only read then.

    Raises:
        ManifestError: it fails, or gives a number that is not finite; `name` names it.
    """
    import torch

    arguments = {"mu": 1.0} if getattr(scheduler.config, "use_dynamic_shifting", False) else {}
    with _refusing(name), torch.random.fork_rng(devices=[]):
        scheduler.set_timesteps(2, **arguments)
        sample = torch.ones(1, 4, 8, 8)
        for timestep in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(sample * 0.1, timestep, sample, return_dict=False)[0]
        if not bool(sample.isfinite().all()):
            raise ValueError("the noise levels are not finite")


def _check_type(name: str, key: str, value: object, default: object) -> None:
    """Refuse a value that is not of its default's type; None, as of an optional one, does not tell any."""
    kinds = (int, float) if type(default) is float else (type(default),)
    if default is not None and default is not inspect.Parameter.empty and type(value) not in kinds:
        raise ManifestError(
            "manifest-scheduler-type",
            name=name,
            setting=key,
            found=json.dumps(value, ensure_ascii=False)[:80],
            expected=TYPES.get(type(default), type(default).__name__),
        )


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    # What diffusers and torch raise for values that they cannot use.
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ManifestError("manifest-scheduler-unusable", name=name, reason=reason) from error
