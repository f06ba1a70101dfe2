"""The samplers by the names that people know: the one table for manifests, the command line and the parameters text.

`data/samplers.json` has a row for each: tilemix's own name, the web UIs' sampler and schedule type, diffusers' class
with the settings that go over the base's own. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import msgspec

FILE = Path(__file__).parent / "data" / "samplers.json"

Setting = bool | int | float | str


class Sampler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the table."""

    name: str  # in manifests and records
    sampler: str  # in the web UIs
    schedule_type: str  # there; without Karras sigmas the steps are evenly spaced
    scheduler: str  # diffusers' class
    settings: dict[str, Setting] = {}
    flow_scheduler: str | None = None  # the class for bases trained by flow matching; None: not for them
    most_steps: int | None = None  # of the schedule that it was distilled on; None: no limit of its own

    def find_class(self, *, is_flow: bool) -> str | None:
        """Return diffusers' class for a base, trained by flow matching or not; None: it cannot draw with that."""
        return self.flow_scheduler if is_flow else self.scheduler

    @property
    def title(self) -> str:
        """Both names of the web UIs in one, as they were written before version 1.9."""
        return f"{self.sampler} {self.schedule_type}"


@cache
def load_samplers() -> Mapping[str, Sampler]:
    """Return the samplers by tilemix's own names."""
    rows = msgspec.json.decode(FILE.read_bytes(), type=list[Sampler])
    return MappingProxyType({row.name: row for row in rows})


def list_samplers(*, is_flow: bool) -> list[str]:
    """Return the names of the samplers for a base, trained by flow matching or not."""
    return [row.name for row in load_samplers().values() if row.find_class(is_flow=is_flow) is not None]


def find_sampler(name: str) -> Sampler | None:
    """Return the sampler of a name, such as `dpm++_2m_karras` or `DPM++ 2M Karras`; None: there is none."""
    plain = name.strip().casefold()
    for row in load_samplers().values():
        names = [row.name, row.title]
        if row.schedule_type != "Karras":
            names.append(row.sampler)
        if plain in map(str.casefold, names):
            return row
    return None
