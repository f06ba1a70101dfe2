"""The cost of a denoising step: the number of its tensor operations, and its seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.ours import replaced

Draw = Callable[[Callable[[], None]], object]  # draws one picture and calls its argument after each step


class OperationCounter(TorchDispatchMode):
    """Counts the operations that compute, and apart from them the views, which run no kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.computing = 0
        self.views = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Count one operation and run it."""
        if any(
            returned.alias_info is not None and not returned.alias_info.is_write
            for returned in func._schema.returns  # noqa: SLF001  torch has no public name for it
        ):
            self.views += 1
        else:
            self.computing += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class StepCost:
    """The operations of one denoising step."""

    computing: int
    views: int


def count_operations(draw: Draw) -> StepCost:
    """Return the operations between the ends of the second and the third step, which is one whole step of the loop.

    Under inference_mode composite operations would count as one: a linear layer, or a dropout that does nothing.
    Under no_grad all sides are counted by their parts.
    """
    marks: list[tuple[int, int]] = []
    with replaced(torch, "inference_mode", torch.no_grad), OperationCounter() as counter:
        draw(lambda: marks.append((counter.computing, counter.views)))
    (computing, views), (computing_after, views_after) = marks[1:3]
    return StepCost(computing_after - computing, views_after - views)


def time_steps(draws: Mapping[str, Draw], rounds: int) -> dict[str, float]:
    """Return the seconds of each variant's fastest step, over `rounds` pictures of each in turn."""
    best = dict.fromkeys(draws, float("inf"))
    for number in range(rounds + 1):
        for name, draw in draws.items():
            ends: list[float] = []
            draw(partial(_mark, ends))
            steps = [after - before for before, after in pairwise(ends)]
            if number:  # the first picture warms up
                best[name] = min(best[name], *steps)
    return best


def _mark(ends: list[float]) -> None:
    ends.append(time.perf_counter())
