"""Which base model a file was made for, and what says so.

Shapes and names in the file go before what its metadata claims: `ss_base_model_version` and
`modelspec.architecture` are free text, and they name an architecture, never a lineage (a LoRA for Pony or
Illustrious says sdxl_base_v1-0).

Sources: the block tables of the released models' configurations; kohya's and Stability's metadata fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilemix.modelfile.adapter_layout import AdapterLayout
    from tilemix.modelfile.header import Header, TensorInfo
    from tilemix.modelfile.kinds import Recognized

CONTEXT_WIDTHS = {768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL refiner"}  # of the cross-attention
EMBEDDING_WIDTHS = {768: "SD 1", 1024: "SD 2", 1280: "SDXL"}
# The start of a metadata value -> base model; the first that fits.
ARCHITECTURES = (
    ("stable-diffusion-xl-v1-refiner", "SDXL refiner"), ("stable-diffusion-xl", "SDXL"),
    ("stable-diffusion-v1", "SD 1"), ("stable-diffusion-v2", "SD 2"), ("stable-diffusion-v3", "SD 3"),
    ("stable-diffusion-3", "SD 3"), ("flux-1", "Flux.1"), ("flux-2", "Flux.2"), ("chroma", "Chroma"),
    ("lumina-2", "Lumina 2"),
)  # fmt: skip
VERSIONS = (
    ("sdxl_refiner", "SDXL refiner"), ("sdxl", "SDXL"), ("sd_v1", "SD 1"), ("sd_v2", "SD 2"), ("sd3", "SD 3"),
    ("flux1", "Flux.1"), ("flux2", "Flux.2"), ("chroma", "Chroma"), ("lumina2", "Lumina 2"),
)  # fmt: skip
LATER_LORAS = (  # names that only later architectures have
    (r"double_stream_modulation|single_stream_modulation", "Flux.2"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"double_blocks[._]|single_blocks[._]|single_transformer_blocks[._]", "Flux.1"),
    (r"joint_blocks[._]|context_block[._]|attn[._]add_[qkv]_proj", "SD 3"),
)
CROSS_ATTENTION = r"attn2[._]to_[kv]$"
INPUT_CHANNELS = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth"}
WHOLE = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class Base:
    """A base model and what says so."""

    name: str | None  # "SDXL", "SD 1", ...; None: nothing tells
    told_by: str | None = None
    variant: str | None = None  # "inpainting", "v-prediction", ...
    conflict: str | None = None  # what the metadata says instead


def tell_base(header: Header, recognized: Recognized) -> Base:
    """Tell the base model of a file from its header."""
    found: list[tuple[str, str]] = []  # (base model, what says so), the strongest first
    if recognized.layout is not None:
        found += _from_lora(recognized.layout)
    elif recognized.kind == "embedding":
        found += _from_embedding(header.tensors)
    else:
        found += _from_network(header.tensors)
    architecture = header.metadata.get("modelspec.architecture", "")
    if name := _by_start(ARCHITECTURES, architecture):
        found.append((name, f"modelspec.architecture {architecture[:60]!r}"))
    version = header.metadata.get("ss_base_model_version", "")
    if name := _by_start(VERSIONS, version):
        found.append((name, f"ss_base_model_version {version[:60]!r}"))
    elif header.metadata.get("ss_v2") == "True":
        found.append(("SD 2", "ss_v2"))
    if not found:
        return Base(None, variant=_variant(header.tensors))
    name, told_by = found[0]
    others = [f"{how} says {other}" for other, how in found[1:] if other != name]
    return Base(name, told_by, _variant(header.tensors), "; ".join(others) or None)


def _from_lora(layout: AdapterLayout) -> list[tuple[str, str]]:
    modules = list(layout.modules)
    for pattern, base in LATER_LORAS:
        if any(re.search(pattern, module) for module in modules):
            return [(base, "names of its blocks")]
    widths = layout.input_widths(CROSS_ATTENTION)
    known = {CONTEXT_WIDTHS[width] for width in widths if width in CONTEXT_WIDTHS}
    if len(widths) == 1 and known:
        return [(known.pop(), f"cross-attention {widths.pop()} wide")]
    narrow = f", but its cross-attention is {min(widths)} wide" if widths else ""
    if any(re.match(r"(?:base_model\.model\.)?(?:lora_te2_|text_encoder_2\.)", module) for module in modules):
        return [("SDXL", f"a second text encoder{narrow}")]
    unet = [module for module in modules if not re.match(r"lora_te|text_encoder", module)]
    if found := _from_blocks(unet):
        return [(found, f"names of its blocks{narrow}")]
    text = layout.input_widths(r"self_attn[._][qkv]_proj$") if not unet else set()
    if len(text) == 1 and (width := text.pop()) in (768, 1024):
        return [(CONTEXT_WIDTHS[width], f"text encoder {width} wide")]
    return []


def _from_blocks(modules: list[str]) -> str | None:
    """Tell SDXL from its forerunners by which blocks have attention, and how deep.

    SDXL's transformers are 2 and 10 deep and stand in the lower two of three resolutions; SD 1's and 2's are 1
    deep and stand in the upper three of four.
    """
    names = "\n".join(modules)
    deep = r"transformer_blocks[._][1-9]|up_blocks[._]0[._]attentions|output_blocks[._]0[._]1(?!\d)"
    flat = r"down_blocks[._]0[._]attentions|input_blocks[._][12][._]1(?!\d)|up_blocks[._]3[._]attentions"
    if re.search(deep, names):
        return "SDXL"
    return "SD 1 or SD 2" if re.search(flat, names) else None


def _from_embedding(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str]]:
    if len(tensors) == 2:
        return [("SDXL", "rows for two text encoders")]
    ((name, tensor),) = tensors.items()
    width = tensor.shape[-1] if tensor.shape else 0
    if name in ("clip_l", "clip_g", "text_encoders_0", "text_encoders_1"):
        return [("SDXL", f"the name {name!r}")]
    return [(EMBEDDING_WIDTHS[width], f"rows {width} wide")] if width in EMBEDDING_WIDTHS else []


def _from_network(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str]]:
    """Tell the base of a checkpoint, a UNet, a VAE or a text encoder."""

    def width(name: str) -> int | None:
        tensor = tensors.get(WHOLE + name) or tensors.get(name)
        return tensor.shape[-1] if tensor and tensor.shape else None

    names = "\n".join(tensors)
    for pattern, base in LATER_LORAS:
        if re.search(pattern, names):
            return [(base, "names of its blocks")]
    to_k = "transformer_blocks.0.attn2.to_k.weight"
    upper = width(f"input_blocks.2.1.{to_k}") or width(f"down_blocks.0.attentions.0.{to_k}")
    lower = width(f"input_blocks.4.1.{to_k}") or width(f"down_blocks.1.attentions.0.{to_k}")
    if (known := upper or lower) in CONTEXT_WIDTHS:
        assert known is not None
        base = CONTEXT_WIDTHS[known]
        if base == "SDXL" and "edm_mean" in tensors and "edm_std" in tensors:
            return [("Playground 2.5", "edm_mean and edm_std")]
        if base == "SDXL" and not re.search(r"transformer_blocks\.[5-9]\.", names):
            return [("SSD-1B", f"cross-attention {known} wide, transformers less than 6 deep")]
        return [(base, f"cross-attention {known} wide")]
    if "conditioner.embedders.1.model." in names or "add_embedding.linear_1.weight" in tensors:
        narrow = f", but its cross-attention is {known} wide" if known else ""
        return [
            (
                "SDXL",
                f"the names of its {'text encoders' if 'conditioner.' in names else 'conditions'}{narrow}",
            )
        ]
    if "conditioner.embedders.0.model." in names:
        return [("SDXL refiner", "the names of its text encoder")]
    if "cond_stage_model.model." in names:
        return [("SD 2", "the names of its text encoder")]
    if "cond_stage_model.transformer." in names:
        return [("SD 1", "the names of its text encoder")]
    latents = next((t.shape for n, t in tensors.items() if n.endswith("decoder.conv_in.weight")), ())
    if len(latents) == 4 and latents[1] == 16:
        return [("SD 3 or Flux.1", "16 latent channels")]
    return []


def _variant(tensors: Mapping[str, TensorInfo]) -> str | None:
    found = []
    first = tensors.get(f"{WHOLE}input_blocks.0.0.weight")
    if first and len(first.shape) == 4 and first.shape[1] in INPUT_CHANNELS:
        found.append(INPUT_CHANNELS[first.shape[1]])
    if "v_pred" in tensors or "edm_vpred.sigma_max" in tensors:
        found.append("v-prediction")
    if "ztsnr" in tensors:
        found.append("zero terminal SNR")
    return ", ".join(found) or None


def _by_start(table: tuple[tuple[str, str], ...], value: str) -> str | None:
    return next((base for start, base in table if value.lower().startswith(start)), None)
