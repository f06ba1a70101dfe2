"""`tilemix inspect`: what a model file is, or a table of the model files in a folder."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.terminal import make_printable, write, write_json
from tilemix.errors import Message, ModelFileError, WeightsError

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs
    from tilemix.modelfile.inspection import HashWish, ModelFile

logger = logging.getLogger(__name__)

COLUMNS = ("file", "kind", "base", "rank", "dtype", "size", "hash", "verified")
PROGRESS_DELAY = 0.5  # seconds
MAX_SHOWN = 100  # characters of a value in the listing; --json has all


def add_inspect(verbs: Verbs) -> None:
    """Add `inspect`."""
    inspect = verbs.add_parser("inspect", help="print what a model file, or each one of a folder, is")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("path", type=Path, metavar="FILE|FOLDER")
    inspect.add_argument("--json", action="store_true", help="everything, as JSON")
    hashing = inspect.add_mutually_exclusive_group()
    hashing.add_argument(
        "--all-hashes", action="store_true", help="AutoV1, AutoV2, AutoV3, SHA256, CRC32 and BLAKE3"
    )
    hashing.add_argument("--no-hash", action="store_true", help="read no more than the header")
    inspect.add_argument(
        "--lookup", action="store_true", help="ask Civitai by the hash and write FILE.metadata.json"
    )


def _inspect(options: argparse.Namespace) -> None:
    wish: HashWish = "all" if options.all_hashes else "none" if options.no_hash else "missing"
    try:
        if not options.path.exists():
            raise ModelFileError("file-missing", file=str(options.path))
        if options.path.is_dir() and not (options.path / "model_index.json").is_file():
            _print_folder(options, wish)
        else:
            _print_file(options, wish)
    except WeightsError as error:
        if options.json:
            write_json({"error": error.message.describe()})
        raise


def _print_file(options: argparse.Namespace, wish: HashWish) -> None:
    file = _read(options.path, wish, is_looked_up=options.lookup)
    if options.json:
        write_json(file, indent=2)
    else:
        write(describe(file))


def _print_folder(options: argparse.Namespace, wish: HashWish) -> None:
    from tilemix.modelfile.search import find_model_files

    found: list[tuple[Path, ModelFile | Message]] = []
    for path in find_model_files(options.path):
        try:
            found.append((path, _read(path, wish, is_looked_up=options.lookup)))
        except ModelFileError as error:
            found.append((path, error.message))
    if not found:
        logger.info("%s: no model files in it", options.path)
    if options.json:
        write_json(
            [
                {"path": str(path), "error": file.describe()} if isinstance(file, Message) else file
                for path, file in found
            ]
        )
    else:
        write(make_table([(path.relative_to(options.path), file) for path, file in found]))


def _read(path: Path, wish: HashWish, *, is_looked_up: bool) -> ModelFile:
    from tilemix.modelfile.header import read_header
    from tilemix.modelfile.inspection import read

    with _progress(path) as on_bytes:
        if is_looked_up and path.is_file():
            from tilemix.modelfile.civitai import base_url, host_of, look_up

            read_header(path)  # do not ask anybody about a web page saved as a model
            sidecar = look_up(path, on_bytes=on_bytes)
            logger.info(
                "%s: %s", path.name, f"wrote {sidecar}" if sidecar else f"not known to {host_of(base_url())}"
            )
        return read(path, hashes=wish, on_bytes=on_bytes)


@contextmanager
def _progress(path: Path) -> Iterator[Callable[[int], object]]:
    """Show the hashing's progress, on a terminal, when it takes longer than a moment."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    size = path.stat().st_size
    with tqdm(
        total=size, desc=path.name, unit="B", unit_scale=True, leave=False, delay=PROGRESS_DELAY
    ) as bar:
        yield bar.update


