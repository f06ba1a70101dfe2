"""A checkpoint's `NAME.yaml`: the configuration that Stable Diffusion's own code was trained with, read safely.

It names Python classes to build the model from. Here it is data: nothing is imported from its names, its tags are
refused, and so are aliases, which no such file needs and which a few lines of can unfold to gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tilemix.errors import ModelFileError
from tilemix.system.regular import open_regular

if TYPE_CHECKING:
    from pathlib import Path

MAX_YAML_BYTES = 64 * 2**10  # the published ones have 2 KiB
MAX_DEPTH = 20  # of lists and tables; the parser takes a time that grows with the square of it


def read_ldm_config(path: Path) -> Mapping[str, object]:
    """Return `model.params` of a checkpoint's configuration.

    Raises:
        ModelFileError: not such a file, or it holds tags or aliases.
    """
    import yaml

    try:
        with open_regular(path) as file:
            raw = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise ModelFileError("file-unreadable", file=str(path), reason=str(error.strerror)) from error
    if len(raw) > MAX_YAML_BYTES:
        raise ModelFileError("file-exceeds", file=path.name, most=MAX_YAML_BYTES)
    depth = 0
    try:
        # The events come before anything is built.
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ModelFileError(
                    "checkpoint-yaml", file=path.name, reason=f"nested more than {MAX_DEPTH} deep"
                )
            if isinstance(event, yaml.AliasEvent):
                raise ModelFileError("checkpoint-yaml-alias", file=path.name, name=str(event.anchor)[:80])
        table = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelFileError("checkpoint-yaml", file=path.name, reason=reason) from error
    for key in ("model", "params"):
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ModelFileError("checkpoint-yaml", file=path.name, reason="model.params: missing")
    return table
