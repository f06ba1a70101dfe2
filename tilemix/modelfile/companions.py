"""The small files that an adapter's tensors are read with, from the same folder.

PEFT keeps the strength of a LoRA in `adapter_config.json`; cog-sdxl keeps the names of its tokens in
`special_params.json`, {"TOK": "<s0><s1>"}. Whoever locks an adapter must lock these too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tilemix.errors import AdapterError
from tilemix.modelfile.header import Header, read_header
from tilemix.modelfile.training_archive import is_archive
from tilemix.prompts.checks import PLACEHOLDER_TOKEN

if TYPE_CHECKING:
    from pathlib import Path

Config = TypeVar("Config")

PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
NAMES_FILE = "special_params.json"
MAX_COMPANION_BYTES = 2**20
MAX_NAMES_BYTES = 64 * 2**10
# PEFT's wrapper, written by `save_pretrained`; it stands before or after the component's name.
PEFT_WRAPPER = re.compile(r"((?:unet|text_encoder|text_encoder_2)\.)?base_model\.model\.")
HALF = re.compile(r"\.lora(_A|_down|\.down|_linear_layer\.down)\.")  # one of each pair


def is_wrapped(tensor: str) -> bool:
    """Say whether the name is one of PEFT's own: its strength then stands in `adapter_config.json`."""
    return "base_model." in tensor and PEFT_WRAPPER.match(tensor) is not None


def reads_peft_config(name: str, header: Header) -> bool:
    """Say whether the LoRA file `name` with this header has its strength in `adapter_config.json`.

    It has not where its metadata hold the same, or where every module has an alpha of its own.
    """
    alphas = sum(tensor.endswith(".alpha") for tensor in header.tensors)
    modules = sum(HALF.search(tensor) is not None for tensor in header.tensors)
    told = "lora_adapter_metadata" in header.metadata or (alphas > 0 and modules <= alphas)
    return not told and (name == PEFT_FILE or any(map(is_wrapped, header.tensors)))


def find_companions(path: Path, kind: str, *, named: bool) -> tuple[str, ...]:
    """Return the names of the files beside the adapter `path` that are read when it is loaded.

    Args:
        path: the adapter's file.
        kind: "lora" or "embedding".
        named: whether its tokens are named elsewhere; the names beside it do not count then.

    Raises:
        ModelFileError: a possible companion is there, and the file itself is no safetensors file.
    """
    if kind == "embedding":
        return (NAMES_FILE,) if not named and path.with_name(NAMES_FILE).is_file() else ()
    if not path.with_name(PEFT_CONFIG).is_file() or is_archive(path):
        return ()
    return (PEFT_CONFIG,) if reads_peft_config(path.name, read_header(path)) else ()


def read_peft_config(path: Path, name: str) -> bytes:
    """Return the `adapter_config.json` at `path` as it is, at most a byte over what `decode_peft_config` takes.

    Args:
        path: the file.
        name: what an error calls it.

    Raises:
        AdapterError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_COMPANION_BYTES + 1)
    except OSError as error:
        raise AdapterError(
            f"{name}: cannot be read: {error.strerror}; PEFT keeps the strength of its tensors there"
        ) from error


def decode_peft_config(raw: bytes, name: str, as_type: type[Config]) -> Config:
    """Return what an `adapter_config.json` says, as `as_type`.

    Raises:
        AdapterError: it is too large, no JSON, or does not fit the type.
    """
    if len(raw) > MAX_COMPANION_BYTES:
        raise AdapterError(f"{name}: more than {MAX_COMPANION_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=as_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{name}: {str(error)[:120]}") from error


def read_token_names(path: Path) -> tuple[str, ...]:
    """Read the tokens out of cog-sdxl's special_params.json: {"TOK": "<s0><s1>"}.

    Raises:
        AdapterError: it is something else.
    """
    try:
        with path.open("rb") as file:
            table = msgspec.json.decode(file.read(MAX_NAMES_BYTES), type=dict[str, str])
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path.name}: {str(error)[:120]}") from error
    text = "".join(table.values())
    tokens = tuple(PLACEHOLDER_TOKEN.findall(text))
    if not tokens or "".join(tokens) != text:
        raise AdapterError(f"{path.name}: names the tokens {text[:80]!r}, expected such as '<s0><s1>'")
    return tokens
