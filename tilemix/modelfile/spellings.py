"""How adapter files spell the modules of a model: the one table that the loader, `inspect` and `weights add` read.

A tensor's name is the module, as its writer spells it, and a suffix that tells the family and the part; the suffixes
are `tilemix.deltas.SUFFIXES`. A module's name is a prefix that tells the component, and the path in it.

Sources: the key names in files of kohya's sd-scripts, LyCORIS, PEFT, diffusers and ComfyUI.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from tilemix.deltas import SUFFIXES, Family

NETWORKS = ("unet", "transformer")  # that draw, one in each base family
ENCODERS = ("text_encoder", "text_encoder_2")
COMPONENTS = NETWORKS + ENCODERS  # adapters change these
UNET, TRANSFORMER = NETWORKS

Blocks = Literal["diffusers", "original", "both", "none"]


class Prefix(NamedTuple):
    """How one writer begins the names of a component's modules."""

    start: str
    component: str
    writer: str
    blocks: Blocks = "diffusers"  # which names of the blocks follow; "none": its modules are not loaded
    base: str | None = None  # the base model that only such files are for; None: several
    is_shared: bool = False  # stands before the names of any network that draws, not only of `component`

    def spell(self, path: str) -> str:
        """Return the name of the module at `path` of the component."""
        return self.start + (path.replace(".", "_") if self.start.endswith("_") else path)

    def names(self, component: str) -> bool:
        """Return whether names of a component's modules begin so."""
        return component == self.component or (self.is_shared and component in NETWORKS)


KOHYA_UNET = Prefix("lora_unet_", "unet", "kohya", "both", is_shared=True)
PREFIXES = (
    Prefix("unet.", "unet", "diffusers"),
    KOHYA_UNET,
    Prefix("lycoris_", "unet", "LyCORIS", is_shared=True),
    Prefix("diffusion_model.", "unet", "ComfyUI", "original", is_shared=True),
    Prefix("text_encoder.", "text_encoder", "diffusers"),
    Prefix("lora_te1_", "text_encoder", "kohya", base="SDXL"),
    Prefix("lora_te_", "text_encoder", "kohya", base="SD 1"),
    Prefix("text_encoders.clip_l.transformer.", "text_encoder", "ComfyUI", base="SDXL"),
    Prefix("text_encoder_2.", "text_encoder_2", "diffusers", base="SDXL"),
    Prefix("lora_te2_", "text_encoder_2", "kohya", base="SDXL"),
    Prefix("text_encoders.clip_g.transformer.", "text_encoder_2", "ComfyUI", base="SDXL"),
    Prefix("oft_unet_", "unet", "kohya", "none"),
    Prefix("text_encoder_3.", "text_encoder_3", "diffusers", "none", "SD 3"),
    Prefix("lora_te3_", "text_encoder_3", "kohya", "none", "SD 3"),
    Prefix("transformer.", "transformer", "diffusers"),
    Prefix("lora_transformer_", "transformer", "kohya"),
)
# cog-sdxl, XLabs and PEFT treat the network that draws as the whole model and write its paths without a prefix.
BARE = Prefix("", "unet", "no component's name in front", "both", is_shared=True)
# Whose names the blocks have -> how such a path starts.
BLOCK_NAMES = (
    (
        "original blocks",
        ("input_blocks", "middle_block", "output_blocks", "out_", "time_embed_", "label_emb"),
    ),
    ("diffusers blocks", ("down_blocks", "mid_block", "up_blocks")),
)
# How such a path starts -> whose names its blocks have.
BARE_STARTS = {
    f"{name.rstrip('_')}.": writer
    for writer, (_, names) in zip(("original blocks", "diffusers"), BLOCK_NAMES, strict=True)
    for name in names
}
# How the names of a transformer's modules begin, behind a shared prefix.
OF_TRANSFORMER = re.compile(
    r"(?:(?:single_)?transformer_blocks|(?:double|single)_blocks|(?:img|txt|time|vector|guidance)_in|final_layer"
    r"|x_embedder|context_embedder|time_text_embed|norm_out|proj_out)(?:[._]|$)"
)
BARE_STARTS |= {"double_blocks.": "original blocks", "single_blocks.": "original blocks"}
BARE_STARTS |= {"transformer_blocks.": "diffusers", "single_transformer_blocks.": "diffusers"}
# XLabs: attention processors of the original model's blocks.
XLABS = re.compile(
    r"(?P<module>(?:.*\.)?(?:double|single)_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]?)"
    r"\.(?P<part>down|up)\.weight"
)
# A file's spelling is the first of these that occurs in it: the UNet's says more than a text encoder's.
TOLD_FIRST = (
    "PEFT",
    "XLabs",
    "LyCORIS",
    "kohya, original blocks",
    "kohya, diffusers blocks",
    "kohya",
    "ComfyUI",
    "diffusers",
    f"original blocks, {BARE.writer}",
    f"diffusers, {BARE.writer}",
)
# PEFT's wrapper, written by `save_pretrained`; it stands before or after the component's name.
PEFT_WRAPPER = re.compile(rf"((?:{'|'.join(COMPONENTS)})\.)?base_model\.model\.")
# diffusers 0.17 to 0.21: attention processors, and the text encoders' counterparts.
PROCESSOR = re.compile(
    r"(?P<attention>.+)\.processor\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<part>down|up)\.weight"
)
TEXT_PROCESSOR = re.compile(
    r"(?P<attention>.+\.self_attn)\.(?P<layer>to_(?:q|k|v|out))_lora\.(?P<part>down|up)\.weight"
)
TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
# PEFT's own name for the adapter left in: `lora_A.default.weight`.
WITH_ADAPTER_NAME = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_(?:A|B|magnitude_vector))\.(?!weight$|bias$)(?P<adapter>[A-Za-z0-9_-]+)"
    r"(?:\.weight)?"
)
# How the names of the layers end whose input widths tell the base model.
CROSS_ATTENTION = tuple(f"attn2{dot}to_{letter}" for dot in "._" for letter in "kv")
TEXT_ATTENTION = tuple(f"self_attn{dot}{letter}_proj" for dot in "._" for letter in "qkv")


