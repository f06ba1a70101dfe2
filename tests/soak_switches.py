"""Switches between tasks: of one model, whose LoRAs are merged anew, and of two that have no room together.

    python -m tests.soak_switches [--switches 1000]

A tiny random model draws; see tests/tiny_sdxl.py. Two figures tell a leak from freed memory that the process keeps, as
`keep_freed_memory` has it: what is allocated grows by a leak alone, what the process has in memory by both.
"""

import argparse
import ctypes
import gc
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.test_models import ask, manage, write_models
from tests.tiny_sdxl import write_project
from tilemix.pipelines.footprint import estimate_bytes
from tilemix.weights import find_model

TURN = (
    "tile",
    "host_face",
    "background",
    "tile",
    "background",
    "host_face",
    "elsewhere",
    "tile",
    "background",
    None,
)
WARM_UP = 40  # switches before memory is compared; whole turns


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33. Source: man 3 mallinfo."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",  # bytes in mappings of their own
            "usmblks",
            "fsmblks",
            "uordblks",  # bytes allocated in the heaps
            "fordblks",
            "keepcost",
        )
    ]


def measure_allocated() -> float:
    """Return what was allocated through malloc and not freed, in MB; of Python's objects only those over 512 bytes."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return (info.uordblks + info.hblkhd) / 1e6


def measure_memory() -> float:
    """Return what this process has in memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def count_tensors() -> int:
    """Return how many tensors are alive; thaws what is frozen."""
    gc.unfreeze()
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def switch(switches: int, root: Path) -> dict[str, Any]:
    """Draw task after task, and return how many models were loaded and what memory grew by.

    Args:
        switches: pictures, each of another task than the one before; whole turns, and more than `WARM_UP`.
        root: a project of `write_models`.
    """
    models = manage(root, memory=estimate_bytes(find_model("tiny", root), torch.device("cpu"), torch.float32))
    pictures: dict[str | None, bytes] = {}
    loads, loaded = 0, ""
    tensors = blocks = 0
    allocated, memory, halfway = 0.0, 0.0, 0.0
    for number in range(switches):
        task = TURN[number % len(TURN)]
        pixels = models.render(ask(task)).pixels.tobytes()
        assert pictures.setdefault(task, pixels) == pixels, f"switch {number}: {task} draws another picture"
        (now,) = models.loaded
        loads, loaded = loads + (now != loaded), now
        if number + 1 == WARM_UP:
            tensors, blocks = count_tensors(), sys.getallocatedblocks()
            allocated, memory = measure_allocated(), measure_memory()
        if number + 1 == (WARM_UP + switches) // 2:
            halfway = measure_memory()
    return {
        "switches": switches,
        "models_loaded": loads,
        "tensors_more": count_tensors() - tensors,
        "small_blocks_more": sys.getallocatedblocks() - blocks,
        "allocated_mb": allocated,
        "allocated_mb_more": measure_allocated() - allocated,
        "memory_mb": memory,
        "first_half_mb_more": halfway - memory,
        "second_half_mb_more": measure_memory() - halfway,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Switch between tasks and models, and look for what stays behind."
    )
    parser.add_argument("--switches", type=int, default=1000)
    options = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "models").mkdir()
        root = write_models(folder, write_project(Path(name) / "tiny"))
        sys.stdout.write(f"{json.dumps(switch(options.switches, root))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
