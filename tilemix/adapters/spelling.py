"""A tensor's name in a LoRA file -> the module as the file spells it, and the tensor's part in the change.

Part names are `down`, `up` (a low-rank pair), `hada_*` (LoHa), `lokr_*` (LoKr), `alpha`, and DoRA's learned
norms: `dora_scale` (kohya, LyCORIS) or `magnitude` (PEFT). What belongs to none of them is left to
`tilemix.adapters.refusals`.
"""

from __future__ import annotations

import re

from tilemix.modelfile.companions import PEFT_WRAPPER, is_wrapped

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
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
}
# diffusers 0.17 to 0.21: attention processors, and the text encoders' like them.
PROCESSOR = re.compile(
    r"(?P<attention>.+)\.processor\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<part>down|up)\.weight"
)
TEXT_PROCESSOR = re.compile(
    r"(?P<attention>.+\.self_attn)\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<part>down|up)\.weight"
)
TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
# PEFT's own name for the adapter left in: `lora_A.default.weight`.
WITH_ADAPTER_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)\.(?!weight$|bias$)[A-Za-z0-9_-]+(\.weight)?"
)
PEFT_PARTS = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}


def split_name(tensor: str) -> tuple[str, str]:
    """Split a tensor's name into (module as the file spells it, part); ("", "") if it has no part's ending."""
    name = PEFT_WRAPPER.sub(r"\1", tensor, count=1) if is_wrapped(tensor) else tensor
    end = len(name)
    for _ in range(3):  # no ending has more dots
        end = name.rfind(".", 0, end)
        if end < 1:
            break
        if (part := SUFFIXES.get(name[end:])) is not None:
            return name[:end], part
    if "_lora." in name:
        if match := PROCESSOR.fullmatch(name):
            layer = "to_out.0" if match["layer"] == "to_out" else match["layer"]
            return f"{match['attention']}.{layer}", match["part"]
        if match := TEXT_PROCESSOR.fullmatch(name):
            return f"{match['attention']}.{TEXT_PROJECTIONS[match['layer']]}", match["part"]
    elif match := WITH_ADAPTER_NAME.fullmatch(name):
        return match["module"], PEFT_PARTS[match["part"]]
    return "", ""
