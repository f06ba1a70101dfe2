"""A LoRA file, in any published format, -> one change per module of the pipeline, and the tokens it brings.

Read completely or refused: every tensor of the file has its place in a change whose shape fits the loaded
pipeline, and every number is finite.

Formats: kohya (`lora_unet_`, `lora_te_`, `lora_te1_`, `lora_te2_`, with diffusers' or with the original
model's block names, LoCon's convolutions included), LyCORIS' LoHa and LoKr, DoRA, diffusers in all its
spellings, cog-sdxl, PEFT's folders, ComfyUI (`diffusion_model.`), bundled embeddings (`bundle_emb.`), and
`trained_model.tar` of a Replicate training. tests/adapter_formats.py lists them; `tilemix.adapters.refusals`
names the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.adapters.deltas import Delta, build_delta
from tilemix.adapters.embedding_file import EmbeddingFile, is_bundled, read_bundle, read_embedding
from tilemix.adapters.peft_alpha import COMPONENTS, AlphaTable, read_header_alphas, read_peft_config
from tilemix.adapters.refusals import refuse_homeless, refuse_other_base
from tilemix.adapters.spelling import split_name
from tilemix.adapters.tensor_file import TensorFile
from tilemix.errors import AdapterError
from tilemix.modelfile import Header
from tilemix.modelfile.companions import PEFT_CONFIG, PEFT_FILE, is_wrapped, reads_peft_config
from tilemix.modelfile.training_archive import is_archive, open_training

if TYPE_CHECKING:
    import torch

    from tilemix.adapters.names import ModuleKey

MAX_TENSORS = 10_000  # LoHa with DoRA and alpha on each of SDXL's modules has 6,400


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA whose every tensor has its place in the loaded pipeline."""

    name: str  # the file's name
    deltas: dict[ModuleKey, Delta]
    embedding: EmbeddingFile | None = None  # what it brings beside the LoRA; fitted by whoever installs it


def read_lora(
    path: Path, weights: Mapping[ModuleKey, torch.Tensor], names: Mapping[str, ModuleKey]
) -> LoraFile:
    """Read the LoRA at `path` for a pipeline.

    Args:
        path: a safetensors file, whatever its extension; the folder of one that PEFT saved; or the
            archive of a Replicate training.
        weights: the pipeline's weights by module; only their shapes are looked at.
        names: how files spell those modules, see `tilemix.adapters.names.spell_modules`.

    Raises:
        ModelFileError: no safetensors file.
        AdapterError: another format, another base model, a tensor without its place or its other half,
            a number that is not finite.
    """
    if is_archive(path):
        # The tensors are memory-mapped: they outlive the names of the unpacked files.
        with open_training(path) as files:
            lora = _read_tensors(files.lora, weights, names)
            if files.embeddings is not None:
                if lora.embedding is not None:
                    raise AdapterError(
                        f"{path.name}: embeddings of its own, and others bundled with the LoRA"
                    )
                lora = replace(lora, embedding=read_embedding(files.embeddings))
        return replace(lora, name=path.name)
    return _read_tensors(path / PEFT_FILE if path.is_dir() else path, weights, names)


def _read_tensors(
    path: Path, weights: Mapping[ModuleKey, torch.Tensor], names: Mapping[str, ModuleKey]
) -> LoraFile:
    file = TensorFile(path)
    header = file.header
    if len(header.tensors) > MAX_TENSORS:
        raise AdapterError(f"{path.name}: {len(header.tensors)} tensors, expected at most {MAX_TENSORS}")
    bundled = [tensor for tensor in header.tensors if is_bundled(tensor)]
    if len(bundled) == len(header.tensors):
        raise AdapterError(f"{path.name}: no {'LoRA ' if bundled else ''}tensors in it")
    modules, strangers = _split_names(path.name, header)
    refuse_other_base(path.name, header, modules, weights)
    placed = _place_modules(path, header, modules, strangers, names)
    alphas = _read_alphas(path, header)
    not_finite = file.find_not_finite()
    deltas = {}
    for key, parts in placed.items():
        if bad := next((part for part, tensor in parts.items() if tensor in not_finite), None):
            raise AdapterError(f"{path.name}: {bad!r} of {'.'.join(key)} holds a number that is not finite")
        tensors = {part: file.get_tensor(tensor) for part, tensor in parts.items()}
        deltas[key] = build_delta(path.name, ".".join(key), tensors, partial(alphas.factor, key))
        _check_shape(path.name, key, deltas[key], weights[key])
        if not parts.keys() & {"dora_scale", "magnitude"}:
            alphas.refuse_missing_norm(key)
    embedding = read_bundle(path.name, {tensor: file.get_tensor(tensor) for tensor in bundled})
    if not any("alpha" in parts for parts in placed.values()):  # these go before the configuration's
        alphas.refuse_unused()
    return LoraFile(path.name, deltas, embedding)


def _split_names(name: str, header: Header) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Sort the file's tensors: module as the file spells it -> part -> tensor; and those of no known ending."""
    modules: dict[str, dict[str, str]] = {}
    strangers = []
    for tensor in header.tensors:
        if is_bundled(tensor):
            continue
        module, part = split_name(tensor)
        if not module:
            strangers.append(tensor)
        elif modules.setdefault(module, {}).setdefault(part, tensor) != tensor:
            raise AdapterError(f"{name}: {tensor!r} and {modules[module][part]!r} are for the same weight")
    return modules, strangers


def _place_modules(
    path: Path,
    header: Header,
    modules: Mapping[str, Mapping[str, str]],
    strangers: list[str],
    names: Mapping[str, ModuleKey],
) -> dict[ModuleKey, Mapping[str, str]]:
    """Find each module of the file in the loaded pipeline."""
    # PEFT saves each wrapped model in a folder of its own, so a text encoder's names do not say which it is.
    home = path.parent.name if path.parent.name in COMPONENTS[1:] else None
    placed: dict[ModuleKey, Mapping[str, str]] = {}
    homeless = set(strangers)
    for module, parts in modules.items():
        key = names.get(module)
        if key is None and home is not None and all(map(is_wrapped, parts.values())):
            key = names.get(f"{home}.{module}")
        if key is None:
            homeless.update(parts.values())
        elif placed.setdefault(key, parts) is not parts:
            first, second = (next(iter(tensors.values())) for tensors in (placed[key], parts))
            raise AdapterError(f"{path.name}: {first!r} and {second!r} are for the same weight")
    refuse_homeless(path.name, header, [tensor for tensor in header.tensors if tensor in homeless])
    return placed


def _read_alphas(path: Path, header: Header) -> AlphaTable:
    """Find where the file keeps the alphas that are no tensors."""
    if reads_peft_config(path.name, header):
        return read_peft_config(path.with_name(PEFT_CONFIG))
    return read_header_alphas(path.name, header)


def _check_shape(name: str, key: ModuleKey, delta: Delta, weight: torch.Tensor) -> None:
    """Compare the shapes, as matrices where one of them is one: some formats know a convolution only so."""
    found, expected = delta.shape, tuple(weight.shape)
    is_same = (found[0], math.prod(found[1:])) == (expected[0], math.prod(expected[1:]))
    if not is_same or (len(found) == len(expected) and found != expected):
        told, own = ("x".join(map(str, shape)) for shape in (found, expected))
        raise AdapterError(
            f"{name}: made for another model: {'.'.join(key)} is {told} in the file, {own} in this model"
        )
