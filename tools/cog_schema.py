"""The OpenAPI document of the prediction server, made from the signature in predict.py.

    python -m tools.cog_schema        writes .cog/openapi_schema.json

The server checks requests against this file; without the file it accepts any value. The Cog command line writes
the same document, laid out differently, when it builds the image. Like Cog, this module reads predict.py without
running it: the input `seed: Optional[int] = Input(default=None, ge=0)` becomes

    "seed": {"title": "Seed", "type": "integer", "default": null, "nullable": true, "minimum": 0}

It supports only what predict.py may use: str, int, float, bool and Path, each plain or Optional, as inputs, and
one Path as the output. Anything else is an error.

Source: OpenAPI 3.0.2, https://spec.openapis.org/oas/v3.0.2; cog's docs/http.md and docs/python.md.
"""

from __future__ import annotations

import ast
import json
import logging
import sys
from pathlib import Path
from typing import TypeAlias

from tilemix.errors import TilemixError
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT

PREDICTOR = ROOT / "predict.py"
SCHEMA = ROOT / ".cog" / "openapi_schema.json"  # where the server looks for it, in its working folder

JSON_TYPES = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
}
LIMITS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
}

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, Json]

logger = logging.getLogger(__name__)


def make_schema(source: str) -> JsonObject:
    """Return the OpenAPI document for the source text of a predict.py.

    Raises:
        TilemixError: there is no `Predictor.predict()`, or it uses something that is not supported.
    """
    predict = _find_predict(ast.parse(source))
    output = ast.unparse(predict.returns) if predict.returns else "?"
    if output != "Path":
        raise TilemixError("schema-unsupported", found=f"predict() -> {output}", expected="Path")
    properties: JsonObject = {}
    required: list[Json] = []
    choices: JsonObject = {}
    for order, (argument, default) in enumerate(_read_parameters(predict)):
        name = argument.arg
        json_type, nullable = _read_annotation(name, argument.annotation)
        values = _read_input(name, default)
        field: JsonObject = {"x-order": order}
        if "choices" in values:
            field["allOf"] = [{"$ref": f"#/components/schemas/{name}"}]
            choices[name] = {
                "title": name,
                "description": "An enumeration.",
                "enum": values["choices"],
                **json_type,
            }
        else:
            field |= {"title": _title(name), **json_type}
        # In Cog, None as the default of a plain type means that there is no default.
        if "default" in values and (nullable or values["default"] is not None):
            field["default"] = values["default"]
        elif not nullable:
            required.append(name)
        if nullable:
            field["nullable"] = True
        if "description" in values:
            field["description"] = values["description"]
        field |= {keyword: values[limit] for limit, keyword in LIMITS.items() if limit in values}
        properties[name] = field

    inputs: JsonObject = {"title": "Input", "type": "object", "properties": properties}
    if required:
        inputs["required"] = required
    return _document({"Input": inputs, "Output": {"title": "Output", **JSON_TYPES["Path"]}, **choices})


def _find_predict(module: ast.Module) -> ast.FunctionDef:
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == "Predictor":
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == "predict":
                    return member
    raise TilemixError("schema-no-predict")


def _read_parameters(predict: ast.FunctionDef) -> list[tuple[ast.arg, ast.expr | None]]:
    """Return the parameters after self, each with its default."""
    parameters = predict.args
    if parameters.posonlyargs or parameters.kwonlyargs or parameters.vararg or parameters.kwarg:
        raise TilemixError(
            "schema-unsupported",
            found=f"predict({ast.unparse(parameters)})",
            expected="predict(self, name, ...)",
        )
    arguments = parameters.args[1:]
    missing = [None] * (len(arguments) - len(parameters.defaults))
    return list(zip(arguments, [*missing, *parameters.defaults], strict=True))


def _read_annotation(name: str, annotation: ast.expr | None) -> tuple[JsonObject, bool]:
    """Return the JSON type of an annotation, and whether None is allowed."""
    text = ast.unparse(annotation) if annotation else "?"
    nullable = text.startswith("Optional[")
    json_type = JSON_TYPES.get(text.removeprefix("Optional[").removesuffix("]") if nullable else text)
    if json_type is None:
        raise TilemixError(
            "schema-unsupported", found=f"{name}: {text}", expected=", ".join([*JSON_TYPES, "Optional[...]"])
        )
    return dict(json_type), nullable


