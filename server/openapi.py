"""The OpenAPI schema that is served: FastAPI's, made true. Errors have our body, and there is no 422.

Also what FastAPI cannot know: routes that write their bodies themselves answer as told in `_ANSWERS`.
"""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_DESCRIPTION: Final = "Remuda serves recurrent language models over the OpenAI API, with vLLM's extra fields."
_ERROR: Final[dict[str, Any]] = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# What any route may answer: a body is counted even where none is read.
_ANYWHERE: Final = {"413": "The body is too large.", "500": "An internal error."}
# FastAPI's own, which never come: a field at fault is a 400.
_UNUSED_SCHEMAS: Final = ("HTTPValidationError", "ValidationError")


def _object(object_name: str, *required: str) -> dict[str, Any]:
    """An answer of the OpenAI API: which keys are always there."""
    keys = ["id", "object", "model", *required]
    properties: dict[str, Any] = {key: {} for key in keys}
    properties |= {"object": {"const": object_name}, "id": {"type": "string"}, "model": {"type": "string"}}
    return {"type": "object", "required": keys, "properties": properties}


# Without a type: checkers read the events before they hold them against it.
_STREAM: Final = {"text/event-stream": {"schema": {"description": "Events, where `stream` is true."}}}
_RESPONSE: Final = _object(
    "response",
    *("created_at", "status", "error", "incomplete_details", "instructions", "output", "parallel_tool_calls"),
    *("tool_choice", "tools", "temperature", "top_p", "metadata", "usage"),
)
_ANSWERS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("post", "/v1/completions"): {
        "application/json": {"schema": _object("text_completion", "created", "choices", "usage")},
        **_STREAM,
    },
    ("post", "/v1/chat/completions"): {
        "application/json": {"schema": _object("chat.completion", "created", "choices", "usage")},
        **_STREAM,
    },
    ("post", "/v1/responses"): {"application/json": {"schema": _RESPONSE}, **_STREAM},
    ("get", "/v1/responses/{response_id}"): {"application/json": {"schema": _RESPONSE}},
    ("post", "/v1/responses/{response_id}/cancel"): {"application/json": {"schema": _RESPONSE}},
}


# Where the id of a new response may be used.
_RESPONSE_PATH: Final = "/v1/responses/{response_id}"


def serve_schema(app: FastAPI, model_names: Sequence[str]) -> None:
    """Make `app.openapi`, and so `/openapi.json`, tell the truth. model_names: what requests may ask for."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, model_names)
        return app.openapi_schema

    # FastAPI's documented way to change the schema.
    app.openapi = schema  # type: ignore[method-assign]


def _describe(app: FastAPI, model_names: Sequence[str]) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _correct(operation["responses"], _ANSWERS.get((method, path)))
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in _UNUSED_SCHEMAS:
        schemas.pop(name, None)
    schemas["Error"] = _ERROR
    for name, schema in schemas.items():
        if name.endswith("Request") and "model" in schema["properties"]:
            is_required = "model" in schema.get("required", ())
            schema["properties"]["model"] = {"enum": [*model_names, *([] if is_required else [None])]}
    found["paths"]["/v1/responses"]["post"]["responses"]["200"]["links"] = {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {"response_id": "$response.body#/id"},
        }
        for path, operations in found["paths"].items()
        for operation in operations.values()
        if path.startswith(_RESPONSE_PATH)
    }
    return found


def _correct(responses: dict[str, Any], answer: dict[str, Any] | None) -> None:
    """Give one operation its answer, if it has one here, and the body of its errors."""
    responses.pop("422", None)
    for status, description in _ANYWHERE.items():
        responses.setdefault(status, {"description": description})
    if answer is not None:
        responses["200"] = {**responses["200"], "content": answer}
    for status, response in responses.items():
        if status >= "400":
            reference = {"schema": {"$ref": "#/components/schemas/Error"}}
            response.setdefault("content", {"application/json": reference})
