"""Write the sidecar `F.metadata.json` beside a model file: its hashes, where it is from, and what it is.

Facts replace what is there; suggestions fill empty fields. So what somebody wrote stays, unknown keys included.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import ModelFileError
from tilemix.system.atomic import write_atomically
from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def sidecar_of(path: Path) -> Path:
    """Return the path of the sidecar of the model file `path`."""
    return path.with_name(f"{path.name}.metadata.json")


def read_sidecar(path: Path) -> dict[str, object]:
    """Return what the sidecar of the model file `path` holds; {} without one.

    Raises:
        ModelFileError: it is not a JSON object; overwriting it would lose what somebody wrote.
    """
    sidecar = sidecar_of(path)
    try:
        with open_regular(sidecar) as file:
            return msgspec.json.decode(file.read(), type=dict[str, object])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError("file-sidecar", file=str(sidecar), reason=str(error)[:80]) from error


def write_sidecar(
    path: Path, sha256: str, facts: Mapping[str, object], suggestions: Mapping[str, object]
) -> Path:
    """Write or complete the sidecar of the model file `path`, whole or not at all, and return its path.

    Args:
        path: the model file.
        sha256: its hash, lower case; AutoV2 is its first 10 digits.
        facts: what is known for certain; replaces what is there.
        suggestions: what is written only where nothing is yet.

    Raises:
        ModelFileError: the sidecar cannot be read or written; it stays as it was.
    """
    old = read_sidecar(path)
    kept = {key for key, value in old.items() if value not in (None, "", [])}
    autov2 = sha256[:10].upper()
    table = (
        old
        | {key: value for key, value in suggestions.items() if key not in kept}
        | {
            "hash": f"AUTOV2: {autov2}",
            "hash_type": "AUTOV2",
            "hash_autov2": autov2,
            "hash_sha256": sha256,
        }
        | dict(facts)
        | {"last_updated": datetime.now(UTC).isoformat(timespec="seconds")}
    )
    sidecar = sidecar_of(path)
    try:
        write_atomically(sidecar, msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    except OSError as error:
        raise ModelFileError("file-unwritable", file=str(sidecar), reason=str(error.strerror)) from error
    return sidecar
