"""The inputs in the studio's OpenAPI document, made from the table of inputs.

    python -m tools.studio_schema        rewrites the schemas Form and Inputs in tilemix/studio/openapi.json

The rest of the document is written by hand.

Source: OpenAPI 3.1.0, https://spec.openapis.org/oas/v3.1.0; JSON Schema 2020-12.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilemix.inputs import ChoiceInput, IntegerInput, NumberInput, TextInput, describe, load_inputs
from tilemix.studio.api import OPENAPI
from tilemix.studio.web.api_inputs import FORM_INPUTS
from tilemix.system.atomic import write_atomically

if TYPE_CHECKING:
    from tilemix.inputs import Input

OWN_FIELDS = {  # of the form, beside predict()'s inputs
    "use_model_manager": {"type": "string", "description": "Accepted and ignored."},
}

logger = logging.getLogger(__name__)


def make_schemas() -> dict[str, Any]:
    """Return the schemas of a form's fields and of the inputs as JSON."""
    table = load_inputs()
    required = [row.name for row in table.values() if row.required]
    form = {
        field: OWN_FIELDS[field] if name is None else _allow_empty(_make_schema(table[name]))
        for field, name in FORM_INPUTS.items()
    }
    inputs = {
        name: _make_schema(row) if row.required else _allow_null(_make_schema(row))
        for name, row in table.items()
    }
    return {
        "Form": {
            "type": "object",
            "required": required,
            "additionalProperties": False,
            "description": "predict()'s inputs; an empty number counts as left out.",
            "properties": form,
        },
        "Inputs": {
            "type": "object",
            "required": required,
            "additionalProperties": False,
            "description": "predict()'s inputs; null counts as left out.",
            "properties": inputs,
        },
    }


def write_schemas(path: Path = OPENAPI) -> None:
    """Put the schemas into the document at `path`."""
    document = json.loads(path.read_text(encoding="utf-8"))
    document["components"]["schemas"] |= make_schemas()
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    logger.info("wrote %s", path)


def _make_schema(row: Input) -> dict[str, Any]:
    text = {"description": describe(row, left_out="the model's own")}
    match row:
        case TextInput():
            least = {"minLength": row.min_length} if row.min_length else {}
            return {"type": "string", **least, "maxLength": row.max_length, **text}
        case IntegerInput():
            step = {"multipleOf": row.multiple} if row.multiple > 1 else {}
            return {"type": "integer", "minimum": row.minimum, "maximum": row.maximum, **step, **text}
        case NumberInput():
            return {"type": "number", "minimum": row.minimum, "maximum": row.maximum, **text}
        case ChoiceInput():
            return {"type": "string", "enum": list(row.choices), **text}


def _allow_empty(schema: dict[str, Any]) -> dict[str, Any]:
    if schema["type"] == "string":
        return schema
    description = schema.pop("description")
    return {"anyOf": [schema, {"const": ""}], "description": description}


def _allow_null(schema: dict[str, Any]) -> dict[str, Any]:
    nullable = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    write_schemas()
