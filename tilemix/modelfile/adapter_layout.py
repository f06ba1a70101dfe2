"""How adapter files spell their tensors: module name, then a suffix that tells the method and the part.

Names and shapes only: what a LoRA touches, with which method and rank, is in the header.

Sources: the key names of kohya's sd-scripts, LyCORIS, PEFT and diffusers as their files have them.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tilemix.modelfile.header import TensorInfo

Shape = tuple[int, ...]

# What follows the module's name -> (method, part). DoRA's magnitudes come with another method's tensors.
SUFFIXES = {
    "lora_down.weight": ("LoRA", "down"),
    "lora_up.weight": ("LoRA", "up"),
    "lora_mid.weight": ("LoRA", "mid"),
    "lora.down.weight": ("LoRA", "down"),
    "lora.up.weight": ("LoRA", "up"),
    "lora_A.weight": ("LoRA", "down"),
    "lora_B.weight": ("LoRA", "up"),
    "lora_linear_layer.down.weight": ("LoRA", "down"),
    "lora_linear_layer.up.weight": ("LoRA", "up"),
    "hada_w1_a": ("LoHa", "hada_w1_a"),
    "hada_w1_b": ("LoHa", "hada_w1_b"),
    "hada_w2_a": ("LoHa", "hada_w2_a"),
    "hada_w2_b": ("LoHa", "hada_w2_b"),
    "hada_t1": ("LoHa", "hada_t1"),
    "hada_t2": ("LoHa", "hada_t2"),
    "lokr_w1": ("LoKr", "lokr_w1"),
    "lokr_w1_a": ("LoKr", "lokr_w1_a"),
    "lokr_w1_b": ("LoKr", "lokr_w1_b"),
    "lokr_w2": ("LoKr", "lokr_w2"),
    "lokr_w2_a": ("LoKr", "lokr_w2_a"),
    "lokr_w2_b": ("LoKr", "lokr_w2_b"),
    "lokr_t2": ("LoKr", "lokr_t2"),
    "oft_blocks": ("OFT", "blocks"),
    "oft_diag": ("OFT", "diagonal"),
    "a1.weight": ("GLoRA", "a1"),
    "a2.weight": ("GLoRA", "a2"),
    "b1.weight": ("GLoRA", "b1"),
    "b2.weight": ("GLoRA", "b2"),
    "diff": ("full difference", "diff"),
    "diff_b": ("full difference", "bias"),
    "w_norm": ("full difference", "norm"),
    "b_norm": ("full difference", "norm bias"),
    "set_weight": ("full difference", "weight"),
    "on_input": ("IA3", "on_input"),
    "dora_scale": ("DoRA", "magnitude"),
    "lora_magnitude_vector": ("DoRA", "magnitude"),
    "lora_magnitude_vector.weight": ("DoRA", "magnitude"),
    "alpha": ("", "alpha"),
}
NAMED_ADAPTER = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.[^.]+\.weight")
PROCESSOR = re.compile(
    r"(?P<attention>.+?)(?:\.processor)?\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<half>down|up)\.weight"
)
SPELLINGS = (  # the start of a module's name -> whose spelling it is; the first that fits
    (r"^base_model\.model\.", "PEFT"),
    (r"^lycoris_", "LyCORIS"),
    (r"^lora_unet_(?:input_blocks|middle_block|output_blocks|out_|time_embed|label_emb)", "kohya, original blocks"),
    (r"^lora_unet_(?:down_blocks|mid_block|up_blocks)", "kohya, diffusers blocks"),
    (r"^(?:lora|oft)_", "kohya"),
    (r"^diffusion_model\.", "ComfyUI"),
    (r"^(?:unet|transformer|text_encoder(?:_2)?)\.", "diffusers"),
    (r"^(?:down_blocks|mid_block|up_blocks)\.", "diffusers, no component's name in front"),
)  # fmt: skip
COMPONENTS = (
    (r"^(?:lora_te_|lora_te1_|text_encoder\.)", "text_encoder"),
    (r"^(?:lora_te2_|text_encoder_2\.)", "text_encoder_2"),
    (r"^(?:lora_te3_|text_encoder_3\.)", "text_encoder_3"),
    (r"^(?:lora_transformer_|transformer\.)", "transformer"),
    (r"^", "unet"),
)
LAYERS = (
    (r"attn|to_[qkv]\b|to_out", "attention"),
    (r"(?:^|[._])(?:ff|mlp)(?:[._]|$)|_fc[12]$|\.fc[12]$", "feed-forward"),
    (r"conv|resnets|in_layers|out_layers|skip_connection|_op$|input_blocks[._]0", "convolution"),
    (r"", "other"),
)


class Part(NamedTuple):
    """One tensor of an adapter."""

    module: str  # as the file spells it
    method: str  # "LoRA", "LoHa", ...; "" for alpha, which several methods have
    part: str  # "down", "w1_a", "alpha", ...


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What an adapter file holds: module -> part -> shape. Tensors that are no part of it are not in here."""

    modules: dict[str, dict[str, Shape]]
    methods: frozenset[str]
    left_over: tuple[str, ...]  # names that no suffix explains: bundled embeddings, or foreign ones

    def describe_format(self) -> str:
        """Return the method and whose spelling it is: "LoCon (kohya, original blocks)"."""
        methods = set(self.methods - {"DoRA"})
        if methods == {"LoRA"} and any(_is_convolution(parts) for parts in self.modules.values()):
            methods = {"LoCon"}
        method = " and ".join(sorted(methods)) or "LoRA"
        if "DoRA" in self.methods:
            method = "DoRA" if method == "LoRA" else f"DoRA of {method}"
        spellings = {_first(SPELLINGS, module) for module in self.modules}
        known = [spelling for _, spelling in SPELLINGS if spelling in spellings]
        # A text encoder's plain `lora_te1_` says nothing where the UNet's names say which blocks.
        spelling = next(iter(known), "unknown spelling")
        if any(name.startswith("bundle_emb.") for name in self.left_over):
            spelling += ", with bundled embeddings"
        return f"{method} ({spelling})"

    def count_ranks(self) -> dict[int, int]:
        """Return rank -> how many modules have it, the most frequent first; {} for methods without ranks."""
        ranks = Counter(rank for parts in self.modules.values() if (rank := _rank(parts)) is not None)
        return dict(ranks.most_common())

    def count_modules(self) -> dict[str, dict[str, int]]:
        """Return component -> sort of layer -> how many modules the adapter touches."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for module in self.modules:
            bare = module.removeprefix("base_model.model.")
            counts[_first(COMPONENTS, bare)][_first(LAYERS, bare)] += 1
        return {component: dict(counts[component]) for _, component in COMPONENTS if component in counts}

    def input_widths(self, pattern: str) -> set[int]:
        """Return how wide the inputs of the modules are whose names match `pattern` (a search)."""
        search = re.compile(pattern).search
        widths = (input_width(parts) for module, parts in self.modules.items() if search(module))
        return {width for width in widths if width is not None}


def read_layout(tensors: Mapping[str, TensorInfo]) -> AdapterLayout | None:
    """Sort the tensors of an adapter by module; None when there is none of any method."""
    modules: dict[str, dict[str, Shape]] = defaultdict(dict)
    methods: set[str] = set()
    left_over = []
    for name, tensor in tensors.items():
        if name.startswith("bundle_emb.") or (part := split_name(name)) is None:
            left_over.append(name)
            continue
        modules[part.module][part.part] = tensor.shape
        methods.add(part.method)
    methods.discard("")
    if not methods:
        return None
    if "IA3" in methods:
        left_over = [name for name in left_over if name.removesuffix(".weight") not in modules]
    return AdapterLayout(dict(modules), frozenset(methods), tuple(left_over))


def split_name(name: str) -> Part | None:
    """Split a tensor's name into the module, the method and the part; None when it is no adapter's."""
    words = name.split(".")
    for count in (3, 2, 1):
        if len(words) > count and (found := SUFFIXES.get(".".join(words[-count:]))):
            return Part(".".join(words[:-count]), *found)
    if match := PROCESSOR.fullmatch(name):
        layer = "to_out.0" if match["layer"] == "to_out" else match["layer"]
        return Part(f"{match['attention']}.{layer}", "LoRA", match["half"])
    if match := NAMED_ADAPTER.fullmatch(name):
        return Part(match["module"], "LoRA", "down" if match["half"] == "A" else "up")
    return None


def input_width(parts: Mapping[str, Shape]) -> int | None:
    """Return the input width of a module from its parts; None where they do not tell it."""
    for part in ("down", "hada_w1_b", "diff"):
        if len(parts.get(part, ())) >= 2:
            return parts[part][1]
    # The delta of LoKr is the Kronecker product of its two factors, each whole or a product itself.
    factors = [parts.get(f"lokr_{w}_b") or parts.get(f"lokr_{w}") or () for w in ("w1", "w2")]
    if all(len(factor) >= 2 for factor in factors):
        return math.prod(factor[1] for factor in factors)
    return None


def _is_convolution(parts: Mapping[str, Shape]) -> bool:
    return len(down := parts.get("down", ())) == 4 and down[2:] != (1, 1)


def _rank(parts: Mapping[str, Shape]) -> int | None:
    for part in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if parts.get(part):
            return parts[part][0]
    return None


def _first(table: tuple[tuple[str, str], ...], name: str) -> str:
    """Return the word beside the first pattern of `table` that is found in `name`; "" without one."""
    return next((word for pattern, word in table if re.search(pattern, name)), "")
