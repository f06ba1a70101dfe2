"""What other programs send to `/api/generate-image` and `/api/predictions`, checked as `predict()` does.

The fields are texts in a form and values in JSON. Two names are this API's own: `lora_alpha` is `lora_scale`,
and `task` is a packaged model's name; `use_model_manager` is taken and means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import LIST_SEPARATOR, RequestError
from tilemix.inputs import TextInput, load_inputs
from tilemix.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

# The form's fields, and the input that each is.
FORM_INPUTS = {
    "prompt": "prompt",
    "task": None,
    "use_model_manager": None,
    "width": "width",
    "height": "height",
    "seed": "seed",
    "negative_prompt": "negative_prompt",
    "lora_alpha": "lora_scale",
}
MOST_CHARACTERS = 40  # of a name or value, in an error


def read_form(fields: Iterable[tuple[str, object]], *, model: str) -> GenerationRequest:
    """Return the request in the fields of a form; an empty number or task counts as left out.

    Raises:
        RequestError: a field is unknown, stands there twice or is a file; a number cannot be read; another model
            is asked for.
        PromptError: a text cannot be used.
    """
    given: dict[str, str] = {}
    for name, value in fields:
        if name not in FORM_INPUTS:
            raise _unknown(name, FORM_INPUTS)
        if not isinstance(value, str):
            raise RequestError("input-is-file", field=name)
        if name in given:
            raise RequestError("input-twice", field=name)
        given[name] = value
    if given.get("task") and given["task"] != model:
        typed = given["task"][:MOST_CHARACTERS]
        raise RequestError("input-unknown-model", field="task", typed=typed, model=model)
    inputs: dict[str, Any] = {}
    for name, text in given.items():
        row = load_inputs().get(FORM_INPUTS[name] or "")
        if row is not None and (text or isinstance(row, TextInput)):
            inputs[row.name] = row.read(text)
    return _make_request(inputs)


def read_inputs(body: bytes) -> GenerationRequest:
    """Return the request in a JSON object of `predict()`'s inputs; null counts as left out.

    Raises:
        RequestError: the body is not a JSON object, an input is unknown or missing, a number or choice cannot be
            used.
        PromptError: a text cannot be used.
    """
    try:
        inputs = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RequestError("input-not-json", reason=str(error)) from error
    for name in inputs:
        if name not in load_inputs():
            raise _unknown(name, load_inputs())
    return _make_request({name: value for name, value in inputs.items() if value is not None})


def _make_request(inputs: dict[str, Any]) -> GenerationRequest:
    for row in load_inputs().values():
        if row.required and row.name not in inputs:
            raise RequestError("input-missing", field=row.name)
    return GenerationRequest(**inputs)


def _unknown(name: str, known: Iterable[str]) -> RequestError:
    return RequestError("input-unknown", name=name[:MOST_CHARACTERS], known=LIST_SEPARATOR.join(known))
