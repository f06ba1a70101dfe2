"""Many predictions in one process: does it grow? Prints memory, open files and threads as JSON.

python -m bench.steady PROJECT MODEL COUNT
"""

import hashlib
import os
import sys
from pathlib import Path

import msgspec

from bench.cold_ours import read_memory
from bench.ours import load_ours
from bench.peers import quiet
from bench.pictures import order_topology
from tilemix.pictures.files import FORMATS, encode_image
from tilemix.pipelines.speed import Speed

LORA_SCALES = (None, 0.35, None, 1.0)
SAMPLES = 20


class Sample(msgspec.Struct, frozen=True):
    """The process's resources after some predictions."""

    predictions: int
    memory_bytes: int
    files: int
    threads: int


class Steadiness(msgspec.Struct, frozen=True):
    """The printed result."""

    samples: list[Sample]
    hashes: list[str]  # of the first and the last picture, which have the same request


def main() -> None:
    """Draw, and take a few samples of the process on the way."""
    quiet()
    root, name, count_text = sys.argv[1:]
    count = int(count_text)
    ours = load_ours(name, Path(root), Speed.EQUIVALENT)
    samples = []
    hashes = []
    for number in range(count):
        # A new prompt each time, so that caches by prompt are tested for growth; the LoRA's scale and the format
        # change on the way.
        is_edge = number in (0, count - 1)
        order = order_topology(0 if is_edge else number, steps=1)
        scale = None if is_edge else LORA_SCALES[number // 50 % len(LORA_SCALES)]
        rendered = ours.draw(order, lora_scale=scale)
        data = encode_image(
            rendered.pixels, rendered.record, output_format=list(FORMATS)[number % len(FORMATS)]
        )
        assert data
        if is_edge:
            hashes.append(hashlib.sha256(rendered.pixels.tobytes()).hexdigest())
        if (number + 1) % max(1, count // SAMPLES) == 0:
            samples.append(
                Sample(
                    predictions=number + 1,
                    memory_bytes=read_memory("VmRSS"),
                    files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208  only a count
                    threads=len(os.listdir("/proc/self/task")),  # noqa: PTH208  only a count
                )
            )
    sys.stdout.write(msgspec.json.encode(Steadiness(samples, hashes)).decode() + "\n")


if __name__ == "__main__":
    main()
