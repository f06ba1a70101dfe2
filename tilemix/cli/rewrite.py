"""`tilemix rewrite`: print the full prompt for a text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tilemix.cli.terminal import write, write_json
from tilemix.cli.verbs import add_model
from tilemix.inputs import IntegerInput, find_input

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs
    from tilemix.prompts.mix import ColorMix
    from tilemix.prompts.rewrite import Prompt
    from tilemix.weights.manifest import ModelManifest


def add_rewrite(verbs: Verbs) -> None:
    """Add `rewrite`."""
    rewrite = verbs.add_parser("rewrite", help="print the full prompt for a text, without drawing")
    rewrite.set_defaults(run=_rewrite)
    rewrite.add_argument("text")
    add_model(rewrite, "whose palette and template")
    rewrite.add_argument("--template", metavar="NAME", help="default: the model's")
    rewrite.add_argument(
        "--json",
        action="store_true",
        help="with the mix as read and as sent, the negative prompt, the notes and the spans",
    )
    rewrite.add_argument(
        "--explain",
        action="store_true",
        help="print what every part of the text was taken for, and what the text encoders get",
    )
    rewrite.add_argument("--negative-prompt", metavar="TEXT", help="default: the template's")
    rewrite.add_argument("--seed", type=int, default=0, metavar="N", help="makes the choices; default: 0")
    rewrite.add_argument("--steps", type=int, metavar="N", help="that edits count; default: the model's")


def _rewrite(options: argparse.Namespace) -> None:
    from tilemix.prompts.rewrite import log_notes, rewrite
    from tilemix.prompts.template import find_template
    from tilemix.weights import load_manifest
    from tilemix.weights.prompting import make_context

    manifest = load_manifest(options.model)
    template = find_template(options.template or manifest.prompt_template)
    steps = manifest.defaults.num_inference_steps if options.steps is None else options.steps
    find_input("num_inference_steps", IntegerInput).check(steps)
    prompt = rewrite(
        options.text,
        template,
        manifest.load_palette(),
        negative_prompt=options.negative_prompt,
        context=make_context(manifest, seed=options.seed, steps=steps),
    )
    log_notes(prompt)
    explained = _explain(prompt, manifest, steps) if options.explain else {}
    if options.explain and not options.json:
        for span in prompt.spans:
            typed = options.text[span.start : span.end]
            write(f"{span.start + 1:>4}  {span.role:<9}  {typed!r}{span.value and f' = {span.value}'}\n")
        from tilemix.cli.explanation import list_lines

        for line in list_lines(explained):
            write(f"{line}\n")
        return
    if not options.json:
        write(f"{prompt.positive}\n")
        return
    answer: dict[str, Any] = {
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
    write_json(answer | explained)


def _explain(prompt: Prompt, manifest: ModelManifest, steps: int) -> dict[str, Any]:
    from tilemix.cli.explanation import explain  # the tokenizers, which a rewrite alone need not wait for

    return explain(prompt, manifest, steps)


def _list_shares(mix: ColorMix | None) -> dict[str, float] | None:
    return None if mix is None else {share.color: float(share.percent) for share in mix.shares}
