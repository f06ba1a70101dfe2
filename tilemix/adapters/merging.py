"""LoRAs merged into a pipeline's weights.

There is one LoRA path: W = W0 + sum(scale * delta), computed in fp32 and rounded once to the model's
dtype. W0 is read again from the base's own memory-mapped file each time, so nothing extra stays in memory,
every set of scales starts from the pristine weights, and removing adapters is bit-exact. The modules stay plain:
no wrappers, no scale arguments, no fusing and unfusing with its drift. DoRA takes the same path, although its
change is not proportional to its scale: see `tilemix.deltas.Dora`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from tilemix.adapters.lora_file import LoraFile, read_lora
from tilemix.adapters.names import ModuleKey, find_weights, spell_modules
from tilemix.adapters.tensor_file import TensorFile
from tilemix.deltas import Delta, LowRank
from tilemix.errors import LIST_SEPARATOR, AdapterError
from tilemix.modelfile.base_families import SDXL, BaseFamily
from tilemix.modelfile.spellings import ENCODERS

EXTRA = "text_model."  # in front of a text encoder's names in some versions
NUMBERS_FOR_THREADS = 2**23  # in all weights to merge; below that, starting threads costs more than it saves
CACHED_NUMBERS = 2**17  # that a thread works on at a time: 512 KiB of fp32


class _Place(NamedTuple):
    file: TensorFile
    name: str  # of the tensor


class PartScales(NamedTuple):
    """The scales of a LoRA where its parts have different ones."""

    text: float  # in the text encoders
    unet: float  # in the network that draws, whatever the family

    def of(self, component: str) -> float:
        """Return the scale in a component."""
        return self.text if component in ENCODERS else self.unet


Scale = float | PartScales


class BaseWeights(NamedTuple):
    """Where a component's pristine weights are."""

    files: tuple[Path, ...]  # safetensors; a large network comes in several
    names: Mapping[str, str] | None = None  # module -> tensor; None: `MODULE.weight`


