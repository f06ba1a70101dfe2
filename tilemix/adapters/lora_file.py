"""A LoRA file in any published format -> one change per module of the pipeline, and the tokens it brings.

It is read completely or refused: every tensor has its place in a change whose shape fits the loaded pipeline, and
every number is finite.

Formats: kohya (`lora_unet_`, `lora_te_`, `lora_te1_`, `lora_te2_`, with diffusers' or with the original
model's block names, LoCon's convolutions included), LyCORIS's LoHa and LoKr, DoRA, diffusers in all its
spellings, cog-sdxl, XLabs, PEFT's folders, ComfyUI (`diffusion_model.`), bundled embeddings (`bundle_emb.`), and
`trained_model.tar` of a Replicate training. tests/adapter_formats.py lists them; `tilemix.adapters.refusals`
names those that are refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.adapters.embedding_file import EmbeddingFile, read_bundle, read_embedding
from tilemix.adapters.peft_alpha import AlphaTable, read_header_alphas, read_peft_config
from tilemix.adapters.refusals import refuse_homeless, refuse_other_base
from tilemix.adapters.tensor_file import TensorFile
from tilemix.deltas import ALPHA, DORA_PARTS, Delta, build_delta
from tilemix.errors import LIST_SEPARATOR, AdapterError
from tilemix.modelfile.base_families import SDXL, BaseFamily
from tilemix.modelfile.companions import PEFT_CONFIG, PEFT_FILE, reads_peft_config
from tilemix.modelfile.embedding_names import is_bundled
from tilemix.modelfile.header import Header
from tilemix.modelfile.spellings import is_wrapped, split_name, unwrap
from tilemix.modelfile.training_archive import is_archive, open_training

if TYPE_CHECKING:
    import torch

    from tilemix.adapters.names import ModuleKey, Target

LARGEST = 1e18  # of a change's numbers; fp32 holds their squares, so norms are finite
MAX_TENSORS = 10_000  # LoHa with DoRA and alpha on each of SDXL's modules has 6,400


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA whose every tensor has its place in the loaded pipeline."""

    name: str  # the file's name
    deltas: dict[ModuleKey, Delta]
    autov3: str  # by which model sites and web UIs know it: 12 hex digits, see `tilemix.modelfile.hashes`
    embedding: EmbeddingFile | None = None  # that it brings; whoever installs it checks that it fits


def read_lora(
    path: Path,
    weights: Mapping[ModuleKey, torch.Tensor],
    names: Mapping[str, Target],
    family: BaseFamily = SDXL,
    *,
    are_named: bool = False,
) -> LoraFile:
    """Read the LoRA at `path` for a pipeline.

    Args:
        path: a safetensors file, whatever its extension; the folder of one that PEFT saved; or the
            archive of a Replicate training.
        weights: the pipeline's weights by module; only their shapes matter.
        names: how files spell those modules, see `tilemix.adapters.names.spell_modules`.
        family: of the pipeline's base.
        are_named: whether the tokens of its embeddings are named elsewhere.

    Raises:
        ModelFileError: not a safetensors file.
        AdapterError: another format, another base model, a tensor without its place or its other half,
            an inf or a NaN.
    """
    if is_archive(path):
        # The tensors are memory-mapped, so they outlive the unpacked files.
        with open_training(path) as files:
            lora = _read_tensors(files.lora, weights, names, family, are_named=are_named)
            if files.embeddings is not None:
                if lora.embedding is not None:
                    raise AdapterError("lora-two-embeddings", file=path.name)
                lora = replace(lora, embedding=read_embedding(files.embeddings, family=family))
        return replace(lora, name=path.name)
    file = path / PEFT_FILE if path.is_dir() else path
    return _read_tensors(file, weights, names, family, are_named=are_named)


