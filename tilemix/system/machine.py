"""The machine that this process runs on: its allocator and its CPU."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

# M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h: no separate mappings, nothing returned.
GLIBC_KEEPS = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}

CPU_FACTS = Path("/proc/cpuinfo")
CPU_KEYS = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}  # on x86
CPU_KEYS |= {
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
    "Features",
}  # on Arm


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for reuse; return whether it will.

    By default glibc returns every large block to the system and soon requests it again, and the system clears it each
    time. Without that, the VAE takes 0.6 to 0.7 of its time on a CPU. In exchange, the process never shrinks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in GLIBC_KEEPS.items())


def describe_cpu(facts: Path = CPU_FACTS) -> str:
    """Return what tells one type of CPU from another: its model and its instructions, as the system names them.

    Elsewhere than on Linux it is no more than the architecture and what the platform calls the processor.
    """
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    known = (line.partition(":") for line in lines)
    parts = {name.strip(): " ".join(value.split()) for name, _, value in known if name.strip() in CPU_KEYS}
    return "; ".join(f"{name}: {value}" for name, value in sorted(parts.items())) or platform.machine()


def multiplies_bf16(facts: Path = CPU_FACTS) -> bool:
    """Return whether the CPU multiplies bf16 natively; emulated, it is slower than fp32.

    Known on Linux on x86 only; elsewhere the answer is no. torch has a public function for it only since 2.9.
    """
    try:
        return "avx512_bf16" in facts.read_text().split()
    except OSError:
        return False
