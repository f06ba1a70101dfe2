"""The machine that this process runs on: its allocator and its CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

# M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h: no separate mappings, nothing returned.
GLIBC_KEEPS = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}


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


def multiplies_bf16(facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU multiplies bf16 natively; emulated, it is slower than fp32.

    Known on Linux on x86 only; elsewhere the answer is no. torch has a public function for it only since 2.9.
    """
    try:
        return "avx512_bf16" in facts.read_text().split()
    except OSError:
        return False