class Part(NamedTuple):
    """What a tensor's name says."""

    module: str  # as the file spells it
    family: Family | None  # None: alpha, which several families have
    part: str  # "down", "hada_w1_a", "alpha", ...
    adapter: str | None = None  # PEFT's name for the adapter, where it was left in

    @property
    def is_refused(self) -> bool:
        """Whether the loader refuses it."""
        return self.family is not None and self.part in self.family.refused


def split_name(tensor: str) -> Part | None:
    """Split a tensor's name into module, family and part; None where it does not end like an adapter's."""
    end = len(tensor)
    for _ in range(3):  # no suffix has more dots
        end = tensor.rfind(".", 0, end)
        if end < 1:
            break
        if (found := SUFFIXES.get(tensor[end + 1 :])) is not None:
            return Part(tensor[:end], *found)
    if match := XLABS.fullmatch(tensor):
        return Part(match["module"], *SUFFIXES[f"lora.{match['part']}.weight"])
    if "_lora." in tensor:
        if match := PROCESSOR.fullmatch(tensor):
            layer = "to_out.0" if match["layer"] == "to_out" else match["layer"]
        elif match := TEXT_PROCESSOR.fullmatch(tensor):
            layer = TEXT_PROJECTIONS[match["layer"]]
        else:
            return None
        return Part(f"{match['attention']}.{layer}", *SUFFIXES[f"lora.{match['part']}.weight"])
    if match := WITH_ADAPTER_NAME.fullmatch(tensor):
        return Part(match["module"], *SUFFIXES[f"{match['kind']}.weight"], match["adapter"])
    return None


def is_wrapped(name: str) -> bool:
    """Return whether a tensor's or module's name has PEFT's wrapper: alpha is in `adapter_config.json` then."""
    return "base_model." in name and PEFT_WRAPPER.match(name) is not None


def unwrap(name: str) -> str:
    """Return a tensor's or module's name without PEFT's wrapper."""
    return PEFT_WRAPPER.sub(r"\1", name, count=1) if is_wrapped(name) else name


def find_prefix(module: str) -> Prefix:
    """Return the prefix of an unwrapped module's name; `BARE` where it has none."""
    return next((prefix for prefix in PREFIXES if module.startswith(prefix.start)), BARE)


def find_component(module: str, folder: str = "") -> str:
    """Return the component that a module belongs to.

    Args:
        module: its name as the file spells it.
        folder: the name of the file's folder: PEFT saves each wrapped model in one of its own, so the names in it do
            not tell a text encoder from the UNet.
    """
    prefix = find_prefix(unwrap(module))
    if prefix is BARE and folder in ENCODERS and is_wrapped(module):
        return folder
    if prefix.is_shared and OF_TRANSFORMER.match(unwrap(module).removeprefix(prefix.start)):
        return TRANSFORMER
    return prefix.component


def name_spelling(module: str) -> str:
    """Return whose spelling a module's name has, one of `TOLD_FIRST`; "" if unknown."""
    if is_wrapped(module):
        return "PEFT"
    if ".processor." in module and XLABS.fullmatch(f"{module}.down.weight"):
        return "XLabs"
    prefix = find_prefix(module)
    if prefix is BARE:
        found = next((writer for start, writer in BARE_STARTS.items() if module.startswith(start)), None)
        return f"{found}, {BARE.writer}" if found else ""
    if prefix is KOHYA_UNET:
        path = module.removeprefix(prefix.start)
        return next(
            (f"kohya, {blocks}" for blocks, starts in BLOCK_NAMES if path.startswith(starts)), "kohya"
        )
    return prefix.writer
