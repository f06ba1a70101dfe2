"""Which words a LoRA file is refused with: its format, or the base model it was made for.

What a file says of itself in its metadata is only repeated; the tensors' names and shapes decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tilemix.errors import AdapterError

if TYPE_CHECKING:
    import torch

    from tilemix.adapters.names import ModuleKey
    from tilemix.modelfile import Header

# What the name of a tensor without a place holds -> the format it gives away. The first that fits is named.
FORMATS = {
    r"double_blocks|single_blocks|single_transformer_blocks": "a Flux LoRA",
    r"joint_blocks|^lora_te3_|^transformer\.transformer_blocks\.|^lora_transformer_": "an SD 3 LoRA",
    r"^(transformer|diffusion_model)\.(blocks|layers)\.": "a LoRA for a diffusion transformer",
    r"lora_mid|\.hada_t[12]$|\.lokr_t2$": "a tucker core (lora_mid, hada_t, lokr_t2)",
    r"oft_blocks|oft_diag|^oft_|\.boft_": "OFT",
    r"\.on_input$|\.ia3_": "IA3",
    r"\.diff(_b)?$|\.set_weight$": "a full difference (.diff)",
    r"\.[wb]_norm$": "a difference of norms (.w_norm, .b_norm)",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.lora_(B|up)\.bias$|\.lora_bias": "a LoRA with biases",
    r"^lllite_|controlnet|control_model": "a ControlNet",
    r"^model\.diffusion_model\.|^first_stage_model\.|^conditioner\.|^cond_stage_model\.": "a whole checkpoint",
    r"^(encoder|decoder)\.|^(post_)?quant_conv\.": "a VAE",
    r"^\d+(\.\d+)?\.linear|^linear[12]?\.\d*": "a hypernetwork",
    r"^(clip_[lg]|text_encoders_[01]|emb_params|string_to_param)": "a textual inversion embedding, not a LoRA; it",
}
CROSS_ATTENTION = tuple(f"attn2{dot}to_{letter}" for dot in "._" for letter in "kv")
# Attention at the highest resolution, which SD 1.5 and SD 2 have and SDXL has not.
TOP_ATTENTION = re.compile(
    r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions|input_blocks[._][12][._]1[._]"
    r"|output_blocks[._](9|10|11)[._]1[._]"
)
# The width of the text that the cross-attention reads -> the base model.
BASES = {768: "SD 1.5", 1024: "SD 2", 1280: "the SDXL refiner", 2048: "SDXL"}
TEXT_ATTENTION = re.compile(
    r"(?P<prefix>lora_te1_|lora_te2_|lora_te_|text_encoder\.|text_encoder_2\.).*self_attn[._][qkv]_proj"
)
TEXT_BASES = {768: "SD 1.5 or SDXL", 1024: "SD 2", 1280: "SDXL"}
SDXL_DECLARATIONS = ("sdxl", "stable-diffusion-xl")
MAX_LOOKED_AT = 500  # tensors without a place that are looked at for their format's name


def refuse_other_base(
    name: str,
    header: Header,
    modules: Mapping[str, Mapping[str, str]],
    weights: Mapping[ModuleKey, torch.Tensor],
) -> None:
    """Refuse a file that was made for another base model, told from the widths of its attention layers.

    Args:
        name: the file's name.
        header: its header.
        modules: its modules as it spells them -> part -> tensor.
        weights: the loaded pipeline's.

    Raises:
        AdapterError: it was.
    """
    own = {
        component: weight.shape[1]
        for (component, module), weight in weights.items()
        if module.endswith("attn2.to_k" if component == "unet" else "self_attn.q_proj")
    }
    for module, parts in modules.items():
        text = TEXT_ATTENTION.fullmatch(module) if module.endswith("_proj") else None
        if not text and not module.endswith(CROSS_ATTENTION):
            continue
        width = _input_width({part: header.tensors[tensor].shape for part, tensor in parts.items()})
        component = "unet"
        if text:
            component = "text_encoder_2" if "2" in text["prefix"] else "text_encoder"
        if width is None or component not in own or width == own[component]:
            continue
        base = (TEXT_BASES if text else BASES).get(width, "another model")
        raise AdapterError(f"{name}: made for {base}, {width} wide; this model is {own[component]} wide")


def refuse_homeless(name: str, header: Header, homeless: Sequence[str]) -> None:
    """Refuse a file with tensors that have no place in the loaded model, by the best name there is for it.

    Raises:
        AdapterError: `homeless` holds any.
    """
    if not homeless:
        return
    looked_at = homeless[:MAX_LOOKED_AT]
    for pattern, format_name in FORMATS.items():
        if any(re.search(pattern, tensor) for tensor in looked_at):
            raise AdapterError(f"{name}: {format_name} is not supported; SDXL's LoRA, LoHa, LoKr, DoRA are")
    if any(TOP_ATTENTION.search(tensor) for tensor in looked_at):
        raise AdapterError(f"{name}: made for SD 1.5 or SD 2, which have attention where SDXL has none")
    shown = ", ".join(repr(tensor) for tensor in homeless[:5])
    more = f" and {len(homeless) - 5} more" if len(homeless) > 5 else ""
    declared = header.metadata.get("modelspec.architecture") or header.metadata.get("ss_base_model_version")
    hint = ""
    if declared and not declared.startswith(SDXL_DECLARATIONS):
        hint = f"; the file says that it is for {declared[:40]!r}"
    raise AdapterError(f"{name}: no place in this model for {shown}{more}{hint}")


def _input_width(parts: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return `in` of the linear module that the parts change; None if they do not tell."""

    def columns(*names: str) -> int | None:
        return next((parts[name][1] for name in names if len(parts.get(name, ())) > 1), None)

    if (width := columns("down", "hada_w1_b", "hada_w2_b")) is not None:
        return width
    first, second = columns("lokr_w1", "lokr_w1_b"), columns("lokr_w2", "lokr_w2_b")
    return None if first is None or second is None else first * second
