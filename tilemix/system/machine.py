"""The machine that this process runs on: how its C library keeps memory, and what its processor multiplies."""

from __future__ import annotations

import ctypes
from pathlib import Path

# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD, bytes. No block on its own, none given back.
GLIBC_KEEPS = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for its next use; return whether it will.

    glibc gives every large block back to the system and asks for it again at once, and the system clears it
    each time. Without that the VAE takes 0.6 to 0.7 of its time on a CPU. The process stays as large as its
    largest picture made it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in GLIBC_KEEPS.items())


def multiplies_bf16(facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU multiplies bf16 itself; where it is emulated it is slower than fp32.

    Asked of Linux, on x86; elsewhere the answer is no. torch has a public question for it since 2.9 only.
    """
    try:
        return "avx512_bf16" in facts.read_text().split()
    except OSError:
        return False
