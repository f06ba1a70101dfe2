"""What an adapter file holds, from the names and shapes in its header: modules, families, ranks, widths."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilemix.deltas import DORA, Family, Shape, find_rank, find_width
from tilemix.modelfile import spellings
from tilemix.modelfile.embedding_names import is_bundled

if TYPE_CHECKING:
    from tilemix.modelfile.header import TensorInfo

LAYERS = (
    (re.compile(r"attn|to_[qkv]\b|to_out"), "attention"),
    (re.compile(r"(?:^|[._])(?:ff|mlp)(?:[._]|$)|_fc[12]$|\.fc[12]$"), "feed-forward"),
    (
        re.compile(r"conv|resnets|in_layers|out_layers|skip_connection|_op$|input_blocks[._]0"),
        "convolution",
    ),
    (re.compile(""), "other"),
)


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What an adapter file holds. Tensors that belong to no family are left over."""

    modules: dict[str, dict[str, Shape]]  # the module as the file spells it -> part -> shape
    families: frozenset[str]
    left_over: tuple[str, ...]  # names that no suffix explains: bundled or foreign tensors
    folder: str = ""  # name of the file's folder

    def describe_format(self) -> str:
        """Return the family and whose spelling it is: "LoCon (kohya, original blocks)"."""
        families = set(self.families - {DORA.name})
        if families == {"LoRA"} and any(_is_convolution(parts) for parts in self.modules.values()):
            families = {"LoCon"}
        family = " and ".join(sorted(families)) or "LoRA"
        if DORA.name in self.families:
            family = DORA.name if family == "LoRA" else f"{DORA.name} of {family}"
        found = {spellings.name_spelling(module) for module in self.modules}
        spelling = next((writer for writer in spellings.TOLD_FIRST if writer in found), "unknown spelling")
        if any(map(is_bundled, self.left_over)):
            spelling += ", with bundled embeddings"
        return f"{family} ({spelling})"

    def count_ranks(self) -> dict[int, int]:
        """Return rank -> how many modules have it, the most frequent first; {} for families without ranks."""
        ranks = Counter(rank for parts in self.modules.values() if (rank := find_rank(parts)) is not None)
        return dict(ranks.most_common())

    def count_modules(self) -> dict[str, dict[str, int]]:
        """Return component -> sort of layer -> how many modules the adapter changes."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for module in self.modules:
            bare = spellings.unwrap(module)
            layer = next(word for pattern, word in LAYERS if pattern.search(bare))
            counts[self.find_component(module)][layer] += 1
        return {component: dict(counts[component]) for component in sorted(counts)}

    def find_component(self, module: str) -> str:
        """Return the component that a module belongs to."""
        return spellings.find_component(module, self.folder)

    def input_widths(self, is_wanted: Callable[[str], bool]) -> set[int]:
        """Return the input widths of the modules that `is_wanted` accepts by name."""
        widths = (find_width(parts) for module, parts in self.modules.items() if is_wanted(module))
        return {width for width in widths if width is not None}


def read_layout(tensors: Mapping[str, TensorInfo], folder: str = "") -> AdapterLayout | None:
    """Sort the tensors of an adapter in the folder `folder` by module; None when none belongs to a family."""
    modules: dict[str, dict[str, Shape]] = defaultdict(dict)
    families: dict[str, Family] = {}
    left_over = []
    for name, tensor in tensors.items():
        if is_bundled(name) or (found := spellings.split_name(name)) is None:
            left_over.append(name)
            continue
        modules[found.module][found.part] = tensor.shape
        if found.family is not None:
            families[found.family.name] = found.family
    if not families:
        return None
    if "IA3" in families:  # its numbers are in MODULE.weight, beside MODULE.on_input
        left_over = [name for name in left_over if name.removesuffix(".weight") not in modules]
    return AdapterLayout(dict(modules), frozenset(families), tuple(left_over), folder)


def _is_convolution(parts: Mapping[str, Shape]) -> bool:
    return len(down := parts.get("down", ())) == 4 and down[2:] != (1, 1)
