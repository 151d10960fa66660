"""The OpenAPI schema that is served: FastAPI's, made true. Errors have our body, and there is no 422.

Also what FastAPI cannot know: routes that write their bodies themselves answer as told in `_ANSWERS`.
"""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from remuda.server.access import AccessPolicy
from remuda.server.api_keys import OPEN_PATHS

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
_ANYWHERE: Final = {
    "408": "The request did not arrive in time.",
    "413": "The body is too large.",
    "431": "The headers are too large, or too many.",
    "500": "An internal error.",
    "503": "The server holds as many connections and bodies as it can; see `retry-after`.",
}
_TOO_LONG: Final = {"414": "The URL is too long."}
_NO_KEY: Final = {"401": "The request has no valid API key."}
_OTHER_HOST: Final = {"421": "The server is not served under the name in the header `host`."}
_BEARER: Final = {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this server."}}
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


def serve_schema(app: FastAPI, model_names: Sequence[str], policy: AccessPolicy) -> None:
    """Make `app.openapi`, and so `/openapi.json`, tell the truth. model_names: what requests may ask for."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, model_names, policy)
        return app.openapi_schema

    # FastAPI's documented way to change the schema.
    app.openapi = schema  # type: ignore[method-assign]


def _describe(app: FastAPI, model_names: Sequence[str], policy: AccessPolicy) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    for path, operations in found["paths"].items():
        refusals = {} if path in OPEN_PATHS else _refusals(policy)
        for method, operation in operations.items():
            errors = _ANYWHERE | refusals | (_TOO_LONG if "parameters" in operation else {})
            _correct(operation["responses"], _ANSWERS.get((method, path)), errors)
            if policy.api_keys and path in OPEN_PATHS:
                operation["security"] = []
    if policy.api_keys:
        # Only here: a scheme that need not be used would have clients ask for a key that there is not.
        found.setdefault("components", {})["securitySchemes"] = _BEARER
        found["security"] = [{name: [] for name in _BEARER}]
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


def _refusals(policy: AccessPolicy) -> dict[str, str]:
    """What those get whom the policy does not let in."""
    return (_NO_KEY if policy.api_keys else {}) | (_OTHER_HOST if policy.allowed_hosts else {})


def _correct(responses: dict[str, Any], answer: dict[str, Any] | None, errors: dict[str, str]) -> None:
    """Give one operation its answer, if it has one here, its errors, and the body of those."""
    responses.pop("422", None)
    for status, description in errors.items():
        responses.setdefault(status, {"description": description})
    if answer is not None:
        responses["200"] = {**responses["200"], "content": answer}
    for status, response in responses.items():
        if status >= "400":
            reference = {"schema": {"$ref": "#/components/schemas/Error"}}
            response.setdefault("content", {"application/json": reference})
