"""Random adapters in the layout of the product's own files.

The LoRA: kohya's names with diffusers' blocks, weights in BF16, alphas as INT64 scalars, rank 32, over every query,
key, value and output projection and over each resnet's second convolution: 577 modules, 101,961,928 bytes. The
tokens: `clip_g` (2, 1280) and `clip_l` (2, 768), BF16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from bench.topology import LORA_SHARE, list_attention_modules

if TYPE_CHECKING:
    from torch import nn

RANK = 32
TOKENS = ("<s0>", "<s1>")


def list_lora_modules(unet: nn.Module) -> list[str]:
    """Return the path of every module that the LoRA changes: 577 in SDXL."""
    convolutions = [path for path, _ in unet.named_modules() if path.endswith(".conv2")]
    return [*list_attention_modules(unet), *convolutions]


def draw_product_lora(
    unet: nn.Module, *, measure: Callable[[torch.Tensor], float] = lambda weight: float(weight.float().std())
) -> dict[str, torch.Tensor]:
    """Return a random LoRA for `unet`; its change is a tenth of each weight's size, which `measure` tells."""
    generator = torch.Generator("cpu").manual_seed(1)
    tensors = {}
    for path in list_lora_modules(unet):
        weight = unet.get_parameter(f"{path}.weight")
        rows, columns, *kernel = weight.shape
        size = LORA_SHARE * measure(weight.detach()) / RANK**0.5
        down = torch.randn((RANK, columns, *kernel), generator=generator, device="cpu")
        up = torch.randn((rows, RANK, *(1 for _ in kernel)), generator=generator, device="cpu") * size
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = down.bfloat16()
        tensors[f"{name}.lora_up.weight"] = up.bfloat16()
        tensors[f"{name}.alpha"] = torch.tensor(RANK, dtype=torch.int64, device="cpu")
    return tensors


def draw_product_tokens(encoders: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return random rows for the tokens, as large as the encoders' own."""
    generator = torch.Generator("cpu").manual_seed(2)
    tensors = {}
    for key, encoder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        own = encoders[encoder].get_input_embeddings().weight
        size = float(own.detach().float().std())
        rows = torch.randn((len(TOKENS), own.shape[1]), generator=generator, device="cpu") * size
        tensors[key] = rows.bfloat16()
    return tensors


def write_adapters(folder: Path, parts: Mapping[str, nn.Module], name: str) -> list[dict[str, object]]:
    """Write both files into `folder` and return their entries for a manifest."""
    lora, embeddings = f"{name}_sdxl_lora.safetensors", f"{name}_sdxl_embeddings.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(draw_product_lora(parts["unet"]), folder / lora)
    save_file(draw_product_tokens(parts), folder / embeddings)
    return [
        {"file": lora, "kind": "lora", "scale": 0.7},
        {"file": embeddings, "kind": "embedding", "tokens": list(TOKENS)},
    ]
