"""Reads requests to `/api/generate-image` (form fields) and `/api/predictions` (JSON), as `predict()` does.

Two names belong to the form alone: `lora_alpha` is `lora_scale`, and `use_model_manager` is accepted and ignored. Its
`task` may also be the name of the served model, which means the same as none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import LIST_SEPARATOR, InputError, RequestError
from tilemix.inputs import Input, IntegerInput, NumberInput, TextInput, find_near_input, load_inputs
from tilemix.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Field of the form -> input.
FORM_INPUTS = {
    "prompt": "prompt",
    "task": "task",
    "use_model_manager": None,
    "width": "width",
    "height": "height",
    "seed": "seed",
    "negative_prompt": "negative_prompt",
    "lora_alpha": "lora_scale",
}
FORM_NAMES = {row or field: field for field, row in FORM_INPUTS.items()}  # input, or own name -> field
MOST_CHARACTERS = 40  # of a name or value, in an error


def read_form(fields: Iterable[tuple[str, object]], *, model: str) -> GenerationRequest:
    """Return the request in a form's fields; an empty number counts as left out.

    Raises:
        RequestError: a field is unknown, repeated, a file or not a number.
        PromptError: a text cannot be used.
    """
    given: dict[str, str] = {}
    for name, value in fields:
        if name not in FORM_INPUTS:
            raise _unknown(name, FORM_NAMES)
        if not isinstance(value, str):
            raise RequestError("input-is-file", field=name)
        if name in given:
            raise RequestError("input-twice", field=name)
        given[name] = value
    if given.get("task") == model:
        del given["task"]
    inputs: dict[str, Any] = {}
    try:
        for name, text in given.items():
            row = load_inputs().get(FORM_INPUTS[name] or "")
            if row is not None and (text or isinstance(row, TextInput)):
                inputs[row.name] = row.read(text)
        return _make_request(inputs)
    except InputError as error:
        named = next((name for name, row_name in FORM_INPUTS.items() if row_name == error.field), None)
        if named == error.field:
            raise
        raise type(error)(error.code, field=named, **error.values) from error


def read_inputs(body: bytes) -> GenerationRequest:
    """Return the request in a JSON object of `predict()`'s inputs; null counts as left out.

    Raises:
        RequestError: not a JSON object, an unknown or missing input, an unusable number or choice.
        PromptError: a text cannot be used.
    """
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RequestError("input-not-json", reason=str(error)) from error
    for name in given:
        if name not in load_inputs():
            raise _unknown(name, {each: each for each in load_inputs()})
    inputs = {name: _decode(load_inputs()[name], raw) for name, raw in given.items()}
    return _make_request({name: value for name, value in inputs.items() if value is not None})


def _decode(row: Input, raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if isinstance(row, IntegerInput | NumberInput):
            row.check(bytes(raw).decode(errors="replace"))  # a number of thousands of digits
        raise RequestError("input-not-json", reason=str(error)) from error


def _make_request(inputs: dict[str, Any]) -> GenerationRequest:
    for row in load_inputs().values():
        if row.required and row.name not in inputs:
            raise RequestError("input-missing", field=row.name)
    return GenerationRequest(**inputs)


def _unknown(name: str, known: Mapping[str, str]) -> RequestError:
    near = find_near_input(name, known)
    if near is not None:
        return RequestError("input-named-otherwise", name=name[:MOST_CHARACTERS], near=known[near])
    return RequestError(
        "input-unknown", name=name[:MOST_CHARACTERS], known=LIST_SEPARATOR.join(known.values())
    )
