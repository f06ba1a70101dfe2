"""PEFT's `adapter_config.json`, which its tensors depend on, and the folder that keeps the two together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tilemix.errors import AdapterError, WeightsError
from tilemix.modelfile.companions import PEFT_FILE, decode_peft_config, read_peft_config
from tilemix.modelfile.spellings import ENCODERS
from tilemix.system.atomic import write_atomically
from tilemix.weights.manifest import FILE_NAME


def read_config(path: Path) -> bytes:
    """Return the configuration `path` as it is.

    Raises:
        AdapterError: it is missing, too large or not a JSON object.
    """
    return check_config(str(path), read_peft_config(path, str(path)))


def check_config(name: str, raw: bytes) -> bytes:
    """Return a configuration as it is; loading it checks its fields.

    Raises:
        AdapterError: too large, or not a JSON object.
    """
    decode_peft_config(raw, name, dict[str, object])
    return raw


def write_beside(path: Path, beside: Mapping[str, bytes]) -> None:
    """Put the companion files of the adapter `path`, name -> content, into its folder.

    Raises:
        WeightsError: the disk fails.
    """
    for name, content in beside.items():
        place = path.with_name(name)
        try:
            if not place.is_file() or place.read_bytes() != content:
                write_atomically(place, content)
        except OSError as error:
            raise WeightsError("file-unwritable", file=str(place), reason=str(error.strerror)) from error


def name_in_folder(source: Path, wished: str | None) -> str:
    """Return the name below weights/files/ of the PEFT file `source`, in a folder named as wished or like its own.

    Raises:
        AdapterError: not a valid folder name.
    """
    home = source.resolve().parent.name if source.name == PEFT_FILE else source.stem
    folder = check_name(wished or home)
    # PEFT saves each encoder in a folder of its name, and its tensors' names do not tell the two apart.
    inner = f"{home}/" if home in ENCODERS and folder != home else ""
    return f"{folder}/{inner}{PEFT_FILE}"


def check_name(name: str) -> str:
    """Return a plain name for weights/files/ as it is.

    Raises:
        AdapterError: it is not one.
    """
    if not FILE_NAME.fullmatch(name) or "/" in name:
        raise AdapterError("weights-name", name=name[:80])
    return name
