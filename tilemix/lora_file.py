"""A LoRA file -> low-rank pairs, each named by the module of the pipeline that it changes.

Read completely or refused: every tensor of the file belongs to a pair whose shape fits the loaded
pipeline, and every number is finite. alpha is baked into one factor per pair, in fp32.

Spellings that are read: diffusers (`unet.X.lora_A.weight`, `.lora.down.weight`,
`.processor.to_q_lora.down.weight`, `.lora_linear_layer.down.weight`, ranks and alphas from the header's
`lora_adapter_metadata`) and kohya (`lora_unet_`, `lora_te_`, `lora_te1_`, `lora_te2_`, with diffusers' or
with the original model's block names, convolutions included). Others are refused by their name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tilemix.errors import AdapterError
from tilemix.modelfile import Header, read_header

if TYPE_CHECKING:
    from pathlib import Path

ModuleKey = tuple[str, str]  # component ("unet", "text_encoder", "text_encoder_2") and module path in it

# The suffix after a module's name, and which half of the pair it is. Longest first.
SUFFIXES = {
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".alpha": "alpha",
}
PROCESSOR = re.compile(
    r"(?P<attention>.+)\.processor\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<half>down|up)\.weight"
)
TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
TEXT_PROCESSOR = re.compile(
    r"(?P<attention>.+\.self_attn)\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<half>down|up)\.weight"
)
MAX_ALPHA = 1e6
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What a tensor's name holds -> the format it gives away. Known, and not read.
FOREIGN = {
    r"lora_mid": "LoCon with a tucker core (lora_mid)",
    r"\.dora_scale$": "DoRA (kohya)",
    r"\.lora_magnitude_vector": "DoRA (diffusers)",
    r"\.hada_[wt]": "LyCORIS LoHa",
    r"\.lokr_[wt]": "LyCORIS LoKr",
    r"\.oft_|^oft_": "OFT",
    r"\.on_input$": "IA3",
    r"\.diff(_b)?$": "a full difference (.diff)",
    r"^bundle_emb\.": "a LoRA with bundled embeddings",
    r"\.lora_[AB]\.default": "PEFT with its adapter name left in (lora_A.default)",
    r"^base_model\.model\.": "a PEFT folder's adapter_model",
    r"double_blocks|single_transformer_blocks": "a Flux LoRA",
    r"^model\.diffusion_model\.|^first_stage_model\.|^conditioner\.": "a whole checkpoint",
    r"^diffusion_model\.": "ComfyUI's LoRA",
    r"^lycoris_": "LyCORIS",
    r"^(down_blocks|mid_block|up_blocks)\..*\.processor\.": "cog-sdxl's LoRA (no `unet.` in front)",
    r"^(clip_[lg]|text_encoders_[01])$": "a textual inversion embedding, not a LoRA; it",
}


@dataclass(frozen=True, slots=True)
class LowRankPair:
    """One module's change: scale * factor * up @ down is added to its weight."""

    down: torch.Tensor  # (rank, in) or (rank, in, k, k), as stored
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1)
    factor: float  # alpha / rank

    def delta(self, device: torch.device) -> torch.Tensor:
        """Return the change at scale 1 in fp32, in the weight's own shape: (out, in) or (out, in, k, k)."""
        down = self.down.to(device, torch.float32)
        up = self.up.to(device, torch.float32)
        return (up.flatten(1) @ down.flatten(1)).mul_(self.factor).reshape(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that this pair changes."""
        return (self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA whose every tensor has its place in the loaded pipeline."""

    name: str  # the file's name
    pairs: dict[ModuleKey, LowRankPair]


def read_lora(
    path: Path, weights: Mapping[ModuleKey, torch.Tensor], names: Mapping[str, ModuleKey]
) -> LoraFile:
    """Read the LoRA file `path` for a pipeline.

    Args:
        path: a safetensors file, whatever its extension.
        weights: the pipeline's weights by module; only their shapes are looked at.
        names: how files spell those modules, see `tilemix.lora_names.spell_modules`.

    Raises:
        ModelFileError: no safetensors file.
        AdapterError: another format, another base model, a tensor without its place or its other half,
            a number that is not finite.
    """
    header = read_header(path)
    if not header.tensors:
        raise AdapterError(f"{path.name}: no tensors in it")
    placed = _place_tensors(path.name, header, names)
    scaling = _HeaderScaling(path.name, header)
    pairs = {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for key, parts in placed.items():
            pairs[key] = _read_pair(
                path.name, key, {part: file.get_tensor(n) for part, n in parts.items()}, scaling
            )
            _check_shape(path.name, key, pairs[key], weights[key])
    scaling.refuse_unused()
    return LoraFile(path.name, pairs)


def _place_tensors(
    name: str, header: Header, names: Mapping[str, ModuleKey]
) -> dict[ModuleKey, dict[str, str]]:
    """Sort the file's tensors: module -> {"down" | "up" | "alpha": tensor name}."""
    placed: dict[ModuleKey, dict[str, str]] = {}
    homeless = []
    for tensor in header.tensors:
        module, half = _split_name(tensor)
        key = names.get(module) if module else None
        if key is None:
            homeless.append(tensor)
        elif placed.setdefault(key, {}).setdefault(half, tensor) != tensor:
            raise AdapterError(f"{name}: {tensor!r} and {placed[key][half]!r} are for the same weight")
    if homeless:
        for pattern, format_name in FOREIGN.items():
            if any(re.search(pattern, tensor) for tensor in homeless):
                raise AdapterError(f"{name}: {format_name} is not supported; kohya and diffusers LoRA are")
        shown = ", ".join(repr(tensor) for tensor in homeless[:5])
        more = f" and {len(homeless) - 5} more" if len(homeless) > 5 else ""
        raise AdapterError(f"{name}: no place in this model for {shown}{more}")
    return placed


def _split_name(tensor: str) -> tuple[str, str]:
    """Split a tensor's name into the module as the file spells it and the half; ("", "") if it is neither."""
    if match := PROCESSOR.fullmatch(tensor):
        layer = "to_out.0" if match["layer"] == "to_out" else match["layer"]
        return f"{match['attention']}.{layer}", match["half"]
    if match := TEXT_PROCESSOR.fullmatch(tensor):
        return f"{match['attention']}.{TEXT_PROJECTIONS[match['layer']]}", match["half"]
    for suffix, half in SUFFIXES.items():
        if tensor.endswith(suffix):
            return tensor.removesuffix(suffix), half
    return "", ""


def _read_pair(
    name: str, key: ModuleKey, parts: Mapping[str, torch.Tensor], scaling: _HeaderScaling
) -> LowRankPair:
    where = ".".join(key)
    if "down" not in parts or "up" not in parts:
        found = next(iter(parts))
        raise AdapterError(f"{name}: half a pair for {where}: only {found!r} is there")
    for half, tensor in parts.items():
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{name}: {half!r} of {where} is {tensor.dtype}, expected a float of 16 bits or more"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name}: {half!r} of {where} holds a number that is not finite")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0]
    fits = up.ndim == down.ndim and up.ndim in (2, 4) and up.shape[1] == rank and up.shape[2:].numel() == 1
    if not fits:
        shapes = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
        raise AdapterError(f"{name}: the pair for {where} does not fit together: {shapes}")
    if "alpha" in parts:
        alpha = parts["alpha"]
        if alpha.numel() != 1:
            raise AdapterError(
                f"{name}: alpha of {where} has the shape {tuple(alpha.shape)}, expected one number"
            )
        return LowRankPair(down, up, alpha.item() / rank)
    return LowRankPair(down, up, scaling.factor(key, rank))