def describe(file: ModelFile) -> str:
    """Return what a model file is as lines `field: value`, without unknown fields."""
    lines: dict[str, object] = {
        "file": file.path,
        "size": format_size(file.size),
        "kind": file.kind,
        "format": file.format,
        "name": file.name,
        "base model": f"{file.base_model} ({file.base_told_by})" if file.base_model else "unknown",
        "conflict": file.base_conflict,
        "base as declared": file.base_declared,
        "variant": file.variant,
        "rank": _rank(file),
        "alpha": f"{file.alpha:g}" if file.alpha is not None else file.alpha_told_by,
        "modules": "; ".join(
            f"{component} {', '.join(f'{count} {layer}' for layer, count in layers.items())}"
            for component, layers in file.modules.items()
        ),
        "tokens": " ".join(file.tokens),
        "vectors": file.vectors,
        "dtype": ", ".join(file.dtypes),
        "parameters": f"{file.parameters:,} in {file.tensors:,} tensors",
        **{
            name: f"{part.class_name}, {part.parameters:,} parameters {part.dtype}"
            if part.files
            else part.class_name
            for name, part in file.components.items()
        },
        "hash": f"{file.hash} ({_origin(file)})" if file.hash else None,
        "verified": _verdict(file) if file.hash_source not in (None, "computed") else None,
        "SHA256": file.hashes.sha256,
        "AutoV1": file.hashes.autov1,
        "AutoV2": file.hashes.autov2,
        "AutoV3": file.hashes.autov3,
        "CRC32": file.hashes.crc32,
        "BLAKE3": file.hashes.blake3,
        "trigger words": ", ".join(file.trigger_words),
        "trained on": file.trained_on,
        "pictures": file.pictures,
        "tags": ", ".join(f"{tag} {count}" for tag, count in file.tags.items()),
        **{f"modelspec.{key}": value for key, value in file.modelspec.items()},
        **file.training,
        "sidecars": ", ".join(dict.fromkeys(file.sources.values())),
        **{f"note {i}": note for i, note in enumerate(file.notes, 1)},
    }
    return "".join(f"{key}: {_short(value)}\n" for key, value in lines.items() if value not in (None, ""))


def make_table(files: list[tuple[Path, ModelFile | Message]]) -> str:
    """Return a table with one line per file, refused ones with the reason; "" without files."""
    if not files:
        return ""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for path, file in files:
        if isinstance(file, Message):
            rows.append((_short(path), f"refused: {_short(str(file))}"))
            continue
        base = _name_base(file)
        digits = (file.hash or "-")[:12]
        verdict = _verdict(file) if file.hash else "-"
        size = format_size(file.size)
        rows.append(
            (_short(path), file.kind, base, _rank(file) or "-", file.dtype or "-", size, digits, verdict)
        )
    whole = [row for row in rows if len(row) == len(COLUMNS)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(COLUMNS))]
    widths[0] = max(len(row[0]) for row in rows)
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() + "\n"
        for row in rows
    )


def format_size(size: int) -> str:
    """Return a number of bytes with its unit: "6.9 GB"."""
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} B"


def _rank(file: ModelFile) -> str:
    if len(file.ranks) < 2:
        return str(file.rank or "")
    return f"{min(file.ranks)} to {max(file.ranks)}"


def _name_base(file: ModelFile) -> str:
    """Return the base that the shapes tell, and behind it what a sidecar says where that is something else."""
    declared = file.base_declared
    if file.base_model is None:
        return f"? (declared {declared})" if declared else "?"
    bare, own = (
        "".join(filter(str.isalnum, name)).lower() for name in (declared or "unknown", file.base_model)
    )
    return (
        file.base_model
        if bare == "unknown" or bare.startswith(own)
        else f"{file.base_model} (declared {declared})"
    )


def _origin(file: ModelFile) -> str:
    detected = f", by its digits {file.hash_type_detected}" if file.hash_type_detected else ""
    return f"{file.hash_type}{detected}, {file.hash_source}"


def _verdict(file: ModelFile) -> str:
    if file.verified is None:
        return "computed" if file.hash_source == "computed" else "unknown"
    if file.verified:
        return "yes"
    return (
        "no: it is of the first 8 MiB only" if file.mismatch == "legacy_first_8mib" else "no: another content"
    )


def _short(value: object) -> str:
    """Return a value for a terminal: one line without control characters, at most MAX_SHOWN long."""
    text = make_printable(str(value)[: 2 * MAX_SHOWN])
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
