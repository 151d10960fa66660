"""The tools and the shape of text that `/v1/responses` is asked for: what it alone refuses, and their echo.

The response object repeats them in the form that OpenAI's clients read, whatever else the request had beside it.
"""

from typing import Any, Final

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar
from remuda.server.structured import response_format_grammar
from remuda.server.tools import ToolSet, parse_tools

_FORMAT: Final = "text.format"
_TOOL_KEYS: Final = frozenset({"type", "name", "description", "parameters", "strict"})
# Keys of function tools that are not served, with the values that ask for nothing.
_NEUTRAL_TOOL_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "allowed_callers": (["direct"],),
    "async": (False,),
    "defer_loading": (False,),
}
# Tells the model nothing that it is shown.
_HARMLESS_TOOL_KEYS: Final = frozenset({"output_schema"})


def parse_response_tools(tools: object, choice: object, is_parallel: bool | None) -> ToolSet | None:
    """The tools of a request, None where none may be called. Raises InvalidRequestError."""
    found = parse_tools(tools, choice, is_parallel)
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        _check_keys(f"tools.{i}", tool)
    return found


def _check_keys(place: str, tool: dict[str, Any]) -> None:
    for key, value in tool.items():
        neutral = value is None or value in _NEUTRAL_TOOL_VALUES.get(key, ())
        if key not in _TOOL_KEYS | _HARMLESS_TOOL_KEYS and not neutral:
            raise InvalidRequestError(f"tools: {place}.{key[:60]} is not supported", param="tools")
    _check_is("tools", f"{place}.strict", tool.get("strict"), bool)


def text_grammar(text_format: dict[str, Any] | None) -> Grammar | None:
    """What enforces the shape; None for free text. Raises InvalidRequestError."""
    grammar = response_format_grammar(text_format, _FORMAT)
    described = _described(text_format or {})
    _check_is(_FORMAT, f"{_FORMAT}.strict", described.get("strict"), bool)
    _check_is(_FORMAT, f"{_FORMAT}.description", described.get("description"), str)
    return grammar


def echoed_format(text_format: dict[str, Any] | None) -> dict[str, Any]:
    """The shape, as the response object has it."""
    given = text_format or {"type": "text"}
    if given["type"] != "json_schema":
        return {"type": given["type"]}
    described = _described(given)
    return {"type": "json_schema", **{k: described.get(k) for k in ("name", "description", "schema", "strict")}}


def echoed_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools, as the response object has them."""
    return [
        {"type": "function", **{k: tool.get(k) for k in ("name", "description", "parameters", "strict")}}
        for tool in tools or []
    ]


def echoed_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any]:
    """The choice, as the response object has it."""
    if not isinstance(choice, dict):
        return choice or "auto"
    if choice["type"] == "function":
        return {"type": "function", "name": choice.get("function", choice)["name"]}
    allowed = choice.get("allowed_tools", choice)
    return {"type": "allowed_tools", "mode": allowed["mode"], "tools": allowed["tools"]}


def _described(text_format: dict[str, Any]) -> dict[str, Any]:
    """Name, schema and what belongs to them: beside the type, or as Chat Completions gives them."""
    inner = text_format.get("json_schema")
    return inner if "schema" not in text_format and isinstance(inner, dict) else text_format


def _check_is(param: str, place: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        name = "true or false" if kind is bool else "a string"
        raise InvalidRequestError(f"{place} must be {name}", param=param)
