"""`tilemix train`: train a LoRA and tokens on a folder of pictures."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tilemix.cli.terminal import write, write_json
from tilemix.cli.verbs import default_model
from tilemix.errors import TrainingError
from tilemix.system.project import DEFAULT_MODEL

if TYPE_CHECKING:
    from tilemix.cli.verbs import Verbs

logger = logging.getLogger(__name__)

MAX_LISTED = 10  # lines of a list that --dry-run prints


def add_train(verbs: Verbs) -> None:
    """Add `train`."""
    train = verbs.add_parser("train", help="train a LoRA and tokens on a folder of pictures")
    train.set_defaults(run=_train)
    train.add_argument("config", type=Path, help="the training's JSON file; with --new, a folder of pictures")
    train.add_argument(
        "--new",
        metavar="NAME",
        help="write NAME.json here, a configuration that fits the base and the pictures",
    )
    train.add_argument(
        "--model", metavar="NAME", help="make the result a packaged model: weights/NAME.model.json"
    )
    train.add_argument("--replace", action="store_true", help="--model: replace another model of this name")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="run a few steps, print time, memory and disk space, write nothing",
    )
    train.add_argument(
        "--check",
        action="store_true",
        help="list the captions that name another mix than their pictures show",
    )
    train.add_argument(
        "--fix", action="store_true", help="check, and write corrected captions: NAME.txt.corrected"
    )
    train.add_argument(
        "--palette",
        metavar="NAME",
        help="to check captions by; default: the configuration's; for --check, "
        f"else that of $TILEMIX_MODEL, else of {DEFAULT_MODEL}",
    )
    train.add_argument("--json", action="store_true", help="print the result as JSON")


def _train(options: argparse.Namespace) -> None:
    if options.new is not None:
        _write_config(options)
        return
    if options.check or options.fix:
        _check(options)
        return
    if importlib.util.find_spec("peft") is None:
        raise TrainingError("training-needs-peft")
    logger.info("%s: reading the pictures and captions", options.config)
    import torch

    from tilemix.colors.palette import load_palette
    from tilemix.pipelines.settings import parse_threads
    from tilemix.tuning.estimate import estimate
    from tilemix.tuning.files import write_adapters
    from tilemix.tuning.model import TOKENS_SEEN
    from tilemix.tuning.packaging import plan_package, write_package
    from tilemix.tuning.plan import make_plan
    from tilemix.tuning.trainer import tune

    plan = make_plan(options.config)
    package = plan_package(plan, options.model, replaces=options.replace) if options.model else None
    threads = parse_threads(os.environ.get("TILEMIX_THREADS"))
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.dry_run:
        name = options.palette or plan.config.palette
        cost = estimate(plan, device, load_palette(name) if name else None)
        if options.json:
            write_json(cost)
            return
        write(f"pictures: {cost.pictures}\n")
        for phase, pace in cost.seconds_per_step.items():
            steps = plan.config.settings(phase).steps
            write(f"{phase}: {cost.learned[phase]:,} parameters, {steps} steps of {pace:.2f} s\n")
        write(f"time: {cost.seconds / 60:.1f} min, without the sample pictures\n")
        write(f"memory: {cost.memory / 1e9:.1f} GB on {cost.device}\n")
        write(f"disk: {cost.disk / 1e6:.0f} MB in {plan.output}\n")
        side = plan.config.resolution
        _list_some(f"pictures under {side} pixels, which are enlarged", cost.too_small)
        _list_some(f"captions over {TOKENS_SEEN} tokens, which lose their ends", cost.cut)
        _list_some(f"captions of {cost.checked} that name another mix than their pictures show", cost.wrong)
        return
    try:
        files = write_adapters(tune(plan, device))
    except KeyboardInterrupt:
        logger.info("the checkpoint is in %s; the same command resumes from it", plan.state)
        raise
    if options.json:
        names = ("lora", "embeddings", "record")
        answer = {name: str(path) for name, path in zip(names, files, strict=True)}
        if package:
            answer["manifest"] = str(write_package(package, *files[:2]))
        write_json(answer)
        return
    for path in files:
        write(f"{path}\n")
    if package:
        write(f"{write_package(package, *files[:2])}\n")
        prompt = shlex.quote(plan.pictures[0].caption)
        write(f"tilemix predict {prompt} --model {package.name} -o {package.name}.png\n")


def _write_config(options: argparse.Namespace) -> None:
    from tilemix.tuning.new_config import write_config

    path = Path(f"{options.new}.json")
    write_config(path, options.new, options.config, default_model())
    write(f"{path}\n")
    logger.info("next: tilemix train %s --dry-run", path)


def _list_some(what: str, found: list[str]) -> None:
    if found:
        write(f"{what}: {len(found)}\n" + "".join(f"  {one}\n" for one in found[:MAX_LISTED]))
        if len(found) > MAX_LISTED:
            write(f"  and {len(found) - MAX_LISTED} more\n")


def _check(options: argparse.Namespace) -> None:
    from tilemix.cli.measure import palette_of
    from tilemix.colors.palette import load_palette
    from tilemix.tuning.captions import check_captions
    from tilemix.tuning.config import load_config
    from tilemix.tuning.pictures import find_pictures

    # Not by a plan, which refuses captions that the template's own words stand in; their mixes can be checked.
    config = load_config(options.config)
    pictures = find_pictures(options.config.parent / config.pictures)
    name = options.palette or config.palette
    name = name or palette_of(default_model())
    wrong = check_captions(pictures, load_palette(name))
    if options.json:
        listed = [{"caption": one.path.name, "says": one.says, "shows": one.shows} for one in wrong]
        write_json(listed)
    for one in wrong:
        if not options.json:
            write(f"{one}\n")
        if options.fix:
            one.write_corrected()
    logger.info("%d captions disagree with their pictures", len(wrong))
