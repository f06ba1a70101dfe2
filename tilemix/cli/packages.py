"""`tilemix weights`: the files of the packaged models."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs


def add_weights(verbs: Verbs) -> None:
    """Add `weights` and its actions."""
    weights = verbs.add_parser("weights", help="list, fetch, lock or verify the files of packaged models")
    weights.set_defaults(run=_weights)
    actions = weights.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="print the packaged models")
    for action, text in (
        ("fetch", "download the missing files that a hub has"),
        ("lock", "write the files' sizes and hashes into the manifest"),
        ("verify", "check the files against the manifest"),
    ):
        actions.add_parser(action, help=text).add_argument("model", help="a packaged model's name")


def _weights(options: argparse.Namespace) -> None:
    from tilemix import weights

    if options.action == "list":
        for name in weights.list_models():
            manifest = weights.load_manifest(name)
            missing = len(weights.find_missing(manifest))
            sys.stdout.write(
                f"{name}\t{'ready' if not missing else f'{missing} files missing'}\t{manifest.license}\n"
            )
    elif options.action == "fetch":
        for path in weights.fetch(options.model):
            sys.stdout.write(f"{path}\n")
    elif options.action == "lock":
        sys.stdout.write(f"{weights.lock(options.model)}\n")
    else:
        model = weights.find_model(options.model)
        unlocked = sum(sha256 is None for sha256 in model.hashes.values())
        sys.stdout.write(
            f"{options.model}: {len(model.hashes) - unlocked} files verified, {unlocked} not locked\n"
        )
