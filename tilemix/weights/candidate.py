"""What a file to be added says about itself: kind, rows, base, tokens, and the companion files it needs.

Only headers are read; the archive of a Replicate training is unpacked to read its members'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilemix.errors import AdapterError, ModelFileError
from tilemix.modelfile.base_models import EITHER
from tilemix.modelfile.companions import NAMES_FILE, read_token_names, reads_peft_config
from tilemix.modelfile.header import read_header
from tilemix.modelfile.inspection import read
from tilemix.modelfile.training_archive import is_archive, open_training

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.modelfile.base_families import BaseFamily
    from tilemix.weights.manifest import AdapterKind

MAX_ROWS = 75  # tokens that fit into one chunk of a prompt


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a file says about itself."""

    kind: AdapterKind
    rows: int  # of its embeddings, also of those that a LoRA brings, one for each token; 0: it has none
    base: str | None
    trigger_words: tuple[str, ...]
    tokens: tuple[str, ...] = ()  # the training's names for the rows; () where it gave none
    needs_config: bool = False  # its strength is in PEFT's adapter_config.json


def inspect(path: Path, family: BaseFamily, *, shown: str | None = None) -> Candidate:
    """Return what the file `path` is, for a model of `family`; `shown` is its name for messages.

    Raises:
        ModelFileError: not a safetensors file.
        AdapterError: neither a LoRA nor an embedding for both text encoders, or for another base model; an
            archive that is not a training's.
    """
    name = shown or path.name
    try:
        look = _inspect_archive if is_archive(path) else _inspect_tensors
        return look(path, name, family)
    except ModelFileError as error:
        # A part of a download is not named like its file.
        values = {
            key: value.replace(path.name, name) if isinstance(value, str) else value
            for key, value in error.values.items()
        }
        raise type(error)(error.code, field=None, **values) from error


def _inspect_archive(path: Path, name: str, family: BaseFamily) -> Candidate:
    with open_training(path) as files:
        lora = _inspect_tensors(files.lora, f"{name}: {files.lora.name}", family)
        if lora.kind != "lora":
            raise AdapterError("weights-training-embedding", file=name, member=files.lora.name)
        if lora.needs_config:
            raise AdapterError("weights-training-peft", file=name, member=files.lora.name)
        if files.embeddings is None:
            return lora
        found = _inspect_tensors(files.embeddings, f"{name}: {files.embeddings.name}", family)
        if found.kind != "embedding":
            raise AdapterError("weights-training-lora", file=name, member=files.embeddings.name)
        names = files.embeddings.with_name(NAMES_FILE)
        tokens = read_token_names(names) if names.is_file() else ()
        if tokens and len(tokens) != found.rows:
            raise AdapterError(
                "embedding-names-count", file=name, rows=found.rows, names=NAMES_FILE, tokens=len(tokens)
            )
        return replace(lora, rows=found.rows, tokens=tokens)


def _inspect_tensors(path: Path, name: str, family: BaseFamily) -> Candidate:
    found = read(path, hashes="none")
    header = read_header(path)
    pair = family.find_embedding(header.tensors)
    if pair is None and found.base_model not in (None, family.base, EITHER):
        raise AdapterError("weights-other-base", file=name, base=str(found.base_model), expected=family.base)
    base = family.base if pair else found.base_model or found.base_declared
    if found.kind == "lora":
        needs_config = reads_peft_config(name.rpartition("/")[2], header)
        tokens = found.tokens  # those of embeddings bundled with it
        return Candidate("lora", len(tokens), base, found.trigger_words, tokens, needs_config)
    if pair is None:
        if found.kind == "embedding":
            raise AdapterError("weights-one-encoder", file=name, format=found.format)
        raise AdapterError("weights-not-adapter", file=name, kind=found.kind, format=found.format)
    shapes = [tensor.shape for tensor in header.tensors.values()]
    rows = {shape[0] if len(shape) == 2 else int(len(shape) == 1) for shape in shapes}
    if len(rows) != 1 or not 1 <= min(rows) <= MAX_ROWS:
        raise AdapterError("embedding-rows", file=name, shapes=str(shapes), most=MAX_ROWS)
    return Candidate("embedding", rows.pop(), base, found.trigger_words)
