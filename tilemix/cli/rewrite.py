"""`tilemix rewrite`: print the full prompt for a text."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write, write_json
from tilemix.system.project import DEFAULT_MODEL

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs
    from tilemix.prompts.mix import ColorMix


def add_rewrite(verbs: Verbs) -> None:
    """Add `rewrite`."""
    rewrite = verbs.add_parser("rewrite", help="print the full prompt for a text, without drawing")
    rewrite.set_defaults(run=_rewrite)
    rewrite.add_argument("text")
    rewrite.add_argument(
        "--model",
        metavar="NAME",
        help=f"whose palette and template; default: $TILEMIX_MODEL, else {DEFAULT_MODEL}",
    )
    rewrite.add_argument("--template", metavar="NAME", help="default: the model's")
    rewrite.add_argument(
        "--json",
        action="store_true",
        help="with the mix as read and as sent, the negative prompt, the notes and the spans",
    )
    rewrite.add_argument(
        "--explain", action="store_true", help="print what every part of the text was taken for"
    )


def _rewrite(options: argparse.Namespace) -> None:
    from tilemix.prompts.rewrite import rewrite
    from tilemix.prompts.template import find_template
    from tilemix.weights import load_manifest

    manifest = load_manifest(options.model or os.environ.get("TILEMIX_MODEL") or DEFAULT_MODEL)
    template = find_template(options.template or manifest.prompt_template)
    prompt = rewrite(options.text, template, manifest.load_palette())
    if options.explain and not options.json:
        for span in prompt.spans:
            typed = options.text[span.start : span.end]
            write(f"{span.start + 1:>4}  {span.role:<9}  {typed!r}{span.value and f' = {span.value}'}\n")
        return
    if not options.json:
        write(f"{prompt.positive}\n")
        return
    answer = {
        "prompt": prompt.positive,
        "negative_prompt": prompt.negative,
        "mix": _list_shares(prompt.mix),
        "sent": _list_shares(prompt.sent),
        "notes": [str(note) for note in prompt.notes],
        "spans": [
            {
                "start": span.start,
                "end": span.end,
                "text": options.text[span.start : span.end],
                "role": span.role,
                "value": span.value,
            }
            for span in prompt.spans
        ],
    }
    write_json(answer)


def _list_shares(mix: ColorMix | None) -> dict[str, float] | None:
    return None if mix is None else {share.color: float(share.percent) for share in mix.shares}
