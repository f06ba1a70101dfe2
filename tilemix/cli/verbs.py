"""What the verbs have in common: the type of their parser group, and --model."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

from tilemix.system.project import DEFAULT_MODEL

# argparse has no public name for it, and its class cannot be subscripted at run time.
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def default_model() -> str:
    """Return the model that every verb means which is not told another one."""
    return os.environ.get("TILEMIX_MODEL") or DEFAULT_MODEL


def add_model(parser: argparse.ArgumentParser, subject: str = "") -> None:
    """Add `--model`, whose value is a model's name in any case.

    Args:
        parser: a verb's.
        subject: what is taken from the model, for the help.
    """
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=default_model(),
        type=lambda name: name or default_model(),
        help=f"{subject and f'{subject}; '}default: $TILEMIX_MODEL, else {DEFAULT_MODEL}",
    )
