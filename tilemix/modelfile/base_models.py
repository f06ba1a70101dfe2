"""Which base model a file was made for, and what says so.

Shapes and names in the file count before what its metadata claims: `ss_base_model_version` and
`modelspec.architecture` are free text, and they name an architecture, not a lineage (a LoRA for Pony or Illustrious
says sdxl_base_v1-0).

Sources: the block tables of the released models' configurations; kohya's and Stability's metadata fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilemix.modelfile.adapter_layout import AdapterLayout, read_layout
from tilemix.modelfile.embedding_names import HALVES, find_pair
from tilemix.modelfile.spellings import (
    CROSS_ATTENTION,
    ENCODERS,
    TEXT_ATTENTION,
    UNET,
    find_prefix,
    unwrap,
)
from tilemix.modelfile.widths import CONTEXT_WIDTHS, FLUX_WIDTH, TEXT_WIDTHS

if TYPE_CHECKING:
    from tilemix.modelfile.header import Header, TensorInfo
    from tilemix.modelfile.kinds import Recognized

# Attention at the highest resolution, which SD 1 and SD 2 have and SDXL has not.
TOP_ATTENTION = re.compile(
    r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions|input_blocks[._][12][._]1(?!\d)"
    r"|output_blocks[._](?:9|10|11)[._]1(?!\d)"
)
# Blocks where only SDXL has attention, or transformers deeper than SD 1's and SD 2's.
DEEP_ATTENTION = re.compile(
    r"transformer_blocks[._][1-9]|up_blocks[._]0[._]attentions|output_blocks[._]0[._]1(?!\d)"
)
# The start of a metadata value -> base model; the first match counts.
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
LATER_BASES = (  # names that only later architectures have; the first match counts
    (re.compile(r"double_stream_modulation|single_stream_modulation"), "Flux.2"),
    (re.compile(r"distilled_guidance_layer"), "Chroma"),
    (re.compile(r"double_blocks[._]|single_blocks[._]|single_transformer_blocks[._]"), "Flux.1"),
    (re.compile(r"joint_blocks[._]|context_block[._]|attn[._]add_[qkv]_proj"), "SD 3"),
)
EITHER = "SD 1 or SDXL"  # whose first text encoder is the same
INPUT_CHANNELS = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth"}
WHOLE = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class Base:
    """A base model and what says so."""

    name: str | None  # "SDXL", "SD 1", ...; None: nothing tells it
    told_by: str | None = None
    variant: str | None = None  # "inpainting", "v-prediction", ...
    conflict: str | None = None  # what the metadata says instead


def tell_base(header: Header, recognized: Recognized) -> Base:
    """Return the base model of a file, told by its header."""
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


def tell_lora(header: Header) -> str | None:
    """Return the base model that the names and shapes of a LoRA's tensors tell; None: they do not."""
    layout = read_layout(header.tensors)
    found = [] if layout is None else _from_lora(layout)
    return found[0][0] if found else None


def _from_lora(layout: AdapterLayout) -> list[tuple[str, str]]:
    modules = list(layout.modules)
    if base := name_later_base(modules):
        if base == "SD 3" and FLUX_WIDTH in layout.input_widths(lambda module: "attn" in module):
            return [("Flux.1", f"attention {FLUX_WIDTH} wide")]
        return [(base, "names of its blocks")]
    widths = layout.input_widths(lambda module: module.endswith(CROSS_ATTENTION))
    known = {CONTEXT_WIDTHS[width] for width in widths if width in CONTEXT_WIDTHS}
    if len(widths) == 1 and known:
        return [(known.pop(), f"cross-attention {widths.pop()} wide")]
    narrow = f", but its cross-attention is {min(widths)} wide" if widths else ""
    components = {layout.find_component(module) for module in modules}
    if ENCODERS[1] in components:
        return [("SDXL", f"a second text encoder{narrow}")]
    if found := _from_blocks([module for module in modules if layout.find_component(module) == UNET]):
        return [(found, f"names of its blocks{narrow}")]
    if components == {ENCODERS[0]}:
        if any(find_prefix(unwrap(module)).base == "SDXL" for module in modules):
            return [("SDXL", "the names of its text encoder")]
        text = layout.input_widths(lambda module: module.endswith(TEXT_ATTENTION))
        if len(text) == 1 and (width := text.pop()) in TEXT_WIDTHS:
            bases = [name_text_base(unwrap(module), width) for module in modules]
            return [(base, f"text encoder {width} wide") for base in bases[:1] if base]
    return []


def name_text_base(module: str, width: int) -> str | None:
    """Return the base model whose text encoder is `width` wide, as far as a module's name leaves it open."""
    base = TEXT_WIDTHS.get(width)
    return (find_prefix(module).base or EITHER) if base == "SD 1" else base


def name_later_base(names: Iterable[str]) -> str | None:
    """Return the architecture later than SDXL that the names of tensors or modules give away."""
    known = tuple(names)
    found = next((base for pattern, base in LATER_BASES if any(map(pattern.search, known))), None)
    return found or next((base for name in known if (base := find_prefix(name).base) == "SD 3"), None)


def name_declared(value: str) -> str | None:
    """Return the base model that a `modelspec.architecture` or an `ss_base_model_version` names."""
    return _by_start(ARCHITECTURES + VERSIONS, value)


def _from_blocks(modules: list[str]) -> str | None:
    """Distinguish SDXL from its predecessors by which blocks have attention, and how deep.

    SDXL's transformers are 2 and 10 deep, in the lower two of three resolutions; those of SD 1 and SD 2 are 1 deep,
    in the upper three of four.
    """
    names = "\n".join(modules)
    if DEEP_ATTENTION.search(names):
        return "SDXL"
    return "SD 1 or SD 2" if TOP_ATTENTION.search(names) else None


def _from_embedding(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str]]:
    if find_pair(tensors):
        return [("SDXL", "rows for two text encoders")]
    ((name, tensor),) = tensors.items()
    if name in HALVES:
        return [("SDXL", f"the name {name!r}")]
    width = tensor.shape[-1] if tensor.shape else 0
    return [(TEXT_WIDTHS[width], f"rows {width} wide")] if width in TEXT_WIDTHS else []


def _from_network(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, str]]:
    """Identify the base of a checkpoint, a UNet, a VAE or a text encoder."""

    def width(name: str) -> int | None:
        tensor = tensors.get(WHOLE + name) or tensors.get(name)
        return tensor.shape[-1] if tensor and tensor.shape else None

    if later := name_later_base(tensors):
        return [(later, "names of its blocks")]
    names = "\n".join(tensors)
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
