"""`tilemix predict`: draw a tile, or one after another."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilemix.cli.measure import list_shares
from tilemix.cli.outputs import check_output
from tilemix.cli.terminal import write, write_json
from tilemix.cli.verbs import add_model, default_model
from tilemix.errors import TilemixError
from tilemix.inputs import ChoiceInput, Input, IntegerInput, NumberInput, describe, find_input, load_inputs
from tilemix.system.garbage import uncollected

if TYPE_CHECKING:
    from tilemix.cli.repeat import Source
    from tilemix.cli.verbs import Verbs
    from tilemix.drawing import Drawing
    from tilemix.errors import Message
    from tilemix.render import Renderer
    from tilemix.request import GenerationRequest

logger = logging.getLogger(__name__)

OUTPUT_FORMAT = "output_format"  # usually follows from the file's suffix
DEFAULT_FORMAT = "png"  # of the pictures in a folder
DEFAULT_OUTPUT = Path("tile.png")
SUFFIXES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


def add_predict(verbs: Verbs) -> None:
    """Add `predict`."""
    predict = verbs.add_parser("predict", help="draw a tile")
    predict.set_defaults(run=_predict, refuse=predict.error)
    predict.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default: {DEFAULT_OUTPUT}")
    for row in load_inputs().values():
        if row.name != OUTPUT_FORMAT:
            add_input(predict, row, is_optional=True)
    predict.add_argument(
        "--output-format",
        choices=find_input(OUTPUT_FORMAT, ChoiceInput).choices,
        help="default: FILE's suffix",
    )
    predict.add_argument(
        "--from-image",
        type=Path,
        metavar="PICTURE",
        help="repeat a picture: its inputs stand for those left out here; other programs' pictures, too",
    )
    predict.add_argument(
        "--forever",
        type=Path,
        metavar="FOLDER",
        help="draw one picture after another into a folder, the next seed each time, until Ctrl-C",
    )
    add_model(predict)
    predict.set_defaults(model=None)  # a picture to repeat names its own
    predict.add_argument(
        "--json", action="store_true", help="print the record and the measured shares as JSON"
    )


def add_input(parser: argparse.ArgumentParser, row: Input, *, is_optional: bool = False) -> None:
    """Add the argument for one input of predict(); None: it was not given. `is_optional`: even if it is required."""
    text = describe(row, left_out="the model's own", with_limits=True).replace("%", "%%")
    option = f"--{row.name.replace('_', '-')}"
    if row.required:
        parser.add_argument(row.name, nargs="?" if is_optional else None, help=text)
    elif isinstance(row, IntegerInput):
        parser.add_argument(option, type=partial(_read_integer, row), metavar="N", help=text)
    elif isinstance(row, NumberInput):
        parser.add_argument(option, type=float, metavar="X", help=text)
    elif isinstance(row, ChoiceInput):
        parser.add_argument(option, choices=row.choices, help=text)
    else:
        parser.add_argument(option, metavar="TEXT", help=text)


def _read_integer(row: IntegerInput, text: str) -> int:
    """Return the integer of an option, refused in tilemix's words instead of argparse's "invalid int value"."""
    try:
        return row.read(text)
    except TilemixError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _predict(options: argparse.Namespace) -> None:
    from tilemix.request import GenerationRequest
    from tilemix.weights import load_manifest

    given = {name: value for name in load_inputs() if (value := getattr(options, name)) is not None}
    if "prompt" not in given and options.from_image is None:
        options.refuse("expected a prompt, or --from-image")
    if options.forever is not None and options.output is not None:
        options.refuse("--forever names its files itself; leave -o out")
    options.output = options.output or DEFAULT_OUTPUT
    given[OUTPUT_FORMAT] = _check_output(options)
    source = _read_source(options)
    model = options.model or (source and source.model) or default_model()
    manifest = load_manifest(model)
    own: dict[str, Any] = {}
    notes: list[Message] = []
    if source is not None:
        own, told = source.repeat(model, manifest)
        notes = [*told]
    # A slip in the text is told before the model is loaded.
    request = GenerationRequest(**own | given)
    check_text(request, model)
    if options.forever is not None:
        _make_folder(options.forever)
    environment = os.environ if source is None else source.add_settings(os.environ)
    renderer = _load(model, request.task, environment)
    if source is not None:
        own, differences = source.settle(renderer, own | {"task": request.task})
        notes += differences
    for note in notes:
        logger.warning("%s", note)
    request = GenerationRequest(**own | given)
    if options.forever is not None:
        _draw_forever(renderer, options, request)
        return
    drawing = _draw(renderer, options.output, request)
    answer = _describe(drawing, options.output)
    if source is not None:
        is_the_same = given.keys() == {OUTPUT_FORMAT}
        changed = source.count_changed(drawing.rendered) if is_the_same else None
        _tell_changed(changed)
        answer |= {"repeated": {"notes": [str(note) for note in notes], "changed_pixels": changed}}
    _answer(options, answer)


def _draw_forever(renderer: Renderer, options: argparse.Namespace, request: GenerationRequest) -> None:
    """Draw pictures into a folder until Ctrl-C; those that are there already are left alone."""
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == request.output_format)
    request = request.with_seed()
    count = 0
    try:
        while True:
            path = options.forever / f"tile-{request.seed}{suffix}"
            if not path.exists():
                _answer(options, _describe(_draw(renderer, path, request), path))
                count += 1
            request = request.with_next_seed()
    except KeyboardInterrupt:
        logger.info("%d pictures in %s", count, options.forever)


def _describe(drawing: Drawing, path: Path) -> dict[str, Any]:
    rendered = drawing.rendered
    answer: dict[str, Any] = {"file": str(path), "record": rendered.record, "seconds": rendered.seconds}
    return answer | ({"measured": drawing.measured} if drawing.measured else {})


def _answer(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    if options.json:
        write_json(answer)
    else:
        write(f"{answer['file']}\n")


def _check_output(options: argparse.Namespace) -> str:
    """Return the format of the file to write.

    Raises:
        TilemixError: no picture can be written there.
    """
    if options.forever is not None:
        return str(options.output_format or DEFAULT_FORMAT)
    suffixes = SUFFIXES if options.output_format is None else ()
    check_output(options.output, suffixes, source=options.from_image)
    by_suffix = SUFFIXES.get(options.output.suffix.lower())
    if options.output_format not in {None, by_suffix} and by_suffix is not None:
        logger.warning("%s will hold a %s file", options.output, options.output_format)
    return str(options.output_format or by_suffix)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise TilemixError("file-not-a-folder", file=str(folder)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise TilemixError("file-unwritable", file=str(folder), reason=reason) from error


def _read_source(options: argparse.Namespace) -> Source | None:
    """Return the picture to repeat.

    Raises:
        ImageFileError: it cannot be read.
    """
    if options.from_image is None:
        return None
    from tilemix.cli.repeat import Source

    return Source.read(options.from_image)


def _load(model: str, task: str | None, environment: Mapping[str, str]) -> Renderer:
    with uncollected():
        from tilemix import drawing  # noqa: F401  now, not in the first picture's time
        from tilemix.models import ModelManager
        from tilemix.pipelines.settings import read_settings

        return ModelManager(model, read_settings(environment)).load(task)


def _draw(renderer: Renderer, output: Path, request: GenerationRequest) -> Drawing:
    from tilemix.drawing import draw_to_file

    drawing = draw_to_file(renderer, output, request, on_step=_show_step)
    took = sum(drawing.rendered.seconds.values())
    logger.info("%s: %d kB, drawn in %.1f s", output, drawing.size // 1000, took)
    if drawing.measured:
        logger.info("measured: %s", list_shares(drawing.measured.shares))
    return drawing


def _tell_changed(changed: int | None) -> None:
    if changed == 0:
        logger.info("repeated: every pixel is the same")
    elif changed is not None:
        logger.info("repeated: %d pixels are not the same", changed)


def check_text(request: GenerationRequest, model: str) -> None:
    """Read the text as the renderer of a served model will.

    Raises:
        PromptError: it cannot be read.
        RequestError, ManifestError: its task cannot be done.
    """
    from tilemix.prompts.rewrite import rewrite
    from tilemix.prompts.template import find_template
    from tilemix.weights import load_manifest
    from tilemix.weights.prompting import make_context
    from tilemix.weights.tasks import find_task

    task = None if request.task is None else find_task(request.task, served=model)
    manifest = load_manifest(model if task is None else task.model)
    context = make_context(
        manifest,
        seed=request.seed or 0,
        steps=request.num_inference_steps or manifest.defaults.num_inference_steps,
    )
    template = find_template(manifest.prompt_template if task is None else task.template)
    rewrite(
        request.prompt,
        template,
        manifest.load_palette(),
        negative_prompt=request.negative_prompt,
        context=context,
    )


def _show_step(done: int, total: int) -> None:
    logger.info("denoise %d/%d %d%%", done, total, 100 * done // total)
