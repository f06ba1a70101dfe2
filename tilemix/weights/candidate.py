"""What a file that is to be added says of itself: kind, rows, base, tokens, and what it is read with.

Headers only, but for the archive of a Replicate training, which is unpacked to look at its members.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tilemix.errors import AdapterError, ModelFileError
from tilemix.modelfile import read, read_header
from tilemix.modelfile.companions import NAMES_FILE, read_token_names, reads_peft_config
from tilemix.modelfile.training_archive import is_archive, open_training

if TYPE_CHECKING:
    from pathlib import Path

MAX_ROWS = 75  # a prompt's chunk holds no more tokens
EMBEDDING_KEYS = ({"clip_l", "clip_g"}, {"text_encoders_0", "text_encoders_1"})
BASE = "SDXL"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a file says about itself."""

    kind: Literal["lora", "embedding"]
    rows: int  # of embeddings, its own or in the archive; one for each token; 0 for a LoRA alone
    base: str | None
    trigger_words: tuple[str, ...]
    tokens: tuple[str, ...] = ()  # names that the training gave to the rows; () where it did not
    needs_config: bool = False  # its strength stands in PEFT's adapter_config.json


def inspect(path: Path, *, shown: str | None = None) -> Candidate:
    """Tell what the file `path` is; `shown` is its name for messages.

    Raises:
        ModelFileError: no safetensors file.
        AdapterError: neither a LoRA nor an embedding for both text encoders, or for another base model; an
            archive that is no training's.
    """
    name = shown or path.name
    try:
        return _inspect_archive(path, name) if is_archive(path) else _inspect_tensors(path, name)
    except ModelFileError as error:
        # A download's part has another name than its file.
        raise type(error)(str(error).replace(path.name, name)) from error


def _inspect_archive(path: Path, name: str) -> Candidate:
    with open_training(path) as files:
        lora = _inspect_tensors(files.lora, f"{name}: {files.lora.name}")
        if lora.kind != "lora" or lora.needs_config:
            what = "an embedding" if lora.kind != "lora" else "PEFT's names without its configuration"
            raise AdapterError(f"{name}: {files.lora.name} holds {what}, expected a training's LoRA")
        if files.embeddings is None:
            return lora
        found = _inspect_tensors(files.embeddings, f"{name}: {files.embeddings.name}")
        if found.kind != "embedding":
            raise AdapterError(f"{name}: {files.embeddings.name} holds a LoRA, expected embeddings")
        names = files.embeddings.with_name(NAMES_FILE)
        tokens = read_token_names(names) if names.is_file() else ()
        if tokens and len(tokens) != found.rows:
            raise AdapterError(f"{name}: {found.rows} rows, {NAMES_FILE} names {len(tokens)} tokens")
        return replace(lora, rows=found.rows, tokens=tokens)


def _inspect_tensors(path: Path, name: str) -> Candidate:
    found = read(path, hashes="none")
    header = read_header(path)
    if found.base_model not in (None, BASE):
        raise AdapterError(f"{name}: made for {found.base_model}, expected {BASE}")
    base = found.base_declared or found.base_model
    if found.kind == "lora":
        needs_config = reads_peft_config(name.rpartition("/")[2], header)
        return Candidate("lora", 0, base, found.trigger_words, needs_config=needs_config)
    if set(header.tensors) not in EMBEDDING_KEYS:
        what = "one text encoder" if found.kind == "embedding" else found.kind
        raise AdapterError(f"{name}: neither a LoRA nor an SDXL embedding: {what} ({found.format})")
    shapes = [tensor.shape for tensor in header.tensors.values()]
    rows = {shape[0] if len(shape) == 2 else 0 for shape in shapes}
    if len(rows) != 1 or not 1 <= min(rows) <= MAX_ROWS:
        raise AdapterError(
            f"{name}: rows of the shapes {shapes}, expected 1 to {MAX_ROWS}, as many for both text encoders"
        )
    return Candidate("embedding", rows.pop(), base, found.trigger_words)
