"""Safetensors files with real names and sizes whose data are a hole in the file: they take no space."""

import json
import math
from pathlib import Path

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def write_model(path: Path, shapes: dict[str, tuple[int, ...]], *, dtype="F16", metadata=None) -> Path:
    """Write a file with tensors of these shapes, all zero, and return its path."""
    header, position = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, shape in shapes.items():
        end = position + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
    return path


def lora(modules: dict[str, tuple[int, int]], *, rank=8, alpha=True, down="lora_down", up="lora_up"):
    """The shapes of a LoRA: module -> (out, in)."""
    shapes = {}
    for module, (width_out, width_in) in modules.items():
        shapes[f"{module}.{down}.weight"] = (rank, width_in)
        shapes[f"{module}.{up}.weight"] = (width_out, rank)
        if alpha:
            shapes[f"{module}.alpha"] = ()
    return shapes


KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
SDXL_LORA = lora({KOHYA: (640, 2048), KOHYA.replace("attn2_to_k", "attn1_to_q"): (640, 640)})