def _check_shape(name: str, key: ModuleKey, pair: LowRankPair, weight: torch.Tensor) -> None:
    if pair.shape != tuple(weight.shape):
        found, expected = ("x".join(map(str, shape)) for shape in (pair.shape, weight.shape))
        raise AdapterError(
            f"{name}: made for another model: {'.'.join(key)} is {found} in the file, {expected} in this model"
        )


class _HeaderScaling:
    """Ranks and alphas that diffusers keeps in the header, for files without `.alpha` tensors.

    `lora_adapter_metadata` is a JSON table of PEFT's LoraConfig fields, each prefixed by its component:
    `unet.r`, `unet.lora_alpha`, `unet.rank_pattern`, `unet.alpha_pattern`, `unet.use_rslora`.
    """

    def __init__(self, name: str, header: Header) -> None:
        self._name = name
        self._table: dict[str, object] = {}
        self._used: set[tuple[str, str]] = set()  # (component, pattern) that decided an alpha
        raw = header.metadata.get("lora_adapter_metadata")
        if raw is None:
            return
        try:
            table = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise AdapterError(f"{name}: lora_adapter_metadata is not JSON: {str(error)[:80]}") from error
        if not isinstance(table, dict):
            raise AdapterError(f"{name}: lora_adapter_metadata is no JSON object")
        self._table = table

    def factor(self, key: ModuleKey, rank: int) -> float:
        """Return alpha / rank (alpha / sqrt(rank) for rsLoRA) of a module; 1 where the header says nothing."""
        component, module = key
        alpha = self._table.get(f"{component}.lora_alpha")
        patterns = self._table.get(f"{component}.alpha_pattern")
        if isinstance(patterns, dict):
            # PEFT's rule: a regular expression for the end of the module's path, the first one that fits.
            # transformers 5 has dropped the `text_model.` that older files have in theirs.
            paths = (module, f"text_model.{module}")
            for ending, value in patterns.items():
                if self._fits(ending, paths):
                    self._used.add((component, ending))
                    alpha = value
                    break
        if alpha is None:
            return 1.0
        if type(alpha) not in (int, float) or not 0 <= alpha <= MAX_ALPHA:  # type: ignore[operator]
            raise AdapterError(f"{self._name}: lora_adapter_metadata has the alpha {str(alpha)[:40]}")
        assert isinstance(alpha, int | float)
        return float(alpha) / (math.sqrt(rank) if self._table.get(f"{component}.use_rslora") else rank)

    def refuse_unused(self) -> None:
        """Refuse a pattern that fits none of the file's modules: it was meant for one, spelled otherwise.

        Raises:
            AdapterError: there is one.
        """
        for key, patterns in self._table.items():
            component, _, field = key.rpartition(".")
            if field == "alpha_pattern" and isinstance(patterns, dict):
                for ending in patterns:
                    if (component, ending) not in self._used:
                        raise AdapterError(
                            f"{self._name}: alpha_pattern {ending[:80]!r} fits no module of the file"
                        )

    def _fits(self, ending: str, paths: tuple[str, ...]) -> bool:
        try:
            return any(re.match(rf"(.*\.)?({ending})$", path) for path in paths)
        except re.error as error:
            raise AdapterError(f"{self._name}: alpha_pattern {ending[:80]!r}: {error}") from error