def _read_tensors(
    path: Path,
    weights: Mapping[ModuleKey, torch.Tensor],
    names: Mapping[str, Target],
    family: BaseFamily,
    *,
    are_named: bool,
) -> LoraFile:
    import torch

    file = TensorFile(path)
    header = file.header
    if len(header.tensors) > MAX_TENSORS:
        raise AdapterError(
            "file-too-many-tensors", file=path.name, tensors=len(header.tensors), most=MAX_TENSORS
        )
    bundled = [tensor for tensor in header.tensors if is_bundled(tensor)]
    if len(bundled) == len(header.tensors):
        raise AdapterError("lora-empty", file=path.name)
    modules, strangers = _split_names(path.name, header)
    refuse_other_base(path.name, header, modules, weights, family)
    placed = _place_modules(path, header, modules, strangers, names, family)
    alphas = _read_alphas(path, header, sorted({key[0] for target, _ in placed for key, _ in target}))
    not_finite = file.find_not_finite()
    deltas: dict[ModuleKey, Delta] = {}
    for target, parts in placed:
        key = target[0].key
        if bad := next((part for part, name in parts.items() if part != ALPHA and name in not_finite), None):
            raise AdapterError("lora-not-finite", file=path.name, part=bad, module=".".join(key))
        tensors = {part: file.get_tensor(tensor) for part, tensor in parts.items()}
        width = weights[key].shape[1]
        delta = build_delta(path.name, ".".join(key), tensors, partial(alphas.factor, key), width)
        _check_shape(path.name, target, delta, weights)
        dtype = weights[key].dtype
        if not delta.fits(min(torch.finfo(dtype).max, LARGEST)):
            kind = str(dtype).removeprefix("torch.")
            raise AdapterError("lora-overflow", file=path.name, module=".".join(key), dtype=kind)
        deltas |= _share(path.name, target, delta)
        if not parts.keys() & DORA_PARTS:
            alphas.refuse_missing_norm(key)
    if bundled and family is not SDXL:
        raise AdapterError("embedding-bundle-unread", file=path.name, tensor=bundled[0])
    rows = {tensor: file.get_tensor(tensor) for tensor in bundled}
    embedding = read_bundle(path.name, rows, are_named=are_named)
    if not any(ALPHA in parts for _, parts in placed):  # these take precedence over the configuration's
        alphas.refuse_unused()
    return LoraFile(path.name, deltas, file.hash_content()[:12], embedding)


def _split_names(name: str, header: Header) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return module as the file spells it, unwrapped -> part -> tensor; and the tensors that are no part."""
    modules: dict[str, dict[str, str]] = {}
    adapters: dict[str, None] = {}  # PEFT's names for what the tensors belong to
    strangers = []
    for tensor in header.tensors:
        if is_bundled(tensor):
            continue
        found = split_name(tensor)
        if found is None or found.is_refused:
            strangers.append(tensor)
            continue
        if found.adapter is not None:
            adapters[found.adapter] = None
        parts = modules.setdefault(unwrap(found.module), {})
        if parts.setdefault(found.part, tensor) != tensor:
            raise _refuse_second(name, tensor, parts[found.part])
    if len(adapters) > 1:
        raise AdapterError("lora-two-adapters", file=name, names=LIST_SEPARATOR.join(adapters))
    return modules, strangers


def _place_modules(
    path: Path,
    header: Header,
    modules: Mapping[str, Mapping[str, str]],
    strangers: list[str],
    names: Mapping[str, Target],
    family: BaseFamily,
) -> list[tuple[Target, Mapping[str, str]]]:
    """Find each module of the file in the loaded pipeline."""
    # PEFT saves each wrapped model in a folder of its own, so a text encoder's names do not say which it is.
    folder = path.absolute().parent.name
    home = folder if folder in family.encoders else None
    placed: list[tuple[Target, Mapping[str, str]]] = []
    owners: dict[ModuleKey, Mapping[str, str]] = {}
    homeless = set(strangers)
    for module, parts in modules.items():
        target = names.get(module)
        if target is None and home is not None and all(map(is_wrapped, parts.values())):
            target = names.get(f"{home}.{module}")
        if target is None:
            homeless.update(parts.values())
            continue
        for key, _ in target:
            if owners.setdefault(key, parts) is not parts:
                raise _refuse_second(
                    path.name, *(next(iter(tensors.values())) for tensors in (owners[key], parts))
                )
        placed.append((target, parts))
    refuse_homeless(path.name, header, [tensor for tensor in header.tensors if tensor in homeless], family)
    return placed


def _read_alphas(path: Path, header: Header, components: Collection[str]) -> AlphaTable:
    """Read the alphas that the file, which changes these components, does not keep in tensors."""
    if reads_peft_config(path.name, header):
        return read_peft_config(path.with_name(PEFT_CONFIG))
    return read_header_alphas(path.name, header, components)


def _share(name: str, target: Target, delta: Delta) -> dict[ModuleKey, Delta]:
    """Return the change of each module that a file's module changes."""
    shared = {}
    for key, rows in target:
        part = delta if rows is None else delta.take_rows(rows)
        if part is None:
            raise AdapterError("lora-rows-together", file=name, module=".".join(key))
        shared[key] = part
    return shared


def _check_shape(name: str, target: Target, delta: Delta, weights: Mapping[ModuleKey, torch.Tensor]) -> None:
    """Compare the shapes, as matrices where one of them is a matrix: some formats store convolutions so."""
    shapes = [tuple(weights[key].shape) for key, _ in target]
    key = target[0].key
    found, expected = delta.shape, (sum(shape[0] for shape in shapes), *shapes[0][1:])
    is_same = (found[0], math.prod(found[1:])) == (expected[0], math.prod(expected[1:]))
    if not is_same or (len(found) == len(expected) and found != expected):
        told, own = ("x".join(map(str, shape)) for shape in (found, expected))
        raise AdapterError("lora-shape", file=name, module=".".join(key), shape=told, expected=own)


def _refuse_second(file: str, first: str, second: str) -> AdapterError:
    return AdapterError("lora-same-weight", file=file, first=first, second=second)
