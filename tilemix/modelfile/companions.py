"""The files that belong to a model file, in the same folder.

PEFT keeps the strength of a LoRA in `adapter_config.json`; cog-sdxl keeps the names of its tokens in
`special_params.json`, {"TOK": "<s0><s1>"}. Whoever locks an adapter must lock these too.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tilemix.deltas import ALPHA
from tilemix.errors import AdapterError
from tilemix.modelfile.header import Header, read_header
from tilemix.modelfile.spellings import is_wrapped, split_name
from tilemix.modelfile.training_archive import is_archive
from tilemix.prompts.adapter_names import PEFT_STEM
from tilemix.prompts.checks import PLACEHOLDER_TOKEN
from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

Config = TypeVar("Config")

PEFT_FILE = f"{PEFT_STEM}.safetensors"
PEFT_CONFIG = "adapter_config.json"
NAMES_FILE = "special_params.json"
MAX_COMPANION_BYTES = 2**20
MAX_NAMES_BYTES = 64 * 2**10


def name_converted(source: Path) -> Path:
    """Return the path that a pickled file is converted to: `x.vae.pt` -> `x.vae.safetensors`.

    A pickle that is called `x.safetensors` becomes `x.converted.safetensors`.
    """
    ending = ".converted.safetensors" if source.suffix == ".safetensors" else ".safetensors"
    return source.with_suffix(ending)


def reads_peft_config(name: str, header: Header) -> bool:
    """Return whether the LoRA file `name` with this header has its strength in `adapter_config.json`.

    It does not where its metadata says the same, or where every module has an alpha of its own.
    """
    parts = Counter(found.part for tensor in header.tensors if (found := split_name(tensor)) is not None)
    alphas, modules = parts[ALPHA], parts["down"]
    told = "lora_adapter_metadata" in header.metadata or (alphas > 0 and modules <= alphas)
    return not told and (name == PEFT_FILE or any(map(is_wrapped, header.tensors)))


def find_companions(path: Path, *, is_lora: bool, named: bool) -> tuple[str, ...]:
    """Return the names of the files beside the adapter `path` that loading it reads.

    Args:
        path: the adapter's file.
        is_lora: whether it is a LoRA; else it is embeddings.
        named: whether its tokens are named elsewhere; then the names beside it do not count.

    Raises:
        ModelFileError: there may be a companion, and the file itself is not a safetensors file.
    """
    if not is_lora:
        return (NAMES_FILE,) if not named and path.with_name(NAMES_FILE).is_file() else ()
    if not path.with_name(PEFT_CONFIG).is_file() or is_archive(path):
        return ()
    return (PEFT_CONFIG,) if reads_peft_config(path.name, read_header(path)) else ()


def read_peft_config(path: Path, name: str) -> bytes:
    """Return the content of the `adapter_config.json` at `path`, up to a byte more than `decode_peft_config` takes.

    Args:
        path: the file.
        name: what an error calls it.

    Raises:
        AdapterError: it cannot be read.
        ModelFileError: not a regular file.
    """
    try:
        with open_regular(path) as file:
            return file.read(MAX_COMPANION_BYTES + 1)
    except OSError as error:
        raise AdapterError("lora-config-missing", file=name, reason=str(error.strerror)) from error


def decode_peft_config(raw: bytes, name: str, as_type: type[Config]) -> Config:
    """Return what an `adapter_config.json` says, as `as_type`.

    Raises:
        AdapterError: it is too large, not JSON, or does not fit the type.
    """
    if len(raw) > MAX_COMPANION_BYTES:
        raise AdapterError("file-exceeds", file=name, most=MAX_COMPANION_BYTES)
    try:
        return msgspec.json.decode(raw, type=as_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError("file-json", file=name, reason=str(error)[:120]) from error


def read_token_names(path: Path) -> tuple[str, ...]:
    """Read the tokens in cog-sdxl's special_params.json: {"TOK": "<s0><s1>"}.

    Raises:
        AdapterError: it is something else.
        ModelFileError: not a regular file.
    """
    try:
        with open_regular(path) as file:
            table = msgspec.json.decode(file.read(MAX_NAMES_BYTES), type=dict[str, str])
    except OSError as error:
        raise AdapterError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError("file-json", file=path.name, reason=str(error)[:120]) from error
    text = "".join(table.values())
    tokens = tuple(PLACEHOLDER_TOKEN.findall(text))
    if not tokens or "".join(tokens) != text:
        raise AdapterError("embedding-names", file=path.name, found=text[:80])
    return tokens
