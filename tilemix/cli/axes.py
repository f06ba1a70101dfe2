"""The axes of a sheet that `tilemix compare` draws: `--x seed=1,2,3 --y "prompt=wet,matt,(wet:1.4)"`.

An axis is an input of predict(), or `scheduler`. Of `prompt` the first value is a part of the prompt, and each value
stands in its place in turn. A value with a comma in it stands in double quotes.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilemix.cli.measure import list_shares
from tilemix.cli.predict import check_text
from tilemix.errors import LIST_SEPARATOR, InputError
from tilemix.inputs import load_inputs
from tilemix.samplers import find_sampler, load_samplers

if TYPE_CHECKING:
    from PIL.Image import Image

    from tilemix.request import GenerationRequest

logger = logging.getLogger(__name__)

PROMPT, SCHEDULER, LORA_SCALE = "prompt", "scheduler", "lora_scale"
NOT_AXES = {"output_format"}
MOST_VALUES = 16
MOST_CHARACTERS = 80  # of what was typed, in a message


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a sheet."""

    name: str
    values: tuple[Any, ...]

    @classmethod
    def read(cls, text: str) -> Axis:
        """Return the axis that an option names.

        Raises:
            InputError: it is not NAME=VALUE,VALUE,..., or a value cannot be used.
        """
        name, _, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        names = [*(one for one in load_inputs() if one not in NOT_AXES), SCHEDULER]
        if name not in names:
            known = LIST_SEPARATOR.join(names)
            raise InputError("compare-unknown-axis", typed=name[:MOST_CHARACTERS], known=known)
        texts = [value.strip() for value in next(csv.reader([listed], skipinitialspace=True), [])]
        if not texts or len(set(texts)) < len(texts) or len(texts) > MOST_VALUES:
            raise InputError("compare-list", field=name, typed=listed[:MOST_CHARACTERS], most=MOST_VALUES)
        if name == SCHEDULER:
            samplers = [find_sampler(value) for value in texts]
            for value, sampler in zip(texts, samplers, strict=True):
                if sampler is None:
                    known = LIST_SEPARATOR.join(load_samplers())
                    raise InputError("input-unknown-choice", field=name, typed=value[:40], known=known)
            return cls(name, tuple(sampler.name for sampler in samplers if sampler is not None))
        row = load_inputs()[name]
        values = tuple(row.read(value) for value in texts)
        for read in values:
            row.check(read)
        return cls(name, values)

    @property
    def labels(self) -> list[str]:
        """The values as the sheet shows them."""
        if self.name == PROMPT:
            return [str(value) for value in self.values]
        return [f"{self.name} {value}" for value in self.values]


@dataclass(frozen=True, slots=True)
class Place:
    """A picture of a sheet: where it stands, and how it is drawn."""

    row: int
    column: int
    request: GenerationRequest
    scheduler: str | None  # None: the model's own


def list_places(x: Axis | None, y: Axis | None, inputs: Mapping[str, Any]) -> Iterator[Place]:
    """Yield the pictures of a sheet; those of one task and LoRA scale come together, so that it is merged once.

    Args:
        x: one column for each value.
        y: one row for each value.
        inputs: of every picture, the prompt among them.

    Raises:
        InputError: both axes are the same, or the prompt does not hold the first value of an axis of it.
        PromptError, RequestError: a picture cannot be asked for.
    """
    axes = [axis for axis in (x, y) if axis is not None]
    if len({axis.name for axis in axes}) < len(axes):
        raise InputError("compare-same-axes", name=axes[0].name)
    for axis in axes:
        if axis.name == PROMPT and axis.values[0] not in inputs[PROMPT]:
            raise InputError("compare-no-part", field=PROMPT, typed=axis.values[0][:MOST_CHARACTERS])
    places = [
        _place(row, column, x, y, dict(inputs))
        for row in range(len(y.values) if y else 1)
        for column in range(len(x.values) if x else 1)
    ]
    yield from sorted(places, key=lambda place: (place.request.task or "", place.request.lora_scale or 0))


def _place(row: int, column: int, x: Axis | None, y: Axis | None, inputs: dict[str, Any]) -> Place:
    from tilemix.request import GenerationRequest

    scheduler = None
    for axis, number in ((x, column), (y, row)):
        if axis is None:
            continue
        value = axis.values[number]
        if axis.name == SCHEDULER:
            scheduler = value
        elif axis.name == PROMPT:
            inputs[PROMPT] = inputs[PROMPT].replace(axis.values[0], value)
        else:
            inputs[axis.name] = value
    return Place(row, column, GenerationRequest(**inputs), scheduler)


def draw_axes(
    model: str, prompt: str, *, x: str | None, y: str | None, fixed: Sequence[str]
) -> tuple[Image, Any]:
    """Return a sheet of a model's pictures, and what was measured, as JSON values.

    Args:
        model: a packaged model.
        prompt: of every picture.
        x: the axis of the columns, as typed.
        y: the axis of the rows, as typed.
        fixed: inputs of every picture, each as NAME=VALUE.

    Raises:
        InputError: an axis or an input cannot be used.
        TilemixError: a picture cannot be drawn.
    """
    from tilemix.pictures.sheet import SIDE, Cell, draw_sheet

    columns, rows = (None if text is None else Axis.read(text) for text in (x, y))
    inputs = {"seed": 0, PROMPT: prompt} | {axis.name: axis.values[0] for axis in map(_read_fixed, fixed)}
    places = list(list_places(columns, rows, inputs))
    height, width = (1 + max(getattr(place, side) for place in places) for side in ("row", "column"))
    grid = [[Cell(None)] * width for _ in range(height)]
    shares: list[list[dict[str, float]]] = [[{} for _ in range(width)] for _ in range(height)]

    from tilemix.drawing import measure_mix
    from tilemix.models import ModelManager
    from tilemix.pipelines.settings import read_settings

    for place in places:  # a slip is told before a model is loaded
        check_text(place.request, model)
    models = ModelManager(model, read_settings(os.environ))
    for number, place in enumerate(places, start=1):
        renderer = models.load(place.request.task)
        own = renderer if place.scheduler is None else renderer.with_scheduler(place.scheduler)
        rendered = own.render(place.request)
        measured = measure_mix(rendered)
        found = measured.shares if measured else {}
        grid[place.row][place.column] = Cell(rendered.pixels, list_shares(found))
        shares[place.row][place.column] = found
        logger.info("picture %d of %d: %s", number, len(places), list_shares(found) or "no mix to measure")
    largest = max(max(cell.pixels.shape) for row in grid for cell in row if cell.pixels is not None)
    sheet = draw_sheet(
        grid,
        side=min(largest, SIDE),
        columns=columns.labels if columns else (),
        rows=rows.labels if rows else (),
        title=prompt,
    )
    return sheet, {"x": columns, "y": rows, "shares": shares}


def _read_fixed(text: str) -> Axis:
    axis = Axis.read(text)
    if axis.name == SCHEDULER:
        known = LIST_SEPARATOR.join(name for name in load_inputs() if name not in NOT_AXES)
        raise InputError("compare-unknown-axis", typed=axis.name, known=known)
    if len(axis.values) > 1:
        raise InputError("compare-list", field=axis.name, typed=text[:MOST_CHARACTERS], most=1)
    return axis
