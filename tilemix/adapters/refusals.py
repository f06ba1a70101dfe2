"""Why a LoRA file is refused: its format, or the base model it was made for.

What a file's metadata claims is only repeated; the tensors' names and shapes decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tilemix.deltas import FAMILIES, find_width
from tilemix.errors import LIST_SEPARATOR, AdapterError
from tilemix.modelfile.base_families import FLUX1, SDXL
from tilemix.modelfile.base_models import (
    TOP_ATTENTION,
    name_declared,
    name_later_base,
    name_text_base,
    tell_lora,
)
from tilemix.modelfile.embedding_names import is_embedding_name
from tilemix.modelfile.spellings import (
    BARE,
    CROSS_ATTENTION,
    TEXT_ATTENTION,
    UNET,
    find_prefix,
    split_name,
)
from tilemix.modelfile.widths import CONTEXT_WIDTHS

if TYPE_CHECKING:
    import torch

    from tilemix.adapters.names import ModuleKey
    from tilemix.modelfile.base_families import BaseFamily
    from tilemix.modelfile.header import Header

# A tensor without a place gives its format away. The first match is named: other architectures, then the parts of
# families that are not supported, then files that are not LoRAs.
TRANSFORMER_PATH = re.compile(r"(transformer_)?(blocks|layers)[._]")
T5_LAYERS = re.compile(r"SelfAttention|DenseReluDense")
SUPPORTED = tuple(family.name for family in FAMILIES if family.is_loaded)
REFUSED_PARTS = tuple(dict.fromkeys(name for family in FAMILIES for name in family.refused.values()))
OTHER_FILES = {
    re.compile(r"^lllite_|controlnet|control_model"): "ControlNet",
    re.compile(r"^(model\.diffusion_model|first_stage_model|conditioner|cond_stage_model)\."): "checkpoint",
    re.compile(r"^(encoder|decoder)\.|^(post_)?quant_conv\."): "VAE",
    re.compile(r"^\d+(\.\d+)?\.linear|^linear[12]?\.\d*"): "hypernetwork",
}
MAX_LOOKED_AT = 500  # tensors without a place that are searched for their format's name
MAX_SHOWN = 5  # of them in a message


def refuse_other_base(
    name: str,
    header: Header,
    modules: Mapping[str, Mapping[str, str]],
    weights: Mapping[ModuleKey, torch.Tensor],
    family: BaseFamily,
) -> None:
    """Refuse a file that was made for another base model, told by the widths of its attention layers.

    Args:
        name: the file's name.
        header: its header.
        modules: its modules, unwrapped -> part -> tensor.
        weights: the loaded pipeline's.
        family: of its base.

    Raises:
        AdapterError: it was.
    """
    own = {
        component: weight.shape[1]
        for (component, module), weight in weights.items()
        if module.endswith("attn2.to_k" if component == family.network else "self_attn.q_proj")
    }
    for module, parts in modules.items():
        is_text = module.endswith(TEXT_ATTENTION)
        if not is_text and not module.endswith(CROSS_ATTENTION):
            continue
        component = find_prefix(module).component
        if component not in (family.encoders if is_text else (family.network,)) or component not in own:
            continue
        width = find_width({part: header.tensors[tensor].shape for part, tensor in parts.items()})
        if width is None or width == own[component]:
            continue
        base = name_text_base(module, width) if is_text else CONTEXT_WIDTHS.get(width)
        if base is None:
            raise AdapterError("lora-other-width", file=name, width=width, expected=own[component])
        raise AdapterError("lora-other-base", file=name, base=base, width=width, expected=own[component])


def refuse_homeless(name: str, header: Header, homeless: Sequence[str], family: BaseFamily) -> None:
    """Refuse a file with tensors that have no place in the loaded model, for the most telling reason.

    Raises:
        AdapterError: `homeless` holds any.
    """
    if not homeless:
        return
    looked_at = homeless[:MAX_LOOKED_AT]
    base = name_later_base(looked_at)
    found = f"{base} LoRA" if base not in (None, family.base) else None
    if family is FLUX1 and any(map(T5_LAYERS.search, looked_at)):
        found = "LoRA for T5"  # which SD 3 has too
    if found is None and family is not FLUX1 and any(map(_is_of_transformer, looked_at)):
        found = "LoRA for a diffusion transformer"
    if found := found or _find_part(looked_at) or _find_other_file(looked_at):
        supported = LIST_SEPARATOR.join(SUPPORTED)
        raise AdapterError(
            "lora-format-unsupported", file=name, format=found, base=family.base, supported=supported
        )
    if any(map(is_embedding_name, looked_at)):
        raise AdapterError("lora-is-embedding", file=name)
    if family is SDXL and any(TOP_ATTENTION.search(tensor) for tensor in looked_at):
        raise AdapterError("lora-older-base", file=name)
    made = tell_lora(header)
    if made is not None and family.base not in made.split(" or "):
        raise AdapterError("adapter-other-family", file=name, base=made, expected=family.base)
    shown = LIST_SEPARATOR.join(homeless[:MAX_SHOWN])
    count = len(homeless)
    declared = header.metadata.get("modelspec.architecture") or header.metadata.get("ss_base_model_version")
    if declared and name_declared(declared) != family.base:
        raise AdapterError(
            "lora-no-place-declared", file=name, tensors=shown, count=count, base=declared[:40]
        )
    raise AdapterError("lora-no-place", file=name, tensors=shown, count=count)


def _is_of_transformer(tensor: str) -> bool:
    prefix = find_prefix(tensor)
    if prefix is BARE:
        return False
    if prefix.component == "transformer" and prefix.writer == "kohya":
        return True
    path = tensor.removeprefix(prefix.start)
    return prefix.component in ("transformer", UNET) and TRANSFORMER_PATH.match(path) is not None


def _find_other_file(tensors: Sequence[str]) -> str | None:
    found = (name for pattern, name in OTHER_FILES.items() if any(map(pattern.search, tensors)))
    return next(found, None)


def _find_part(tensors: Iterable[str]) -> str | None:
    """Return what the first part that no family can load is called."""
    found = {
        part.family.refused[part.part]
        for tensor in tensors
        if (part := split_name(tensor)) is not None and part.family is not None and part.is_refused
    }
    return next((name for name in REFUSED_PARTS if name in found), None)
