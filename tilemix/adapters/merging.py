"""LoRAs merged into a pipeline's weights.

There is one LoRA path: W = W0 + sum(scale * delta), computed in fp32 and rounded once to the model's
dtype. W0 is read again from the base's own memory-mapped file each time, so nothing is kept resident,
every set of scales starts from the pristine weights, and taking adapters away is bit-exact. The modules
stay plain: no wrappers, no scale arguments, no fuse and unfuse with its drift. DoRA's change is no multiple
of its scale, and takes the same path: see `tilemix.adapters.deltas.Dora`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from tilemix.adapters.deltas import Delta, LowRank
from tilemix.adapters.lora_file import LoraFile, read_lora
from tilemix.adapters.names import ModuleKey, find_weights, spell_modules
from tilemix.adapters.tensor_file import TensorFile
from tilemix.errors import AdapterError

EXTRA = "text_model."  # what some versions put in front of a text encoder's names
NUMBERS_FOR_THREADS = 2**23  # of all weights to merge: for fewer, threads are not worth their start
CACHED_NUMBERS = 2**17  # of a weight, that a thread works on at a time: 512 KiB of fp32


class LoraMerger:
    """The LoRAs of one pipeline. It alone writes the weights they change.

    Args:
        components: "unet", "text_encoder" and "text_encoder_2" of the pipeline, with the base's weights.
        files: the safetensors file that each component was loaded from.
    """

    def __init__(self, components: Mapping[str, nn.Module], files: Mapping[str, Path]) -> None:
        self._weights = find_weights(components)
        self._names = spell_modules(components)
        self._files = {component: TensorFile(path) for component, path in files.items()}
        self._tensors = {component: _name_tensors(file) for component, file in self._files.items()}
        self._loras: dict[str, LoraFile] = {}
        self._changed: set[ModuleKey] = set()  # modules that may differ from the base
        self._applied: dict[str, float] | None = {}  # None: a merge did not come to its end
        self._loads = 0

    @property
    def applied(self) -> dict[str, float] | None:
        """The merged LoRAs with their scales; None after a merge that was interrupted."""
        return None if self._applied is None else dict(self._applied)

    @property
    def state(self) -> tuple[int, frozenset[tuple[str, float]] | None]:
        """What the weights depend on; the same state, the same weights. None stands for no state at all."""
        return self._loads, None if self._applied is None else frozenset(self._applied.items())

    def load(self, name: str, path: Path) -> LoraFile:
        """Read a LoRA file completely and keep it as the adapter `name`; the weights stay as they are.

        What is returned may hold embeddings too, which are for `TokenInstaller`.

        Raises:
            AdapterError, ModelFileError: see `tilemix.adapters.lora_file.read_lora`.
        """
        lora = read_lora(path, self._weights, self._names)
        if name in self._loras:
            self._applied = None  # what is merged under this name is another file's
        self._loras[name] = lora
        self._loads += 1
        return lora

    def apply(self, scales: Mapping[str, float]) -> None:
        """Make the weights the base's plus the adapters of `scales`; {} gives the base back, bit for bit.

        What is applied is recorded only when all of it is done: an error or a cancellation in the middle
        means that the next call merges again.

        Raises:
            AdapterError: an adapter of `scales` is not loaded.
        """
        if unknown := [name for name in scales if name not in self._loras]:
            raise AdapterError(
                f"adapter {unknown[0]!r} is not loaded; loaded: {', '.join(self._loras) or 'none'}"
            )
        wanted = {name: scale for name, scale in scales.items() if scale != 0}
        if wanted == self._applied:
            return
        targets = {key for name in wanted for key in self._loras[name].deltas}
        todo = sorted(targets | self._changed, key=self._find_place)
        self._applied = None
        self._changed |= targets
        files = [self._files[component] for component in {component for component, _ in todo}]
        for file in files:
            file.check_size()
        try:
            self._merge(todo, wanted)
        finally:
            for file in files:
                file.release_pages()
        self._changed = targets
        self._applied = wanted

    def _find_place(self, key: ModuleKey) -> tuple[str, int]:
        """Return where a module's weight stands in its file: a disk reads fastest from the first to the last."""
        component = key[0]
        return component, self._files[component].header.tensors[self._name_base(key)].offsets[0]

    def _name_base(self, key: ModuleKey) -> str:
        component, module = key
        return self._tensors[component][module.removeprefix(EXTRA)]

    def _merge(self, todo: Sequence[ModuleKey], scales: Mapping[str, float]) -> None:
        chosen = [(self._loras[name].deltas, scale) for name, scale in scales.items()]

        def merge_module(key: ModuleKey) -> None:
            base = self._files[key[0]].get_tensor(self._name_base(key))
            changes = [(delta, scale) for deltas, scale in chosen if (delta := deltas.get(key)) is not None]
            merge(self._weights[key], base, changes)

        threads = torch.get_num_threads()
        if threads == 1 or any(self._weights[key].device.type != "cpu" for key in todo):
            with torch.inference_mode():
                for key in todo:
                    merge_module(key)
            return
        is_long = sum(self._weights[key].numel() for key in todo) >= NUMBERS_FOR_THREADS
        _do_each(merge_module, todo, threads if is_long else 1)


