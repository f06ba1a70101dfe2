"""The process that holds the models and runs the parts; `python -m bench.gpu` starts it, and ends it in time.

    python -m bench.gpu.worker --out OUT --until SECONDS --folder FOLDER [--tiny]

The report in OUT says which parts are waiting. SECONDS are of the system's monotonic clock.
"""

from __future__ import annotations

import argparse
import logging
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from bench import peers
from bench.figures import Row
from bench.gpu import checks, levers, speed
from bench.gpu.parts import REPORT_FILE, GpuReport, GpuRunError, Part, read_report, run_parts, write_report
from bench.gpu.plan import ESTIMATES
from bench.gpu.rows import Card
from bench.gpu.timing import synchronize
from bench.gpu.workshop import REAL_SIZE, TINY_SIZE, Workshop
from bench.machine import LIBRARIES
from tilemix.system.machine import keep_freed_memory

TINY_SHARE = 0.02  # of the estimates, at the tiny size
SICK = 3  # exit status: the device does not compute any more


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the waiting parts; return 0, or SICK where another process has to go on."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.worker", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="an empty one, for the packaged model")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    prepare()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = TINY_SIZE if options.tiny else REAL_SIZE
    if device.type == "cpu" and not options.tiny:
        raise GpuRunError("no CUDA device here; --tiny runs on a CPU")
    report = read_report(options.out / REPORT_FILE)
    report = GpuReport(read_machine(device), report.parts)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    shop = Workshop(options.folder, size, device, dtype)
    share = TINY_SHARE if options.tiny else 1.0
    report = run_parts(
        list_parts(shop, Card(report.machine["card"]), share),
        report,
        until=options.until,
        clock=time.monotonic,
        save=partial(write_report, folder=options.out),
        is_sound=lambda: is_sound(device),
    )
    return SICK if any(part.status == "waiting" for part in report.parts) else 0


def list_parts(shop: Workshop, card: Card, share: float) -> dict[str, Part]:
    """Return every part by its name; their order and estimates stand in bench.gpu.plan."""
    runs: Mapping[str, Callable[[], Sequence[Row]]] = {
        "requests": partial(checks.check_requests, shop),
        "ours": partial(speed.measure_ours, shop),
        "pictures": partial(checks.check_pictures, shop),
        "lora": partial(checks.check_lora, shop),
        "tokens": partial(checks.check_tokens, shop),
        "vae": partial(checks.check_vae, shop),
        "peers": partial(speed.measure_peers, shop, card),
        "regions": partial(speed.measure_regions, shop, card),
        "batches": partial(speed.measure_batches, shop),
        **{
            f"lever-{name}": partial(levers.measure_lever, shop, lever)
            for name, lever in levers.LEVERS.items()
        },
        "lever-attention": partial(levers.measure_back_ends, shop),
        "start": partial(speed.measure_start, shop),
        "whole": partial(speed.measure_whole_networks, shop, card),
    }
    return {name: Part(name, share * ESTIMATES[name], run) for name, run in runs.items()}


def is_sound(device: torch.device) -> bool:
    """Return whether the device still computes; a CUDA context that has failed once never does again."""
    try:
        synchronize(device)
        return bool(torch.ones(2, device=device).sum() == 2)
    except RuntimeError:
        return False


def read_machine(device: torch.device) -> dict[str, str]:
    """Return what the figures were taken on."""
    facts = {"card": "none", "python": platform.python_version(), "torch": str(torch.__version__)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "multiprocessors": str(properties.multi_processor_count),
            "driver": _read_driver(),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    return facts | {name: version(name) for name in LIBRARIES}


def _read_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603  our own arguments, no shell
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.splitlines()[0].strip()


def prepare() -> None:
    """Set what holds for the whole process: quiet libraries, and fp32 that is fp32."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("bench").setLevel(logging.INFO)
    peers.quiet()
    keep_freed_memory()  # as tilemix does; for the peers as well
    warnings.simplefilter("ignore")  # the peers' libraries deprecate parts of each other
    # Products are in fp32 by default, convolutions are not. For the truth alone: all else is in 16 bits.
    torch.backends.cudnn.allow_tf32 = False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GpuRunError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
