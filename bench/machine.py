"""The machine that the figures were measured on, and whether other programs were using it."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch

from bench.peers import find_cxx_compiler
from tilemix.system.machine import multiplies_bf16

LIBRARIES = ("diffusers", "transformers", "peft", "compel", "pillow", "numpy", "safetensors")
OTHER_LOAD = (
    0.1  # of the cores, used by other programs before the bench begins; from here on the report warns
)


class Machine(msgspec.Struct, frozen=True):
    """The machine's facts."""

    cpu: str
    cores: int  # available to this process
    memory_gib: float
    has_bf16: bool  # instructions for bf16 matrix products
    gpu: str | None
    cxx_compiler: bool
    load_at_start: float  # the system's load average over the last minute
    other_load: float  # cores used by other programs in the second before the bench
    disk_free_gib: float  # where temporary files go
    versions: dict[str, str]

    @property
    def warning(self) -> str | None:
        """A warning of other load; None on a quiet machine."""
        if self.other_load < OTHER_LOAD * self.cores:
            return None
        return (
            f"other programs used {self.other_load:.1f} of {self.cores} cores when this began: "
            "times are longer than on a quiet machine, ratios less certain"
        )


def read_machine(temporary: Path) -> Machine:
    """Return the facts. Takes a second, in which the load of other programs is measured."""
    cores = len(os.sched_getaffinity(0))
    return Machine(
        cpu=_read_cpu_name(),
        cores=cores,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        has_bf16=multiplies_bf16(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        cxx_compiler=find_cxx_compiler() is not None,
        load_at_start=round(os.getloadavg()[0], 2),
        other_load=round(_measure_other_load(), 2),
        disk_free_gib=round(shutil.disk_usage(temporary).free / 2**30, 1),
        versions={"python": platform.python_version(), "torch": str(torch.__version__)}
        | {name: version(name) for name in LIBRARIES},
    )


def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _measure_other_load(seconds: float = 1.0) -> float:
    """Return how many cores are busy while this process sleeps."""

    def read() -> float:
        try:
            line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        except OSError:
            return 0.0
        user, nice, system, *_ = (int(field) for field in line.split()[1:])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")

    before = read()
    time.sleep(seconds)
    return (read() - before) / seconds
