"""`tilemix rewrite`: print the full prompt for a text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write, write_json

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

DEFAULT_TEMPLATE = "rubber_tile"


def add_rewrite(verbs: Verbs) -> None:
    """Add `rewrite`."""
    rewrite = verbs.add_parser("rewrite", help="print the full prompt for a text, without drawing")
    rewrite.set_defaults(run=_rewrite)
    rewrite.add_argument("text")
    rewrite.add_argument(
        "--template", default=DEFAULT_TEMPLATE, metavar="NAME", help=f"default: {DEFAULT_TEMPLATE}"
    )
    rewrite.add_argument(
        "--json", action="store_true", help="with the mix, the negative prompt, the notes and the spans"
    )
    rewrite.add_argument(
        "--explain", action="store_true", help="print what every part of the text was taken for"
    )


def _rewrite(options: argparse.Namespace) -> None:
    from tilemix.prompts.rewrite import rewrite
    from tilemix.prompts.template import find_template

    prompt = rewrite(options.text, find_template(options.template))
    if options.explain and not options.json:
        for span in prompt.spans:
            typed = options.text[span.start : span.end]
            write(f"{span.start + 1:>4}  {span.role:<9}  {typed!r}{span.value and f' = {span.value}'}\n")
        return
    if not options.json:
        write(f"{prompt.positive}\n")
        return
    mix = {share.color: float(share.percent) for share in prompt.mix.shares} if prompt.mix else None
    answer = {
        "prompt": prompt.positive,
        "negative_prompt": prompt.negative,
        "mix": mix,
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
