"""What a pickled model file holds -> the tensors worth keeping, by the names that a safetensors file has.

A checkpoint's tensors keep their names. An embedding of the web UI becomes `emb_params`, as kohya's trainer writes it.
A hypernetwork's layers become `WIDTH.0.NAME` for the keys and `WIDTH.1.NAME` for the values, with its settings in the
metadata. Everything else is left out, and listed.

Sources: the structure of Stable Diffusion's training checkpoints (LatentDiffusion, LitEma), and of the embeddings and
hypernetworks that the web UI saves, described from files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from tilemix.conversion.pickled import ParameterTable
from tilemix.errors import LIST_SEPARATOR, ModelFileError
from tilemix.modelfile.embedding_names import KOHYA_ROWS
from tilemix.modelfile.header import MAX_NAME, MAX_TENSORS

Keep = Literal["ema", "last"]

EMA = "model_ema."
EMA_NUMBERS = ("model_ema.decay", "model_ema.num_updates")
TRAINED_MODEL = "model."  # the part of a checkpoint that has EMA weights; a VAE's have no such prefix
# Where training files keep the weights of the model, each as tensors by name.
CONTAINERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "params_ema", "ema",
    "ema_model", "ema_state_dict", "model_ema",
)  # fmt: skip
LOSS = "loss."  # of a VAE's training
MAX_LAYER_NAME = 500  # characters, of a hypernetwork
MAX_SETTING = 10_000  # characters of one setting of a hypernetwork
DTYPES = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16,
        torch.uint32, torch.uint64, torch.bool,
    }
)  # fmt: skip


@dataclass(slots=True)
class Dropped:
    """Something that is left out."""

    name: str
    tensors: int = 0
    size: int = 0  # bytes


@dataclass(slots=True)
class Contents:
    """What is kept of a file."""

    kind: Literal["checkpoint", "embedding", "hypernetwork"]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    weights: Keep | None = None  # where the file has both
    container: str | None = None  # the key that the tensors were under


def find_contents(file: str, held: object, keep: Keep | None = None) -> Contents:
    """Return what is kept of what the file named `file` holds.

    Args:
        file: for messages.
        held: as `read_pickled` returns it.
        keep: which weights of a training checkpoint; None: the last, with which the web UIs run such a file.

    Raises:
        ModelFileError: there are no tensors by name, or some that safetensors cannot hold, or no EMA weights to keep.
    """
    if not isinstance(held, Mapping):
        raise _refuse_empty(file, [type(held).__name__])
    if not held:
        raise ModelFileError("pickle-empty", file=file)
    if "string_to_param" in held:
        contents = _find_embedding(file, held)
    elif any(_is_hypernetwork_layer(key, value) for key, value in held.items()):
        contents = _find_hypernetwork(file, held)
    else:
        contents = _find_checkpoint(file, held, keep)
    if keep == "ema" and contents.weights is None:
        raise ModelFileError("pickle-no-ema", file=file)
    if len(contents.tensors) > MAX_TENSORS:
        raise ModelFileError(
            "file-too-many-tensors", file=file, tensors=len(contents.tensors), most=MAX_TENSORS
        )
    for name, tensor in contents.tensors.items():
        _check_tensor(file, name, tensor)
    return contents


def _find_checkpoint(file: str, held: Mapping[object, object], keep: Keep | None) -> Contents:
    container = _find_container(file, held)
    dropped: list[Dropped] = []
    state = held
    if container is not None:
        inner = held[container]
        assert isinstance(inner, Mapping), "a container is one"
        state = inner
        dropped += [_measure(str(key), value) for key, value in held.items() if key != container]
    tensors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            if not isinstance(key, str) or not 1 <= len(key) <= MAX_NAME:
                raise _refuse_name(file, key, MAX_NAME)
            tensors[key] = value
        else:
            dropped.append(_measure(str(key), value))
    averaged = {name: tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    loss = [tensor for name, tensor in tensors.items() if name.startswith(LOSS)]
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith((EMA, LOSS))}
    if not kept:
        raise _refuse_empty(file, held)
    if loss:
        dropped.append(_count("the loss of its training", loss))
    if not averaged:
        return Contents("checkpoint", kept, {"format": "pt"}, dropped, container=container)
    short = {name: EMA + name.removeprefix(TRAINED_MODEL).replace(".", "") for name in kept}
    replaced = {name: averaged[short[name]] for name in kept if short[name] in averaged}
    homeless = averaged.keys() - {*EMA_NUMBERS, *(short[name] for name in replaced)}
    if keep == "ema":
        if homeless or not replaced:
            name = min(homeless, default=EMA)
            raise ModelFileError("pickle-ema-homeless", file=file, name=name[:80], count=len(homeless))
        dropped.append(_count("last weights", [kept[name] for name in replaced]))
        kept |= replaced
    else:
        dropped.append(_count("EMA weights", averaged.values()))
    return Contents("checkpoint", kept, {"format": "pt"}, dropped, keep or "last", container)


def _find_container(file: str, held: Mapping[object, object]) -> str | None:
    """Return the key of the model's tensors; None where the file has them at its top."""
    if isinstance(held.get("state_dict"), Mapping):
        return "state_dict"  # the common one; what stands beside it is known to be less
    found = [name for name in CONTAINERS if _holds_tensors(held.get(name))]
    if len(found) > 1:
        raise ModelFileError(
            "pickle-containers",
            file=file,
            found=LIST_SEPARATOR.join(found),
            known=LIST_SEPARATOR.join(CONTAINERS),
        )
    return found[0] if found else None


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(one, torch.Tensor) for one in value.values())


