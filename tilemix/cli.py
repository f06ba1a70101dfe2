"""The command line: `tilemix VERB`. Results go to standard output, everything else to standard error.

Exit status: 0 done; 1 refused or failed, with one line that says why; 2 wrong usage.
Each verb imports what it needs when it runs, so that `tilemix rewrite` does not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tilemix.errors import TilemixError

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "miniature"
PRODUCT = "rubber-tile"  # what `weights add` is for, where nothing else is said
DEFAULT_TEMPLATE = "rubber_tile"
SUFFIXES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("tilemix").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        options.run(options)
    except TilemixError as error:
        sys.stderr.write(f"tilemix {options.verb}: {error}\n")
        return 1
    except BrokenPipeError:
        # The reader has gone (`tilemix ... | head`): nothing is left to say, to standard output least of all.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"tilemix {options.verb}: interrupted\n")
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of every verb."""
    parser = argparse.ArgumentParser(
        prog="tilemix", description="Pictures of rubber floor tiles from color mixes."
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only warnings on standard error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    predict = verbs.add_parser("predict", help="draw a tile")
    predict.set_defaults(run=_predict)
    predict.add_argument("prompt", help='the colors of the tile: "50%% red, 30%% black, 20%% pearl"')
    predict.add_argument(
        "-o", "--output", type=Path, default=Path("tile.png"), metavar="FILE", help="default: tile.png"
    )
    predict.add_argument("--negative-prompt", metavar="TEXT", help="what to avoid (default: the template's)")
    predict.add_argument("--seed", type=int, metavar="N", help="0 to 4294967295 (default: a fresh draw)")
    predict.add_argument("--width", type=int, metavar="N", help="256 to 1536 pixels, a multiple of 8")
    predict.add_argument("--height", type=int, metavar="N", help="256 to 1536 pixels, a multiple of 8")
    predict.add_argument("--num-inference-steps", type=int, metavar="N", help="1 to 100")
    predict.add_argument("--guidance-scale", type=float, metavar="X", help="1 to 20")
    predict.add_argument("--lora-scale", type=float, metavar="X", help="0 to 1.5; 1 is as trained")
    predict.add_argument(
        "--output-format", choices=sorted(set(SUFFIXES.values())), help="default: FILE's suffix"
    )
    predict.add_argument("--model", metavar="NAME", help=f"default: $TILEMIX_MODEL, else {DEFAULT_MODEL}")
    predict.add_argument(
        "--json", action="store_true", help="print the record and the measured shares as JSON"
    )

    rewrite = verbs.add_parser("rewrite", help="print the full prompt for a text, without drawing")
    rewrite.set_defaults(run=_rewrite)
    rewrite.add_argument("text")
    rewrite.add_argument(
        "--template", default=DEFAULT_TEMPLATE, metavar="NAME", help=f"default: {DEFAULT_TEMPLATE}"
    )
    rewrite.add_argument(
        "--json", action="store_true", help="with the mix, the negative prompt and the notes"
    )

    record = verbs.add_parser("record", help="print the record inside a picture as JSON")
    record.set_defaults(run=_record)
    record.add_argument("file", type=Path)
    record.add_argument("--parameters", action="store_true", help="as the web UIs' parameters text instead")

    measure = verbs.add_parser("measure", help="measure the shares of a mix's colors in a picture")
    measure.set_defaults(run=_measure)
    measure.add_argument("file", type=Path)
    measure.add_argument("--mix", metavar="TEXT", help="default: the mix in the picture's record")
    measure.add_argument("--json", action="store_true", help="as JSON")

    weights = verbs.add_parser(
        "weights", help="list, fetch, add, lock or verify the files of packaged models"
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
    add = actions.add_parser("add", help="put a LoRA or an embedding into weights/files/ and the manifest")
    add.add_argument("source", help="a file, or an https address: a file's, a Civitai or hub page")
    add.add_argument("--model", metavar="NAME", help=f"default: $TILEMIX_MODEL, else {PRODUCT}")
    add.add_argument("--scale", type=float, metavar="X", help="a LoRA's strength, 0 to 1.5 (default: 0.7)")
    add.add_argument(
        "--tokens",
        metavar="TOKENS",
        help="an embedding's: '<s0><s1>' (default: from special_params.json, else one for each row)",
    )
    add.add_argument("--as", dest="file_name", metavar="NAME", help="the file's name (default: its own)")
    add.add_argument("--replace", action="store_true", help="in the place of another file of this name")
    for action_parser in (fetch, add):
        action_parser.add_argument(
            "--allow-host", action="append", default=[], metavar="HOST", help="one more host to download from"
        )

    train = verbs.add_parser("train", help="tune a LoRA and tokens toward a folder of pictures")
    train.set_defaults(run=_train)
    train.add_argument("config", type=Path, help="the tuning's JSON file")
    train.add_argument(
        "--dry-run", action="store_true", help="run three steps, print time, memory and disk, write nothing"
    )
    train.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def _predict(options: argparse.Namespace) -> None:
    from tilemix.request import GenerationRequest

    output_format = options.output_format or SUFFIXES.get(options.output.suffix.lower())
    if output_format is None:
        raise TilemixError(
            f"{options.output.name!r} has no suffix of {', '.join(SUFFIXES)}; use --output-format"
        )
    if not options.output.parent.is_dir():
        raise TilemixError(f"{options.output}: folder {str(options.output.parent)!r} does not exist")
    request = GenerationRequest(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        width=options.width,
        height=options.height,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        lora_scale=options.lora_scale,
        output_format=output_format,
    )
    from tilemix.image_file import write_image
    from tilemix.measure import has_swatch, measure_shares
    from tilemix.render import Renderer, parse_threads

    renderer = Renderer.load(
        options.model or os.environ.get("TILEMIX_MODEL") or DEFAULT_MODEL,
        threads=parse_threads(os.environ.get("TILEMIX_THREADS")),
    )
    rendered = renderer.render(request, on_step=_show_step)
    size = write_image(options.output, rendered.pixels, rendered.record, output_format=output_format)
    took = sum(rendered.seconds.values())
    logger.info("%s: %d kB, drawn in %.1f s", options.output, size // 1000, took)
    mix = rendered.prompt.mix
    measured = measure_shares(rendered.pixels, mix) if mix and has_swatch(mix) else None
    if options.json:
        import msgspec

        answer = {"file": str(options.output), "record": rendered.record, "seconds": rendered.seconds}
        if measured:
            answer |= {"measured": measured}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        return
    sys.stdout.write(f"{options.output}\n")
    if measured:
        logger.info("measured: %s", _list_shares(measured.shares))


def _show_step(done: int, total: int) -> None:
    logger.info("denoise %d/%d %d%%", done, total, 100 * done // total)


def _rewrite(options: argparse.Namespace) -> None:
    from tilemix.rewriter import rewrite
    from tilemix.templates import find_template

    prompt = rewrite(options.text, find_template(options.template))
    if not options.json:
        sys.stdout.write(f"{prompt.positive}\n")
        return
    mix = {share.color: float(share.percent) for share in prompt.mix.shares} if prompt.mix else None
    answer = {
        "prompt": prompt.positive,
        "negative_prompt": prompt.negative,
        "mix": mix,
        "notes": prompt.notes,
    }
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _record(options: argparse.Namespace) -> None:
    import msgspec

    from tilemix.provenance import parameters_text, read_record

    record = read_record(options.file)
    if options.parameters:
        sys.stdout.write(parameters_text(record) + "\n")
    else:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n")


def _measure(options: argparse.Namespace) -> None:
    import msgspec

    from tilemix.image_file import read_pixels
    from tilemix.measure import has_swatch, measure_shares
    from tilemix.mix import parse_mix
    from tilemix.provenance import read_record

    pixels = read_pixels(options.file)
    text = options.mix if options.mix is not None else read_record(options.file).prompt
    mix = parse_mix(text).mix
    if mix is None:
        raise TilemixError(f"no color mix in {text[:80]!r}; expected one such as '50% red, 50% black'")
    if not has_swatch(mix):
        raise TilemixError(
            f"no color of {str(mix)[:80]!r} is on the chart, so there is nothing to measure by"
        )
    measured = measure_shares(pixels, mix)
    if options.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")
        return
    sys.stdout.write(f"{_list_shares(measured.shares)}\n")
    found = f" ({_list_shares(measured.others)})" if measured.others else ""
    sys.stdout.write(f"not asked for: {measured.not_asked:.1f}%{found}\n")
    sys.stdout.write(f"mean delta E 2000: {measured.mean_delta_e:.1f}\n")


def _list_shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{percent:.1f}% {color}" for color, percent in shares.items())


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
        web = weights.make_web(os.environ, options.allow_host)
        for path in weights.fetch(options.model, web=web):
            sys.stdout.write(f"{path}\n")
    elif options.action == "add":
        model = options.model or os.environ.get("TILEMIX_MODEL") or PRODUCT
        tokens = weights.split_tokens(options.tokens) if options.tokens is not None else None
        wish = weights.Wish(options.scale, tokens, options.file_name, options.replace)
        web = weights.make_web(os.environ, options.allow_host)
        added = weights.add(options.source, model, wish, web=web)
        sys.stdout.write(f"{added.path}\n")
        if added.change == "unchanged":
            logger.info("%s: has this very file already, nothing to do", model)
        else:
            extra = " ".join(added.adapter.tokens) or f"scale {added.adapter.scale:g}"
            logger.info("%s: %s the %s, %s", model, added.change, added.adapter.kind, extra)
    elif options.action == "lock":
        sys.stdout.write(f"{weights.lock(options.model)}\n")
    else:
        _verify(options.model)


def _verify(model: str) -> None:
    from tilemix import weights
    from tilemix.weights.progress import Progress

    with Progress(model) as progress:
        states = weights.verify(model, advance=progress.advance)
    faults = [state.fault for state in states if state.fault]
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    if faults:
        raise TilemixError(f"{model}: {len(faults)} of {len(states)} files are missing or wrong")
    unlocked = sum(not state.is_locked for state in states)
    sys.stdout.write(f"{model}: {len(states) - unlocked} files verified, {unlocked} not locked\n")


def _train(options: argparse.Namespace) -> None:
    import msgspec
    import torch

    from tilemix.render import parse_threads
    from tilemix.training.adapter_files import write_adapters
    from tilemix.training.estimate import estimate
    from tilemix.training.tuning import make_plan, tune

    plan = make_plan(options.config)
    threads = parse_threads(os.environ.get("TILEMIX_THREADS"))
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.dry_run:
        cost = estimate(plan, device)
        if options.json:
            sys.stdout.write(msgspec.json.encode(cost).decode() + "\n")
            return
        sys.stdout.write(f"pictures: {cost.pictures}\n")
        for phase, pace in cost.seconds_per_step.items():
            steps = getattr(plan.config, phase).steps
            sys.stdout.write(
                f"{phase}: {cost.learned[phase]:,} numbers to learn, {steps} steps of {pace:.2f} s\n"
            )
        sys.stdout.write(f"time: {cost.seconds / 60:.1f} min, sample pictures not counted\n")
        sys.stdout.write(f"memory: {cost.memory / 1e9:.1f} GB on {cost.device}\n")
        sys.stdout.write(f"disk: {cost.disk / 1e6:.0f} MB in {plan.output}\n")
        return
    try:
        files = write_adapters(tune(plan, device))
    except KeyboardInterrupt:
        logger.info("the checkpoint in %s stays; the same command goes on from it", plan.state)
        raise
    if options.json:
        names = ("lora", "embeddings", "record")
        answer = {name: str(path) for name, path in zip(names, files, strict=True)}
        sys.stdout.write(json.dumps(answer) + "\n")
        return
    for path in files:
        sys.stdout.write(f"{path}\n")
