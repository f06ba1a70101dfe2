"""`tilemix weights`: the files of the packaged models."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write
from tilemix.cli.verbs import add_model
from tilemix.errors import TilemixError, WeightsError
from tilemix.inputs import NumberInput, find_input
from tilemix.request import DEFAULT_SCALE

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

logger = logging.getLogger(__name__)


def add_weights(verbs: Verbs) -> None:
    """Add `weights` and its actions."""
    weights = verbs.add_parser(
        "weights",
        help="list, fetch, add, convert, import, remove, lock or verify the files of packaged models",
    )
    weights.set_defaults(run=_weights)
    actions = weights.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="print the packaged models")
    fetch = actions.add_parser("fetch", help="download the missing files that a server has")
    fetch.add_argument("model", help="a packaged model's name")
    for action, text in (
        ("lock", "write the files' sizes and hashes into the manifest"),
        ("verify", "check the files against the manifest"),
    ):
        actions.add_parser(action, help=text).add_argument("model", help="a packaged model's name")
    add = actions.add_parser(
        "add", help="put a LoRA, an embedding or a training into weights/files/ and the manifest"
    )
    add.add_argument(
        "source", help="a file, a PEFT folder, or an https address: a file's, a Civitai or hub page"
    )
    add_model(add)
    limits = find_input("lora_scale", NumberInput)
    add.add_argument(
        "--scale",
        type=float,
        metavar="X",
        help=f"a LoRA's strength, {limits.minimum:g} to {limits.maximum:g} (default: {DEFAULT_SCALE:g})",
    )
    add.add_argument(
        "--tokens",
        metavar="TOKENS",
        help="an embedding's: '<s0><s1>' (default: from special_params.json, else one for each row)",
    )
    add.add_argument(
        "--as",
        dest="file_name",
        metavar="NAME",
        help="the file's or the PEFT folder's name (default: its own)",
    )
    add.add_argument("--replace", action="store_true", help="replace another file of this name")
    remove = actions.add_parser("remove", help="take an adapter out of the manifest; its file stays")
    remove.add_argument("name", metavar="NAME", help="its file, as in the manifest, or its PEFT folder")
    add_model(remove)
    convert = actions.add_parser("convert", help="convert a pickled model file to safetensors")
    convert.add_argument(
        "file", metavar="FILE", help="a file that torch saved, whatever its name; nothing in it is run"
    )
    convert.add_argument("-o", "--out", metavar="OUT", help="the new file (default: beside FILE)")
    convert.add_argument(
        "--keep",
        choices=("ema", "last"),
        help="which weights of a training checkpoint (default: last, as the web UIs run it)",
    )
    convert.add_argument("--dtype", choices=("fp16",), help="round wider floating-point numbers to it")
    folder = actions.add_parser("import", help="write manifests for the models in a web UI's folder")
    folder.add_argument("folder", metavar="FOLDER", help="the web UI's own, or its models")
    folder.add_argument("--copy", action="store_true", help="copy the files instead of linking to them")
    folder.add_argument("--replace", action="store_true", help="write manifests of the same name anew")
    for action_parser in (fetch, add):
        action_parser.add_argument(
            "--allow-host", action="append", default=[], metavar="HOST", help="one more host to download from"
        )


def _list() -> None:
    """Print the packaged models; one whose manifest cannot be read does not hide the others.

    Raises:
        WeightsError: the fault of the first such manifest, once the others are printed.
    """
    from tilemix.weights import find_missing, list_models, load_manifest

    faults: list[WeightsError] = []
    for name in list_models():
        try:
            manifest = load_manifest(name)
        except WeightsError as error:
            write(f"{name}\tunusable\t-\n")
            faults.append(error)
            continue
        missing = len(find_missing(manifest))
        write(f"{name}\t{'ready' if not missing else f'{missing} files missing'}\t{manifest.license}\n")
    for fault in faults[1:]:
        logger.error("%s", fault)
    if faults:
        raise faults[0]


def _weights(options: argparse.Namespace) -> None:
    from tilemix.weights.add import add, remove, split_tokens
    from tilemix.weights.entry import Wish
    from tilemix.weights.fetch import fetch
    from tilemix.weights.lock import lock
    from tilemix.weights.web import make_web

    if options.action == "list":
        _list()
    elif options.action == "fetch":
        web = make_web(os.environ, options.allow_host)
        for path in fetch(options.model, web=web):
            write(f"{path}\n")
    elif options.action == "add":
        model: str = options.model
        tokens = split_tokens(options.tokens) if options.tokens is not None else None
        wish = Wish(options.scale, tokens, options.file_name, options.replace)
        web = make_web(os.environ, options.allow_host)
        added = add(options.source, model, wish, web=web)
        write(f"{added.path}\n")
        if added.change == "unchanged":
            logger.info("%s: the file is in its place and in the manifest already", model)
        else:
            adapter = added.adapter
            facts = [f"scale {adapter.scale:g}"] if adapter.scale is not None else []
            facts += [" ".join(adapter.tokens)] if adapter.tokens else []
            logger.info("%s: %s the %s, %s", model, added.change, adapter.kind, ", ".join(facts))
    elif options.action == "remove":
        model = options.model
        path = remove(model, options.name)
        write(f"{path}\n")
        logger.info("%s: no longer has it; the file stays", model)
    elif options.action == "convert":
        _convert(options)
    elif options.action == "import":
        _import(options)
    elif options.action == "lock":
        write(f"{lock(options.model)}\n")
    else:
        _verify(options.model)


def _convert(options: argparse.Namespace) -> None:
    from tilemix.cli.inspect import format_size
    from tilemix.conversion.convert import convert

    target = Path(options.out) if options.out else None
    made = convert(Path(options.file), target, keep=options.keep, dtype=options.dtype)
    write(f"{made.path}\n")
    before, after = made.sizes
    which = {None: "", "ema": ", the EMA weights", "last": ", the last weights"}[made.done.weights]
    logger.info("kept: %s, %d tensors%s", made.done.kind, made.done.tensors, which)
    if made.done.container is not None:
        logger.info("taken from: %s", made.done.container)
    for part in made.done.dropped:
        amount = f": {part.tensors} tensors, {format_size(part.size)}" if part.tensors else ""
        logger.info("left out: %s%s", part.name, amount)
    change = 100 * (after - before) / before
    logger.info("%s -> %s (%+.0f %%)", format_size(before), format_size(after), change)


def _import(options: argparse.Namespace) -> None:
    from tilemix.cli.terminal import make_printable
    from tilemix.weights.webui import import_folder

    made = import_folder(Path(options.folder), copies=options.copy, replaces=options.replace)
    for path in made.manifests:
        write(f"{path}\n")
    for path, name in made.named.items():
        write(f"{make_printable(str(path))}\tnamed {name}\n")
    for one in made.unused:
        write(f"{make_printable(str(one.path))}\tnot used: {one.reason}\n")
    logger.info(
        "%d models, %d files used, %d not used", len(made.manifests), len(made.used), len(made.unused)
    )


def _verify(model: str) -> None:
    from tilemix.weights import verify
    from tilemix.weights.progress import Progress

    with Progress(model) as progress:
        states = verify(model, advance=progress.advance)
    faults = [state.fault for state in states if state.fault]
    for fault in faults:
        write(f"{fault}\n")
    if faults:
        raise TilemixError("weights-faults", model=model, faults=len(faults), files=len(states))
    unlocked = sum(not state.is_locked for state in states)
    write(f"{model}: {len(states) - unlocked} files verified, {unlocked} not locked\n")
