"""The table of inputs, `data/inputs.json`: their names, types, limits, defaults and descriptions.

`predict()` states the same once more, in literals, because Cog reads it without running it; a test holds it to this
table. Everything else takes the table: the request's checks, the manifest's defaults, the command line, both forms,
the studio's OpenAPI document and the page.

A caller may leave out every input that is not required. It is None then, unless it has a default: the model's
manifest decides, or what `left_out` says happens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, TypeVar

import msgspec

from tilemix.errors import LIST_SEPARATOR, PromptError, RequestError, Value

INPUTS_FILE = Path(__file__).parent / "data" / "inputs.json"
INTEGER = re.compile(r"-?[0-9]{1,20}")
NUMBER = re.compile(r"-?[0-9]{1,10}(\.[0-9]{1,10})?")
LIKE = 0.75  # from 0 to 1: how like an unknown name a known one must be to be suggested
MOST_CHARACTERS = 40  # shown of a value that is refused
MOST_BITS = 128  # of a refused integer that an error carries as a number


class _Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    name: str  # the parameter of predict()
    description: str  # without the period at its end
    left_out: str | None = None  # what None means, in words; None: what the model's manifest says
    calibrated: bool = False  # whether a model's calibration may decide instead of its manifest
    required: bool = False
    elsewhere: tuple[str, ...] = ()  # what other predictors call it


class TextInput(_Input, frozen=True, tag="text"):
    """A text. Which characters it may hold, `tilemix.prompts.checks` says."""

    max_length: int
    min_length: int = 0

    def check(self, value: object) -> None:
        """Refuse what is not text; None passes if the input is not required.

        Raises:
            PromptError: the value is not text.
        """
        if not isinstance(value, str) and (self.required or value is not None):
            raise PromptError("input-not-text", field=self.name, typed=_show(value))

    def read(self, text: str) -> str:
        """Return what a form's field says."""
        return text


class IntegerInput(_Input, frozen=True, tag="integer"):
    """An integer; both limits are included."""

    minimum: int
    maximum: int
    multiple: int = 1

    def check(self, value: object) -> None:
        """Refuse what is not an integer within the limits; None passes.

        Raises:
            RequestError: the value cannot be used.
        """
        if value is None:
            return
        low, high, multiple = self.minimum, self.maximum, self.multiple
        # bool is an int in Python, and a server without a schema lets 1.0 pass for 1.
        if type(value) is not int:
            raise RequestError("input-not-integer", field=self.name, typed=_show(value), low=low, high=high)
        if low <= value <= high and not value % multiple:
            return
        typed = _show(value)
        if multiple == 1:
            raise RequestError("input-out-of-range", field=self.name, typed=typed, low=low, high=high)
        raise RequestError(
            "input-not-multiple", field=self.name, typed=typed, low=low, high=high, multiple=multiple
        )

    def read(self, text: str) -> int:
        """Return what a form's field says.

        Raises:
            RequestError: it is not an integer.
        """
        if not INTEGER.fullmatch(text):
            self.check(text)
        return int(text)


class NumberInput(_Input, frozen=True, tag="number"):
    """A number; both limits are included."""

    minimum: int | float
    maximum: int | float

    def check(self, value: object) -> None:
        """Refuse what is not a number within the limits; None passes.

        Raises:
            RequestError: the value cannot be used.
        """
        if value is None:
            return
        typed, low, high = _show(value), self.minimum, self.maximum
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError("input-not-number", field=self.name, typed=typed, low=low, high=high)
        if not low <= value <= high:  # nor is NaN
            raise RequestError("input-out-of-range", field=self.name, typed=typed, low=low, high=high)

    def read(self, text: str) -> float:
        """Return what a form's field says.

        Raises:
            RequestError: it is not a number.
        """
        if not NUMBER.fullmatch(text):
            self.check(text)
        return float(text)


class ChoiceInput(_Input, frozen=True, tag="choice"):
    """One of a few texts."""

    choices: tuple[str, ...]
    default: str

    def check(self, value: object) -> None:
        """Refuse what is not one of the choices.

        Raises:
            RequestError: the value cannot be used.
        """
        if value not in self.choices:
            known = LIST_SEPARATOR.join(self.choices)
            raise RequestError("input-unknown-choice", field=self.name, typed=_show(value), known=known)

    def read(self, text: str) -> str:
        """Return what a form's field says."""
        return text


Input: TypeAlias = TextInput | IntegerInput | NumberInput | ChoiceInput
Kind = TypeVar("Kind", TextInput, IntegerInput, NumberInput, ChoiceInput)


@cache
def load_inputs() -> Mapping[str, Input]:
    """Return the inputs by name, in the order of predict()'s parameters."""
    rows = msgspec.json.decode(INPUTS_FILE.read_bytes(), type=list[Input])
    return MappingProxyType({row.name: row for row in rows})


def find_input(name: str, kind: type[Kind]) -> Kind:
    """Return one input, whose type the caller knows."""
    found = load_inputs()[name]
    assert isinstance(found, kind)
    return found


def find_near_input(name: str, known: Collection[str]) -> str | None:
    """Return the input that an unknown name stands for: other predictors' name for it, or a slip of the keys.

    `known` are the names that may be answered.
    """
    plain = name.casefold().replace("-", "_").replace(" ", "_")
    for row in load_inputs().values():
        if row.name in known and plain in (row.name, *row.elsewhere):
            return row.name
    return next(iter(get_close_matches(plain, known, n=1, cutoff=LIKE)), None)


def describe(row: Input, *, left_out: str | None = None, with_limits: bool = False) -> str:
    """Return an input's description as sentences.

    Args:
        row: the input.
        left_out: what None means where the manifest decides it.
        with_limits: name a number's limits, too.
    """
    text = row.description
    if with_limits and isinstance(row, IntegerInput | NumberInput):
        text += f" ({row.minimum} to {row.maximum})"
    if isinstance(row, IntegerInput) and row.multiple > 1:
        text += f", a multiple of {row.multiple}"
    meaning = row.left_out
    if isinstance(row, ChoiceInput):
        meaning = row.default
    elif meaning is None and not row.required:
        meaning = f"{left_out}, or as calibrated" if left_out is not None and row.calibrated else left_out
    return f"{text}." if meaning is None else f"{text}. Left out: {meaning}."


def _show(value: object) -> Value:
    """Return a refused value as an error carries it: short, and without NaN or inf, which JSON does not have."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        value = str(Decimal(value))  # str() refuses an integer of over 4,300 digits
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 4]}..."
