"""A network's forward() as CUDA graphs: all of its kernels are started by one call.

For each set of shapes a graph is recorded at the first call and replayed afterwards. It reads its inputs, and the
buffers that hooks fill, at the addresses that they had then.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UPS = 3  # before a recording: libraries choose their kernels and take their memory
Run = Callable[[], tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Recording:
    """One forward() that can be run again."""

    inputs: list[torch.Tensor]  # to be filled before
    replay: Callable[[], object]
    output: tuple[torch.Tensor, ...]  # the same tensors each time


def record_cuda_graph(run: Run) -> tuple[Callable[[], object], tuple[torch.Tensor, ...]]:
    """Record what `run` starts on the GPU; return what replays it, and its output."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph.replay, output


def record_calls(run: Run) -> tuple[Callable[[], object], tuple[torch.Tensor, ...]]:
    """Stand in for `record_cuda_graph` on a CPU: a replay is another run into the same output."""
    output = tuple(tensor.clone() for tensor in run())

    def replay() -> None:
        for held, new in zip(output, run(), strict=True):
            held.copy_(new)

    return replay, output


class GraphedForward:
    """Takes the place of a network's forward() that returns a tuple of tensors.

    Args:
        forward: the network's own.
        record: how it is recorded.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[torch.Tensor, ...]],
        record: Callable[[Run], tuple[Callable[[], object], tuple[torch.Tensor, ...]]],
    ) -> None:
        self._forward = forward
        self._record = record
        self._recordings: dict[tuple[object, ...], Recording] = {}

    def __call__(self, *args: object, **kwargs: object) -> tuple[torch.Tensor, ...]:
        """Return what forward() would; the tensors are overwritten by the next call."""
        given = list_tensors((args, kwargs))
        key = tuple((tensor.shape, tensor.dtype) for tensor in given)
        if key not in self._recordings:
            self._recordings[key] = self._make(args, kwargs)
        recording = self._recordings[key]
        for held, new in zip(recording.inputs, given, strict=True):
            held.copy_(new)
        recording.replay()
        return recording.output

    def _make(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Recording:
        held_args = tuple(map(clone_tensors, args))
        held_kwargs = {name: clone_tensors(value) for name, value in kwargs.items()}
        replay, output = self._record(lambda: self._forward(*held_args, **held_kwargs))
        return Recording(list_tensors((held_args, held_kwargs)), replay, output)


def list_tensors(value: object) -> list[torch.Tensor]:
    """Return the tensors within tuples, lists and dicts, in their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [one for item in value for one in list_tensors(item)] if isinstance(value, tuple | list) else []


def clone_tensors(value: object) -> object:
    """Return the same tuples, lists and dicts with copies of their tensors."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: clone_tensors(item) for key, item in value.items()}
    return type(value)(map(clone_tensors, value)) if isinstance(value, tuple | list) else value
