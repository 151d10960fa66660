"""What `input` of `/v1/responses` may be, for the OpenAPI schema. responses_input.py holds requests to it."""

from typing import Any, Final

_TEXT: Final = {"type": "string"}


def _part(kind: str, key: str) -> dict[str, Any]:
    return {"type": "object", "required": ["type", key], "properties": {"type": {"const": kind}, key: _TEXT}}


def _item(
    kind: str, required: dict[str, Any], optional: tuple[str, ...], *, is_named: bool = True
) -> dict[str, Any]:
    """is_named: its `type` cannot be left out. Keys that are not told must be null."""
    return {
        "type": "object",
        "required": [*(["type"] if is_named else []), *required],
        "properties": {
            "type": {"enum": [kind] if is_named else [kind, None]},
            **required,
            **{key: {} for key in optional},
        },
        "additionalProperties": {"type": "null"},
    }


_CONTENT: Final = {
    "anyOf": [
        _TEXT,
        {
            "type": "array",
            "items": {
                "anyOf": [_part("input_text", "text"), _part("output_text", "text"), _part("refusal", "refusal")]
            },
        },
    ]
}
_ROLE: Final = {"enum": ["user", "assistant", "system", "developer"]}
_ITEM: Final = {
    "anyOf": [
        _item("message", {"role": _ROLE, "content": _CONTENT}, ("id", "status", "phase"), is_named=False),
        _item("function_call", {"call_id": _TEXT, "name": _TEXT, "arguments": _TEXT}, ("id", "status")),
        _item("function_call_output", {"call_id": _TEXT, "output": _CONTENT}, ("id", "status", "name")),
    ]
}
INPUT_SCHEMA: Final[dict[str, Any]] = {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _ITEM}]}