def _find_embedding(file: str, held: Mapping[object, object]) -> Contents:
    table = held["string_to_param"]
    if isinstance(table, ParameterTable):
        table = table.parameters
    rows = list(table.values()) if isinstance(table, Mapping) else []
    if len(rows) != 1 or not isinstance(rows[0], torch.Tensor):
        raise ModelFileError("pickle-embedding-terms", file=file, found=len(rows))
    tensor = rows[0] if rows[0].ndim != 1 else rows[0][None]
    settings = {
        key: value for key, value in held.items() if key not in ("string_to_param", "string_to_token")
    }
    metadata, dropped = _keep_settings(settings)
    return Contents("embedding", {KOHYA_ROWS: tensor}, metadata, dropped)


def _is_hypernetwork_layer(key: object, value: object) -> bool:
    return (
        type(key) is int
        and isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(part, Mapping) for part in value)
    )


def _find_hypernetwork(file: str, held: Mapping[object, object]) -> Contents:
    tensors: dict[str, torch.Tensor] = {}
    settings: dict[object, object] = {}
    for key, value in held.items():
        if not _is_hypernetwork_layer(key, value):
            settings[key] = value
            continue
        assert isinstance(value, list | tuple), "a layer's keys and values are a pair"
        for place, part in enumerate(value):
            for name, tensor in part.items():
                if not isinstance(name, str) or not 1 <= len(name) <= MAX_LAYER_NAME:
                    raise _refuse_name(file, name, MAX_LAYER_NAME)
                if not isinstance(tensor, torch.Tensor):
                    raise _refuse_empty(file, part)
                tensors[f"{key}.{place}.{name}"] = tensor
    if not tensors:
        raise _refuse_empty(file, held)
    metadata, dropped = _keep_settings(settings)
    return Contents("hypernetwork", tensors, metadata, dropped)


def _keep_settings(settings: Mapping[object, object]) -> tuple[dict[str, str], list[Dropped]]:
    """Return the plain values as JSON texts, and the rest as dropped."""
    kept, dropped = {"format": "pt"}, []
    for key, value in settings.items():
        if isinstance(key, str) and 1 <= len(key) <= MAX_NAME and _is_plain(value):
            text = json.dumps(value)
            if len(text) <= MAX_SETTING:
                kept[key] = text
                continue
        dropped.append(_measure(str(key), value))
    return kept, dropped


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= MAX_SETTING and all(_is_scalar(one) for one in value)
    return _is_scalar(value)


def _is_scalar(value: object) -> bool:
    return (
        value is None
        or (isinstance(value, str) and len(value) <= MAX_SETTING)
        or type(value) in (bool, int, float)
    )


def _measure(name: str, value: object) -> Dropped:
    """Return what a value is that is left out. What several containers share counts once: no nesting explodes."""
    found: list[torch.Tensor] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
    return _count(name, found)


def _count(name: str, tensors: Iterable[torch.Tensor]) -> Dropped:
    dropped = Dropped(name[:80])
    for tensor in tensors:
        dropped.tensors += 1
        dropped.size += tensor.nbytes if tensor.layout is torch.strided else 0
    return dropped


def _refuse_empty(file: str, held: Iterable[object]) -> ModelFileError:
    found = LIST_SEPARATOR.join(map(str, list(held)[:5])) or "-"
    return ModelFileError(
        "pickle-no-tensors", file=file, found=found[:80], known=LIST_SEPARATOR.join(CONTAINERS)
    )


def _refuse_name(file: str, name: object, most: int) -> ModelFileError:
    return ModelFileError("pickle-tensor-name", file=file, name=repr(name)[:80], most=most)


def _check_tensor(file: str, name: str, tensor: torch.Tensor) -> None:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = f"{tensor.layout} {tensor.device.type} {kind}".removeprefix("torch.")
    elif tensor.dtype in DTYPES:
        return
    raise ModelFileError("pickle-tensor-kind", file=file, tensor=name, found=kind)