def merge(weight: torch.Tensor, base: torch.Tensor, changes: Sequence[tuple[Delta, float]]) -> None:
    """Make `weight` the base's plus each change at its scale: in fp32, rounded once; without changes, the base's.

    On a CPU this is done for as many rows at a time as stay in its caches, which is twice as fast or more.

    Args:
        weight: a module's weight, of any dtype and device.
        base: the pristine weight, as its file has it.
        changes: what fits the weight, and scales other than 0.
    """
    if not changes:
        weight.copy_(base)
        return
    only, scale = changes[0]
    if len(changes) == 1 and weight.numel() <= CACHED_NUMBERS and isinstance(only, LowRank):
        only.merge_whole(weight, base, scale)
        return
    first_to_last = sorted(changes, key=lambda change: not change[0].sees_base)
    adders = [delta.make_adder(weight.device, scale) for delta, scale in first_to_last]
    keeps_base = any(delta.sees_base for delta, _ in first_to_last[1:])
    target = (
        weight if weight.is_contiguous() else torch.empty_like(weight, memory_format=torch.contiguous_format)
    )
    rows_of = target.view(len(target), -1)
    base_rows = base.to(weight.device).reshape(rows_of.shape)
    count, columns = rows_of.shape
    size = count
    if weight.device.type == "cpu":
        step = math.lcm(*(delta.row_step for delta, _ in changes))
        size = max(CACHED_NUMBERS * torch.get_num_threads() // columns // step, 1) * step
    scratch = (
        None if target.dtype == torch.float32 else rows_of.new_empty((size, columns), dtype=torch.float32)
    )
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        merged = rows_of[rows] if scratch is None else scratch[: rows.stop - start]
        merged.copy_(base_rows[rows])
        kept = merged.clone() if keeps_base else None
        for place, add in enumerate(adders):
            add(merged, kept if place else None, rows)
        if scratch is not None:
            rows_of[rows].copy_(merged)
    if target is not weight:
        weight.copy_(target)


def _do_each(work: Callable[[ModuleKey], None], keys: Sequence[ModuleKey], count: int) -> None:
    """Call `work` with each key, in `count` threads that each have one of torch's.

    All of torch's threads in one module would wait for each other after every one of its short steps: with
    something else on one of two cores, that took ten times as long (measured 2026-11).
    """
    own = torch.get_num_threads()
    queue = iter(keys)  # whose next item only one thread gets

    @torch.inference_mode()
    def work_on() -> None:
        torch.set_num_threads(1)
        for key in queue:
            work(key)

    try:
        with ThreadPoolExecutor(count, "merge") as pool:
            try:
                for done in [pool.submit(work_on) for _ in range(count)]:
                    done.result()
            finally:
                for _ in queue:  # after an error or a cancellation no thread begins another one
                    pass
    finally:
        torch.set_num_threads(own)  # with which anyone's new threads begin


def _name_tensors(file: TensorFile) -> dict[str, str]:
    """Return the names of a base file's weights by the module's path, `text_model.` left out of both."""
    names = {}
    for name in file.header.tensors:
        path, _, kind = name.removeprefix(EXTRA).rpartition(".")
        if kind == "weight":
            names[path] = name
    return names