class LoraMerger:
    """The LoRAs of one pipeline. Nothing else writes the weights that they change.

    Args:
        components: the pipeline's networks that LoRAs change, with the base's weights.
        sources: where each component was loaded from.
        family: of the base.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        sources: Mapping[str, BaseWeights],
        family: BaseFamily = SDXL,
    ) -> None:
        self._family = family
        self._weights = find_weights(components)
        self._names = spell_modules(components)
        opened = {path: TensorFile(path) for source in sources.values() for path in source.files}
        self._files = list(opened.values())
        self._tensors = {
            component: _place_tensors(source, [opened[path] for path in source.files])
            for component, source in sources.items()
        }
        self._loras: dict[str, LoraFile] = {}
        self._changed: set[ModuleKey] = set()  # modules that may differ from the base
        self._applied: dict[str, Scale] | None = {}  # None: a merge did not finish
        self._loads = 0

    @property
    def applied(self) -> dict[str, Scale] | None:
        """The merged LoRAs with their scales; None after a merge that was interrupted."""
        return None if self._applied is None else dict(self._applied)

    @property
    def state(self) -> tuple[int, frozenset[tuple[str, Scale]] | None]:
        """What the weights depend on: equal states mean equal weights. None: they are in no defined state."""
        return self._loads, None if self._applied is None else frozenset(self._applied.items())

    def load(self, name: str, path: Path, *, are_named: bool = False) -> LoraFile:
        """Read a LoRA file completely and keep it as the adapter `name`; the weights stay as they are.

        The result may hold embeddings too; they are for `TokenInstaller`. `are_named`: whether their tokens are named
        elsewhere.

        Raises:
            AdapterError, ModelFileError: see `tilemix.adapters.lora_file.read_lora`.
        """
        lora = read_lora(path, self._weights, self._names, self._family, are_named=are_named)
        if name in self._loras:
            self._applied = None  # what is merged under this name came from another file
        self._loras[name] = lora
        self._loads += 1
        return lora

    def apply(self, scales: Mapping[str, Scale]) -> bool:
        """Make the weights the base's plus the adapters of `scales`; {} gives the base back, bit for bit.

        The set is recorded as applied only when it is complete: after an error or a cancellation the next call
        merges again. Returns whether the weights had to change.

        Raises:
            AdapterError: an adapter of `scales` is not loaded.
        """
        if unknown := [name for name in scales if name not in self._loras]:
            if not self._loras:
                raise AdapterError("lora-none-loaded", name=unknown[0])
            raise AdapterError("lora-not-loaded", name=unknown[0], loaded=LIST_SEPARATOR.join(self._loras))
        wanted = {name: scale for name, scale in scales.items() if scale not in (0, (0, 0))}
        if wanted == self._applied:
            return False
        targets = {key for name in wanted for key in self._loras[name].deltas}
        todo = sorted(targets | self._changed, key=self._find_place)
        self._applied = None
        self._changed |= targets
        files = [file for file in self._files if any(self._find_base(key).file is file for key in todo)]
        for file in files:
            file.check_size()
        try:
            self._merge(todo, wanted)
        finally:
            for file in files:
                file.release_pages()
        self._changed = targets
        self._applied = wanted
        return True

    def _find_place(self, key: ModuleKey) -> tuple[int, int]:
        """Return where a module's weight is, its file and the place in it: a disk is fastest when read in order."""
        file, name = self._find_base(key)
        return self._files.index(file), file.header.tensors[name].offsets[0]

    def _find_base(self, key: ModuleKey) -> _Place:
        component, module = key
        return self._tensors[component][module.removeprefix(EXTRA)]

    def _merge(self, todo: Sequence[ModuleKey], scales: Mapping[str, Scale]) -> None:
        chosen = [(self._loras[name].deltas, scale) for name, scale in scales.items()]

        def merge_module(key: ModuleKey) -> None:
            file, name = self._find_base(key)
            base = file.get_tensor(name)
            changes = [
                (delta, part)
                for deltas, scale in chosen
                if (delta := deltas.get(key)) is not None and (part := _part(scale, key[0])) != 0
            ]
            merge(self._weights[key], base, changes)

        threads = torch.get_num_threads()
        if threads == 1 or any(self._weights[key].device.type != "cpu" for key in todo):
            with torch.inference_mode():
                for key in todo:
                    merge_module(key)
            return
        is_long = sum(self._weights[key].numel() for key in todo) >= NUMBERS_FOR_THREADS
        _do_each(merge_module, todo, threads if is_long else 1)


def _part(scale: Scale, component: str) -> float:
    return scale.of(component) if isinstance(scale, PartScales) else scale


def merge(weight: torch.Tensor, base: torch.Tensor, changes: Sequence[tuple[Delta, float]]) -> None:
    """Make `weight` the base's plus each change at its scale, in fp32, rounded once; without changes, the base's.

    On a CPU it works on as many rows at a time as fit into its caches, which at least doubles the speed.

    Args:
        weight: a module's weight, of any dtype and device.
        base: the pristine weight, as in its file.
        changes: changes that fit the weight, with scales other than 0.
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
    """Call `work` with each key, in `count` threads that have one torch thread each.

    With all of torch's threads in one module, each short step would wait for the slowest: with another process on
    one of two cores that took ten times as long (measured 2026-11).
    """
    own = torch.get_num_threads()
    queue = iter(keys)  # each item goes to one thread

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
                for _ in queue:  # after an error or a cancellation no thread starts another
                    pass
    finally:
        torch.set_num_threads(own)  # the setting that new threads start with


def _place_tensors(source: BaseWeights, files: Sequence[TensorFile]) -> dict[str, _Place]:
    """Return module path -> where its weight is, without `text_model.` in the paths."""
    homes = {name: file for file in files for name in file.header.tensors}
    names = source.names
    if names is None:
        names = {name.removesuffix(".weight"): name for name in homes if name.endswith(".weight")}
    return {module.removeprefix(EXTRA): _Place(homes[name], name) for module, name in names.items()}
