"""The tools of a request: what was offered, which may or must be called, and the grammar of calls that must."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar, json_rule
from remuda.server.structured import lark_string, schema_text
from remuda.server.tool_parsers import CallFormat

MAX_TOOLS: Final = 128
MAX_DESCRIPTION_CHARS: Final = 16_384
# Calls in one answer, where they are enforced.
MAX_ENFORCED_CALLS: Final = 16

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# OpenAI: without parameters a function takes none.
_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
# Arguments may be listed in these as well.
_COMBINING: Final = ("$ref", "allOf", "anyOf", "oneOf")

ToolMode = Literal["auto", "required"]


@dataclass(frozen=True)
class FunctionTool:
    """A function that the model may call. `parameters` is a JSON schema of its arguments."""

    name: str
    description: str | None
    parameters: dict[str, Any]

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.parameters}}


@dataclass(frozen=True)
class ToolSet:
    """What a request says of tools. `offered` are shown to the model, `callable_names` may be called.

    mode: "required" enforces a call of one of `callable_names`, at least. is_parallel: several calls may be made.
    """

    offered: tuple[FunctionTool, ...]
    callable_names: frozenset[str]
    mode: ToolMode
    is_parallel: bool

    def grammar(self, call_format: CallFormat, answer: Grammar | None) -> Grammar | None:
        """What enforces the calls, where they must be made, and the shape of an answer, where one is asked for.

        Where calls may be made, a JSON answer may be calls instead. An answer of another shape stays alone, and
        cannot be asked for beside calls that must be made: raises InvalidRequestError.
        """
        is_json = answer is not None and answer.kind == "json_schema"
        if self.mode == "required" and answer is not None and not is_json:
            raise answer.error("cannot be combined with a tool_choice that requires a call")
        if self.mode == "required":
            return Grammar("lark", "start: calls\n" + self._rules(call_format), "tools")
        if answer is None or not is_json:
            return answer
        rule = f"answer: {json_rule(json.loads(answer.text))}\n"
        return Grammar("lark", f"start: answer | calls\n{rule}{self._rules(call_format)}", answer.param)

    def _rules(self, call_format: CallFormat) -> str:
        """Lark's rules for calls of the functions that may be called."""
        tools = [tool for tool in self.offered if tool.name in self.callable_names]
        calls = " | ".join(f"call_{i}" for i in range(len(tools)))
        more = f" ({lark_string(call_format.separator)} call){{0,{MAX_ENFORCED_CALLS - 1}}}"
        rules = [f"calls: call{more if self.is_parallel else ''}", f"call: {calls}"]
        for i, tool in enumerate(tools):
            before, after = call_format.around_arguments(tool.name)
            rules.append(f"call_{i}: {lark_string(before)} arguments_{i} {lark_string(after)}")
            rules.append(f"arguments_{i}: {json_rule(_closed(tool.parameters))}")
        return "\n".join(rules) + "\n"


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    """A schema that lists arguments, and says nothing of others, is taken to have no others."""
    is_open = "properties" not in parameters or any(name in parameters for name in _COMBINING)
    return parameters if is_open else {"additionalProperties": False, **parameters}


def parse_tools(tools: object, tool_choice: object, parallel_tool_calls: bool | None) -> ToolSet | None:
    """The tools of a request, None where none may be called. Raises InvalidRequestError.

    Both forms are taken: of Chat Completions, with a `function` inside, and of Responses, which is flat.
    """
    offered = _functions(tools)
    mode, names = _choice(tool_choice, [tool.name for tool in offered])
    if not offered or mode is None:
        return None
    if not _is_named(tool_choice):
        # Of `allowed_tools` the model need not know the others.
        offered = [tool for tool in offered if tool.name in names]
    return ToolSet(tuple(offered), frozenset(names), mode, parallel_tool_calls is not False)


def _functions(tools: object) -> list[FunctionTool]:
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise _error("tools", "must be a list")
    if len(tools) > MAX_TOOLS:
        raise _error("tools", f"{len(tools)} tools are over the limit of {MAX_TOOLS}")
    found = [_function(f"tools.{i}", tool) for i, tool in enumerate(tools)]
    for i, tool in enumerate(found):
        if any(tool.name == other.name for other in found[:i]):
            raise _error("tools", f"two functions have the name {tool.name!r}")
    return found


def _function(place: str, tool: object) -> FunctionTool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or kind != "function":
        raise _error("tools", f"{place}: the type {str(kind)[:60]!r} is not supported, only function")
    function = tool if "name" in tool else tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _error("tools", f"{place}: the name must be 1 to 64 letters, digits, dashes or underscores")
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        raise _error("tools", f"{place}: the description must be a string")
    if description is not None and len(description) > MAX_DESCRIPTION_CHARS:
        raise _error("tools", f"{place}: a description of {len(description)} characters is too long")
    if parameters is None:
        return FunctionTool(name, description, _NO_PARAMETERS)
    schema_text(parameters, "tools")
    if parameters.get("type", "object") != "object":
        raise _error("tools", f"{place}: the parameters must be of the type object")
    return FunctionTool(name, description, {"type": "object", **parameters})


def _choice(choice: object, names: Sequence[str]) -> tuple[ToolMode | None, Sequence[str]]:
    """Whether, and of which tools, calls may or must be made."""
    if choice in (None, "auto"):
        return "auto", names
    if choice == "none":
        return None, ()
    if not names:
        raise _error("tool_choice", "needs tools")
    if choice == "required":
        return "required", names
    if isinstance(choice, dict) and choice.get("type") == "function":
        return "required", [_known(choice, names)]
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools", choice), names)
    raise _error("tool_choice", "must be none, auto, required, or name a function or allowed_tools")


def _is_named(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("type") == "function"


def _allowed(allowed: object, names: Sequence[str]) -> tuple[ToolMode, Sequence[str]]:
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    if mode not in ("auto", "required") or not isinstance(tools, list) or not 1 <= len(tools) <= MAX_TOOLS:
        raise _error("tool_choice", "allowed_tools must have a mode, auto or required, and a list of tools")
    return mode, [_known(tool, names) for tool in tools]


def _known(entry: object, names: Sequence[str]) -> str:
    """The function that `{"function": {"name": …}}` or `{"name": …}` names."""
    inner = entry.get("function", entry) if isinstance(entry, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or name not in names:
        raise _error("tool_choice", f"names no function of tools: {str(name)[:80]!r}")
    return name


def _error(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {reason}", param=param)
