"""Time and memory on a device. On a GPU, events in the order of its own work; on a CPU the clock stands in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bench.ours import Ours
    from bench.peers import Order


class HostEvent:
    """An event of a device whose work is done when the call returns."""

    def __init__(self) -> None:
        self._at = 0.0

    def record(self) -> None:
        """Take the moment."""
        self._at = time.perf_counter()

    def elapsed_time(self, end_event: HostEvent) -> float:
        """Return the milliseconds to a later one."""
        return 1e3 * (end_event._at - self._at)


def record(device: torch.device) -> torch.cuda.Event | HostEvent:
    """Return an event that is recorded now."""
    event: torch.cuda.Event | HostEvent = (
        torch.cuda.Event(enable_timing=True) if device.type == "cuda" else HostEvent()
    )
    event.record()
    return event


def find_span(begin: Any, end: Any) -> float:  # both torch's own, or both HostEvent
    """Return the seconds between two events, once the device is done with the later one."""
    return float(begin.elapsed_time(end)) / 1e3


def synchronize(device: torch.device) -> None:
    """Wait for all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(device: torch.device, run: Callable[[], object], *, rounds: int, warm_ups: int = 1) -> float:
    """Return the median seconds of a call."""
    for _ in range(warm_ups):
        run()
    spans = []
    for _ in range(rounds):
        begin = record(device)
        run()
        spans.append((begin, record(device)))
    synchronize(device)
    return median(find_span(begin, end) for begin, end in spans)


@dataclass(frozen=True, slots=True)
class PictureTimes:
    """The seconds of one picture's parts."""

    loop: float  # the denoising steps, from the UNet's first call to the end of the last step
    decode: float  # the VAE's decoder
    whole: float  # prompt to PNG


def time_picture(ours: Ours, order: Order) -> PictureTimes:
    """Draw a picture and time it; the GPU is waited for only where drawing itself waits."""
    device, pipeline = ours.ready.device, ours.pipeline
    marks: dict[str, torch.cuda.Event | HostEvent] = {}
    steps = 0

    def mark(name: str) -> None:
        marks.setdefault(name, record(device))

    def end_step() -> None:
        nonlocal steps
        steps += 1
        if steps == order.steps:
            mark("loop ends")

    hooks = [
        # Before the hook that computes the text's keys: they are part of the loop.
        pipeline.unet.register_forward_pre_hook(lambda *_: mark("loop begins"), prepend=True),
        pipeline.vae.decoder.register_forward_pre_hook(lambda *_: mark("decoder begins")),
        pipeline.vae.decoder.register_forward_hook(lambda *_: mark("decoder ends")),
    ]
    synchronize(device)
    began = time.perf_counter()
    try:
        ours.predict(order, on_step=end_step)
    finally:
        for hook in hooks:
            hook.remove()
    synchronize(device)
    return PictureTimes(
        loop=find_span(marks["loop begins"], marks["loop ends"]),
        decode=find_span(marks["decoder begins"], marks["decoder ends"]),
        whole=time.perf_counter() - began,
    )


def take_medians(times: list[PictureTimes]) -> PictureTimes:
    """Return the median of each part."""
    return PictureTimes(*(median(getattr(one, part) for one in times) for part in PictureTimes.__slots__))


@dataclass(slots=True)
class MemoryPeak:
    """The most memory that tensors took on a GPU within a `watch_memory`, in bytes; None on a CPU."""

    bytes: int | None = None
    before: int | None = None

    @property
    def growth(self) -> int | None:
        """What it is over that of the beginning."""
        return None if self.bytes is None or self.before is None else self.bytes - self.before


@contextmanager
def watch_memory(device: torch.device) -> Iterator[MemoryPeak]:
    """Find the peak within."""
    peak = MemoryPeak()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    peak.before = torch.cuda.memory_allocated(device)
    yield peak
    torch.cuda.synchronize(device)
    peak.bytes = torch.cuda.max_memory_allocated(device)
