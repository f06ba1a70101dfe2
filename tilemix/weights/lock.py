"""Record the size and sha256 of each of its files in a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tilemix.modelfile.companions import find_companions
from tilemix.system.project import ROOT
from tilemix.weights.local import find_adapter, find_missing, hash_file, refuse_missing
from tilemix.weights.manifest import (
    Adapter,
    ManifestFile,
    Source,
    changing,
    edit_manifest,
    load_manifest,
)

Locked = TypeVar("Locked", ManifestFile, Adapter)


def lock(name: str, root: Path = ROOT) -> Path:
    """Write the size and sha256 of every file that is here into the manifest, and return the manifest's path.

    The small files that an adapter depends on get their entries beside it.

    Raises:
        ManifestError: see load_manifest.
        MissingFilesError: a file is missing; the manifest stays as it was.
        ModelFileError: an adapter that may depend on others is not a safetensors file.
    """
    with changing(name, root):
        return _lock(name, root)


def _lock(name: str, root: Path) -> Path:
    manifest = load_manifest(name, root)
    if missing := find_missing(manifest, root):
        raise refuse_missing(name, missing)

    def lock_source(source: Source | None) -> Source | None:
        if source is None:
            return None
        folder = root / "weights" / source.folder
        files = tuple(_measure_file(file, folder / file.path) for file in source.files)
        return msgspec.structs.replace(source, files=files)

    sources = {"base": lock_source(manifest.base), "vae": lock_source(manifest.vae)}
    adapters = tuple(_measure_adapter(adapter, find_adapter(adapter, root)) for adapter in manifest.adapters)
    return edit_manifest(name, lambda text: _fill_in(text, sources, adapters), root)


def _fill_in(text: str, sources: Mapping[str, Source | None], adapters: tuple[Adapter, ...]) -> str:
    """Return a manifest's text with the sizes and hashes of the locked entries; keys stay in their order."""
    table = json.loads(text)
    entries: list[tuple[dict[str, Any], ManifestFile | Adapter]] = [
        pair
        for key, source in sources.items()
        if source is not None
        for pair in zip(table[key]["files"], source.files, strict=True)
    ]
    entries += zip(table.get("adapters") or (), adapters, strict=True)
    for written, entry in entries:
        written |= {"size": entry.size, "sha256": entry.sha256}
        if isinstance(entry, Adapter) and entry.beside:
            written["beside"] = msgspec.to_builtins(entry.beside)
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def _measure_adapter(adapter: Adapter, path: Path) -> Adapter:
    names = [file.path for file in adapter.beside]
    names += [
        n
        for n in find_companions(path, is_lora=adapter.kind == "lora", named=bool(adapter.tokens))
        if n not in names
    ]
    beside = tuple(_measure_file(ManifestFile(name), path.with_name(name)) for name in names)
    return msgspec.structs.replace(_measure_file(adapter, path), beside=beside)


def _measure_file(entry: Locked, path: Path) -> Locked:
    return msgspec.structs.replace(entry, size=path.stat().st_size, sha256=hash_file(path))
