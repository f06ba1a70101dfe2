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
            raise RequestError(f"unknown field {name[:40]!r}; known: {', '.join(FORM_FIELDS)}")
        if not isinstance(value, str):
            raise RequestError(f"field {name} is a file; expected text")
        if name in given:
            raise RequestError(f"field {name} stands twice; expected once")
        given[name] = value
    if given.get("task") and given["task"] != model:
        raise RequestError(f"unknown task {given['task'][:40]!r}; this studio serves {model!r}")
    inputs: dict[str, Any] = {name: _read_integer(name, given[name]) for name in INTEGERS if given.get(name)}
    if given.get("lora_alpha"):
        inputs["lora_scale"] = _read_number("lora_alpha", given["lora_alpha"])
    if "negative_prompt" in given:
        inputs["negative_prompt"] = given["negative_prompt"]
    if "prompt" not in given:
        raise RequestError("field prompt is missing")
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
        raise RequestError(f"the body is no JSON object: {error}") from error
    known = GenerationRequest.__dataclass_fields__
    for name in inputs:
        if name not in known:
            raise RequestError(f"unknown input {name[:40]!r}; known: {', '.join(known)}")
    given = {name: value for name, value in inputs.items() if value is not None}
    if "prompt" not in given:
        raise RequestError("input prompt is missing")
    return GenerationRequest(**given)


def _read_integer(name: str, text: str) -> int:
    if not INTEGER.fullmatch(text):
        raise RequestError(f"{name} {text[:40]!r} is no integer")
    return int(text)


def _read_number(name: str, text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise RequestError(f"{name} {text[:40]!r} is no number")
    return float(text)