def _read_input(name: str, default: ast.expr | None) -> JsonObject:
    """Return the arguments of a parameter's `Input()`."""
    if not isinstance(default, ast.Call) or ast.unparse(default.func) != "Input" or default.args:
        found = ast.unparse(default) if default else "?"
        raise TilemixError("schema-unsupported", found=f"{name} = {found}", expected="Input(name=value, ...)")
    known = ("default", "description", "choices", *LIMITS)
    values: JsonObject = {}
    for keyword in default.keywords:
        if keyword.arg not in known:
            raise TilemixError(
                "schema-unsupported",
                found=f"{name} = Input({ast.unparse(keyword)})",
                expected=", ".join(known),
            )
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            found = f"{name} = Input({ast.unparse(keyword)})"
            raise TilemixError(
                "schema-unsupported", found=found, expected=f"{keyword.arg}=1, 'a', ['a', 'b'], ..."
            ) from error
    return values


def _title(name: str) -> str:
    return name.replace("_", " ").title()


def _document(schemas: JsonObject) -> JsonObject:
    """Return the whole document; `schemas` are those of the input, the output and the choices."""
    text: JsonObject = {"type": "string"}
    time: JsonObject = {"type": "string", "format": "date-time"}
    own: JsonObject = {
        "PredictionRequest": _object("PredictionRequest", id=text, input=_reference("Input")),
        "PredictionResponse": _object(
            "PredictionResponse",
            input=_reference("Input"),
            output=_reference("Output"),
            id=text,
            version=text,
            created_at=time,
            started_at=time,
            completed_at=time,
            status=text,
            error=text,
            logs=text,
            metrics={"type": "object"},
        ),
        "Status": {
            "title": "Status",
            "description": "An enumeration.",
            "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
            "type": "string",
        },
        "HTTPValidationError": _object(
            "HTTPValidationError", detail={"type": "array", "items": _reference("ValidationError")}
        ),
        "ValidationError": {
            "title": "ValidationError",
            "type": "object",
            "required": ["loc", "msg", "type"],
            "properties": {
                "loc": {
                    "title": "Location",
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        },
    }
    body: JsonObject = {"content": _json_content(_reference("PredictionRequest"))}
    prediction_id: JsonObject = {
        "required": True,
        "schema": {"title": "Prediction Id", "type": "string"},
        "name": "prediction_id",
        "in": "path",
    }
    refused: JsonObject = {"422": _response("Validation Error", _reference("HTTPValidationError"))}
    done: JsonObject = {"200": _response("Successful Response", {})}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {
            "/": {"get": {"summary": "Root", "operationId": "root__get", "responses": done}},
            "/health-check": {
                "get": {
                    "summary": "Healthcheck",
                    "operationId": "healthcheck_health_check_get",
                    "responses": done,
                }
            },
            "/predictions": {
                "post": {
                    "summary": "Predict",
                    "description": "Run a single prediction on the model",
                    "operationId": "predict_predictions_post",
                    "requestBody": body,
                    "responses": {
                        "200": _response("Successful Response", _reference("PredictionResponse")),
                        **refused,
                    },
                }
            },
            "/predictions/{prediction_id}/cancel": {
                "post": {
                    "summary": "Cancel",
                    "operationId": "cancel_predictions__prediction_id__cancel_post",
                    "parameters": [prediction_id],
                    "responses": {**done, **refused},
                }
            },
        },
        "components": {"schemas": {**schemas, **own}},
    }


def _object(title: str, **properties: JsonObject) -> JsonObject:
    """Return the schema of an object; in OpenAPI 3.0 a reference must not have a title beside it."""
    titled: JsonObject = {
        name: schema if "$ref" in schema else {"title": _title(name), **schema}
        for name, schema in properties.items()
    }
    return {"title": title, "type": "object", "properties": titled}


def _reference(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_content(schema: JsonObject) -> JsonObject:
    return {"application/json": {"schema": schema}}


def _response(description: str, schema: JsonObject) -> JsonObject:
    return {"description": description, "content": _json_content(schema)}


def write_schema(predictor: Path = PREDICTOR, schema: Path = SCHEMA) -> None:
    """Write the document for `predictor` to the file `schema`."""
    text = json.dumps(make_schema(predictor.read_text(encoding="utf-8")), indent=2, ensure_ascii=False) + "\n"
    schema.parent.mkdir(exist_ok=True)
    write_atomically(schema, text.encode())
    logger.info("wrote %s", schema)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    write_schema()
