"""Every spelling that LoRA files use for the modules of a loaded pipeline.

The spellings are made from the loaded modules, so they hold for every depth and width. A name in a file is looked up,
never taken apart: kohya's underscores cannot be split back without guessing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from tilemix.adapters.flux_names import name_original_modules
from tilemix.modelfile.spellings import BARE, NETWORKS, PREFIXES, TRANSFORMER, UNET, Blocks, Prefix

if TYPE_CHECKING:
    import torch

ModuleKey = tuple[str, str]  # component ("unet", "transformer", "text_encoder", ...), path of a module in it


class Piece(NamedTuple):
    """A module that a file's module changes, and with which of its rows."""

    key: ModuleKey
    rows: tuple[slice, ...] | None = None  # in the order of the module's own; None: all, as they are


Target = tuple[Piece, ...]  # several, where a file has one matrix for what are several here

# A resnet's modules in diffusers' and in the original model's names.
RESNET_NAMES = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def find_weights(components: Mapping[str, nn.Module]) -> dict[ModuleKey, torch.Tensor]:
    """Return the weights that a LoRA can change: those of every linear and convolution module."""
    return {
        (component, name): module.weight
        for component, model in components.items()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def spell_modules(components: Mapping[str, nn.Module]) -> dict[str, Target]:
    """Return every spelling that files use for the modules of `components` -> the modules."""
    spellings: dict[str, Target] = {}
    prefixes = {component: _find_prefixes(component, "diffusers") for component in components}
    for component, name in find_weights(components):
        # The published text encoder files have `text_model.` in front; transformers 5 dropped it for one class.
        bare = name.removeprefix("text_model.")
        paths = [name] if component in NETWORKS else [bare, f"text_model.{bare}"]
        for prefix in prefixes[component]:
            for path in paths:
                spellings[prefix.spell(path)] = (Piece((component, name)),)
    for component, spell in ((UNET, _spell_unet), (TRANSFORMER, _spell_transformer)):
        if (network := components.get(component)) is not None:
            originals = _find_prefixes(component, "original")
            for path, target in spell(network):
                for prefix in originals:
                    spellings[prefix.spell(path)] = target
    return spellings


def _spell_unet(unet: nn.Module) -> Iterator[tuple[str, Target]]:
    """Yield the original model's path of each module of a UNet, and the module."""
    modules = [name for _, name in find_weights({UNET: unet})]
    for diffusers_name, original_name in _name_original_blocks(unet):
        for name in modules:
            if name == diffusers_name or name.startswith(f"{diffusers_name}."):
                yield original_name + name[len(diffusers_name) :], (Piece((UNET, name)),)


def _spell_transformer(transformer: nn.Module) -> Iterator[tuple[str, Target]]:
    """Yield the original model's path of each module of a Flux transformer, and the modules."""
    for path, parts in name_original_modules(transformer):
        yield path, tuple(Piece((TRANSFORMER, name), rows) for name, rows in parts)


def _find_prefixes(component: str, blocks: Blocks) -> list[Prefix]:
    """Return the prefixes of a component's modules that go before these names of its blocks."""
    return [
        prefix
        for prefix in (*PREFIXES, BARE)
        if prefix.names(component) and prefix.blocks in (blocks, "both")
    ]


def _name_original_blocks(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (diffusers' module path, the original model's) of a UNet's blocks.

    The original numbers its input and output blocks consecutively. A resampling is a block of its own on the way
    down, and the last part of a block on the way up. Source: the released SDXL checkpoint's key names.
    """
    yield from TOP_NAMES.items()
    index = 1
    for i, block in enumerate(_children(unet, "down_blocks")):
        for j, _ in enumerate(_children(block, "resnets")):
            yield from _name_layer(f"down_blocks.{i}", block, j, f"input_blocks.{index}")
            index += 1
        if _children(block, "downsamplers"):
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{index}.0.op"
            index += 1
    middle = unet.get_submodule("mid_block")
    for place, (kind, j) in enumerate([("resnets", 0), ("attentions", 0), ("resnets", 1)]):
        if kind == "attentions":
            yield f"mid_block.attentions.{j}", f"middle_block.{place}"
        elif len(_children(middle, "resnets")) > j:
            yield from _name_resnet(f"mid_block.resnets.{j}", f"middle_block.{place}")
    index = 0
    for i, block in enumerate(_children(unet, "up_blocks")):
        for j, _ in enumerate(_children(block, "resnets")):
            yield from _name_layer(f"up_blocks.{i}", block, j, f"output_blocks.{index}")
            index += 1
        if _children(block, "upsamplers"):
            place = 2 if _children(block, "attentions") else 1
            yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{index - 1}.{place}.conv"


def _name_layer(path: str, block: nn.Module, j: int, original: str) -> Iterator[tuple[str, str]]:
    yield from _name_resnet(f"{path}.resnets.{j}", f"{original}.0")
    if _children(block, "attentions"):
        yield f"{path}.attentions.{j}", f"{original}.1"


def _name_resnet(path: str, original: str) -> Iterator[tuple[str, str]]:
    for name, original_name in RESNET_NAMES.items():
        yield f"{path}.{name}", f"{original}.{original_name}"


def _children(block: nn.Module, name: str) -> list[nn.Module]:
    children = dict(block.named_children()).get(name)
    return list(children) if isinstance(children, nn.ModuleList) else []
