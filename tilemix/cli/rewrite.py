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
    from tilemix.prompts.template import PromptTemplate
    from tilemix.weights.manifest import ModelManifest


def add_rewrite(verbs: Verbs) -> None:
    """Add `rewrite`."""
    rewrite = verbs.add_parser("rewrite", help="print the full prompt for a text, without drawing")
    rewrite.set_defaults(run=_rewrite)
    rewrite.add_argument("text", help="as it is typed for predict")
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
    rewrite.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of {a|b} and of wildcards; default: 0"
    )
    rewrite.add_argument(
        "--steps", type=int, metavar="N", help="steps that edits count; default: those that predict draws"
    )


def _rewrite(options: argparse.Namespace) -> None:
    from tilemix.prompts.rewrite import log_notes
    from tilemix.prompts.template import find_template
    from tilemix.weights import load_manifest

    manifest = load_manifest(options.model)
    template = find_template(options.template or manifest.prompt_template)
    prompt, steps, reason = _read(options, manifest, template)
    log_notes(prompt)
    drawn = {"steps": {"count": steps, "reason": reason}}
    explained = _explain(prompt, manifest, steps) | drawn if options.explain else {}
    if options.explain and not options.json:
        for span in prompt.spans:
            typed = options.text[span.start : span.end]
            write(f"{span.start + 1:>4}  {span.role:<9}  {typed!r}{span.value and f' = {span.value}'}\n")
        from tilemix.cli.explanation import list_lines

        for line in list_lines(explained):
            write(f"{line}\n")
        write(f"{steps} steps: {reason}\n")
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


def _read(
    options: argparse.Namespace, manifest: ModelManifest, template: PromptTemplate
) -> tuple[Prompt, int, str]:
    """Return the prompt, the number of steps that its edits count, and why it is that number."""
    from tilemix.colors.palette import find_swatches
    from tilemix.drafts.steps import settle_steps
    from tilemix.prompts.rewrite import rewrite
    from tilemix.weights.calibration import read_calibration, resolve_strength
    from tilemix.weights.local import list_hashes, locate_calibration
    from tilemix.weights.prompting import make_context

    palette, defaults = manifest.load_palette(), manifest.defaults
    seed: int = options.seed
    find_input("seed", IntegerInput).check(seed)
    if seed == -1:
        from tilemix.request import draw_seed  # 10 ms

        seed = draw_seed()

    def read(steps: int) -> Prompt:
        return rewrite(
            options.text,
            template,
            palette,
            negative_prompt=options.negative_prompt,
            context=make_context(manifest, seed=seed, steps=steps),
        )

    if options.steps is not None:
        find_input("num_inference_steps", IntegerInput).check(options.steps)
        return read(options.steps), options.steps, "as given"
    calibration = read_calibration(options.model, locate_calibration(options.model), list_hashes(manifest))
    strength, steps = resolve_strength(manifest, calibration), defaults.num_inference_steps
    prompt, draft, drawn = settle_steps(
        read,
        lambda mix: find_swatches(palette, (share.color for share in mix.shares)),
        steps=steps,
        strength=strength,
    )
    source = "manifest" if calibration is None else "calibration"
    if draft is not None:
        return prompt, drawn, f"of {steps} over a draft of the mix, strength {strength:g} of the {source}"
    if prompt.sent is None:
        return prompt, drawn, "from noise, there is no mix to lay out"
    if strength == 1 or steps == 1:
        return prompt, drawn, f"from noise, strength {strength:g} of the {source}"
    return prompt, drawn, "from noise, a color of the mix has no swatch"


def _explain(prompt: Prompt, manifest: ModelManifest, steps: int) -> dict[str, Any]:
    from tilemix.cli.explanation import explain  # the tokenizers, which a rewrite alone need not wait for

    return explain(prompt, manifest, steps)


def _list_shares(mix: ColorMix | None) -> dict[str, float] | None:
    return None if mix is None else {share.color: float(share.percent) for share in mix.shares}
