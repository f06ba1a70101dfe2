"""What other programs send to `/api/generate-image` and `/api/predictions`, checked as `predict()` does.

The fields are texts in a form and values in JSON. Two names are this API's own: `lora_alpha` is `lora_scale`,
and `task` is a packaged model's name; `use_model_manager` is taken and means nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import RequestError
from tilemix.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

INTEGER = re.compile(r"-?[0-9]{1,20}")
NUMBER = re.compile(r"-?[0-9]{1,10}(\.[0-9]{1,10})?")
FORM_FIELDS = (
    "prompt",
    "task",
    "use_model_manager",
    "width",
    "height",
    "seed",
    "negative_prompt",
    "lora_alpha",
)
INTEGERS = frozenset({"width", "height", "seed"})


def read_form(fields: Iterable[tuple[str, object]], *, model: str) -> GenerationRequest:
    """Return the request in the fields of a form; an empty number or task counts as left out.

    Raises:
        RequestError: an unknown field, one that is there twice or is a file, a number that is none, another model.
        PromptError: a text cannot be used.
    """
    given: dict[str, str] = {}
    for name, value in fields:
        if name not in FORM_FIELDS:
            raise RequestError("input-unknown", name=name[:40], known=", ".join(FORM_FIELDS))
        if not isinstance(value, str):
            raise RequestError("input-is-file", field=name)
        if name in given:
            raise RequestError("input-twice", field=name)
        given[name] = value
    if given.get("task") and given["task"] != model:
        raise RequestError("input-unknown-model", field="task", typed=given["task"][:40], model=model)
    inputs: dict[str, Any] = {name: read_integer(given[name]) for name in INTEGERS if given.get(name)}
    if given.get("lora_alpha"):
        inputs["lora_scale"] = read_number(given["lora_alpha"])
    if "negative_prompt" in given:
        inputs["negative_prompt"] = given["negative_prompt"]
    if "prompt" not in given:
        raise RequestError("input-missing", field="prompt")
    return GenerationRequest(prompt=given["prompt"], **inputs)


def read_inputs(body: bytes) -> GenerationRequest:
    """Return the request in a JSON object of `predict()`'s inputs; null counts as left out.

    Raises:
        RequestError: no JSON object, an unknown or missing input, a number or choice that cannot be used.
        PromptError: a text cannot be used.
    """
    try:
        inputs = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RequestError("input-not-json", reason=str(error)) from error
    known = GenerationRequest.__dataclass_fields__
    for name in inputs:
        if name not in known:
            raise RequestError("input-unknown", name=name[:40], known=", ".join(known))
    given = {name: value for name, value in inputs.items() if value is not None}
    if "prompt" not in given:
        raise RequestError("input-missing", field="prompt")
    return GenerationRequest(**given)


def read_integer(text: str) -> int | str:
    """Return a field's integer, or its text, which the request refuses by its name."""
    return int(text) if INTEGER.fullmatch(text) else text


def read_number(text: str) -> float | str:
    """Return a field's number, or its text, which the request refuses by its name."""
    return float(text) if NUMBER.fullmatch(text) else text
