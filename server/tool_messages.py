"""Tools and calls in a conversation: for templates that know them, and as plain text for those that do not.

The plain text is that of the Hermes models, which write and read calls as `<tool_call>{json}</tool_call>`.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from remuda.engine.errors import InvalidRequestError
from remuda.server.json_body import MAX_PARTS, num_parts
from remuda.server.tools import MAX_TOOLS, FunctionTool

_MAX_NAME_CHARS: Final = 256
_INSTRUCTION: Final = (
    "You may call functions to help with the user's request. These are their signatures:\n"
    "<tools>\n{tools}\n</tools>\nTo call one, write an object with its name and arguments between tags:\n"
    '<tool_call>\n{{"name": <name>, "arguments": <arguments as JSON object>}}\n</tool_call>'
)


def parse_tool_calls(place: str, calls: object) -> list[dict[str, Any]]:
    """`tool_calls` of an assistant's message, whose arguments become objects, as templates expect them.

    Arguments that are not a JSON object, such as those of an answer that was cut, stay the text that they are.
    Raises InvalidRequestError.
    """
    if not isinstance(calls, list) or len(calls) > MAX_TOOLS:
        raise _error(place, f"must be a list of at most {MAX_TOOLS} calls")
    return [_parse_call(f"{place}.{i}", call) for i, call in enumerate(calls)]


def check_arguments(calls: Iterable[object]) -> None:
    """Bound what the arguments of all calls will be as objects: for the body that brought them they are strings.

    calls: the `tool_calls` of messages, whatever they are. Raises InvalidRequestError.
    """
    functions = [
        call.get("function")
        for of_one in calls
        if isinstance(of_one, list)
        for call in of_one
        if isinstance(call, dict)
    ]
    texts = [function.get("arguments") for function in functions if isinstance(function, dict)]
    total = sum(num_parts(text.encode()) for text in texts if isinstance(text, str))
    if total > MAX_PARTS:
        reason = f"the arguments of all calls have {total} objects, lists and names, over the limit of {MAX_PARTS}"
        raise _error("messages", reason)


def _parse_call(place: str, call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
        raise _error(place, "must be a call of a function")
    name, arguments, call_id = function.get("name"), function.get("arguments"), call.get("id")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise _error(place, "the function must have a name and arguments, both strings")
    if not isinstance(call_id, str) or max(len(name), len(call_id)) > _MAX_NAME_CHARS:
        raise _error(place, f"the id must be a string; it and the name have at most {_MAX_NAME_CHARS} characters")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": _object_or_text(arguments)}}


def check_call_id(place: str, call_id: object) -> str:
    """The `tool_call_id` of a tool's message. Raises InvalidRequestError."""
    if not isinstance(call_id, str) or len(call_id) > _MAX_NAME_CHARS:
        raise _error(place, f"must be a string of at most {_MAX_NAME_CHARS} characters")
    return call_id


def _object_or_text(arguments: str) -> object:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def plain_messages(messages: Sequence[dict[str, Any]], tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    """The conversation for a template without tools: a system message tells of them, calls and results are text.

    Results that follow each other become one message, since many templates want user and assistant in turn.
    """
    plain: list[dict[str, Any]] = []
    if tools:
        # After what the conversation itself begins with.
        told = list(itertools.takewhile(lambda message: message["role"] == "system", messages))
        content = "\n\n".join([*(message["content"] for message in told), _instruction(tools)])
        plain.append({"role": "system", "content": content})
        messages = messages[len(told) :]
    # Of the results that follow each other; joined once, since there may be tens of thousands.
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if results:
            plain.append({"role": "user", "content": "\n".join(results)})
            results = []
        if "tool_calls" in message:
            calls = [_call_text(call["function"]) for call in message["tool_calls"]]
            content = "\n".join([message["content"], *calls] if message["content"] else calls)
            plain.append({"role": "assistant", "content": content})
        else:
            plain.append(message)
    if results:
        plain.append({"role": "user", "content": "\n".join(results)})
    return plain


def _instruction(tools: Sequence[FunctionTool]) -> str:
    return _INSTRUCTION.format(tools="\n".join(_dumps(tool.for_template()) for tool in tools))


def _call_text(function: dict[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{_dumps(call)}\n</tool_call>"


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _error(place: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{place}: {reason}", param=place)
