"""How much of a device's memory a model takes, and how much is free."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilemix.modelfile.header import read_header
from tilemix.weights import Adapter

if TYPE_CHECKING:
    from tilemix.weights import LocalModel

SUFFIX = ".safetensors"
ENCODER = "text_encoder"  # how the folders of text encoders begin
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MEMORY_FACTS = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def estimate_bytes(model: LocalModel, device: torch.device, dtype: torch.dtype) -> int:
    """Return the bytes that a model's weights will take, from the headers of its files.

    LoRAs do not count: they stay in their memory-mapped files. What drawing takes in addition does not count either.

    Args:
        model: the model.
        device: where it will be.
        dtype: of the networks that draw; text encoders on a CPU are counted as fp32.

    Raises:
        ModelFileError: a file is not a safetensors file.
    """
    total = 0
    for entry, path in model.files:
        if isinstance(entry, Adapter) or path.suffix != SUFFIX:
            continue
        is_encoder = entry.path.startswith(ENCODER)
        size = torch.float32.itemsize if is_encoder and device.type == "cpu" else dtype.itemsize
        for tensor in read_header(path).tensors.values():
            begin, end = tensor.offsets
            total += math.prod(tensor.shape) * size if tensor.dtype in FLOATS else end - begin
    return total


def find_free_bytes(
    device: torch.device, facts: Path = MEMORY_FACTS, control_group: Path = CONTROL_GROUP
) -> int:
    """Return the bytes of a device's memory that are free for this process.

    On a CPU: what the system can give without swapping, or what is left of the process's control group (version 2),
    if that is less.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = int((control_group / "memory.max").read_text())  # "max" where there is none
        used = int((control_group / "memory.current").read_text())
        counts = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(counts["inactive_file"]))  # cached files give way
    except (OSError, KeyError, ValueError):
        return free
