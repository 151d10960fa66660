"""The `input` of `/v1/responses`: into items as they are kept and listed, and from items to chat messages.

Text alone: messages, and the calls of functions with their outputs. Everything else is a 400 that names its place.
"""

import secrets
from typing import Any, Final

from remuda.engine.errors import InvalidRequestError
from remuda.server.schemas import ChatMessage

Item = dict[str, Any]

_INPUT_ROLES: Final = ("user", "system", "developer")
# Fields of each type of item; those after the bar carry nothing for a text model.
_FIELDS: Final = {
    "message": ({"type", "role", "content"}, {"id", "status", "phase"}),
    "function_call": ({"type", "call_id", "name", "arguments"}, {"id", "status"}),
    "function_call_output": ({"type", "call_id", "output"}, {"id", "status", "name"}),
}
_ID_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
# Types of content parts that are text, and the key that holds it.
_TEXT_KEYS: Final = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(24)}"


def parse_input(value: object) -> list[Item]:
    """Items with ids of ours, as the listing of input items gives them. Raises InvalidRequestError."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise _bad("input", "must be a string or a list of items")
    if not value:
        raise _bad("input", "is an empty list")
    return [_parse_item(f"input.{i}", item) for i, item in enumerate(value)]


def to_messages(instructions: str | None, items: list[Item]) -> list[ChatMessage]:
    """The conversation for the chat template. Items of the assistant that follow each other are one message."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        if item["type"] == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text_of(item["output"])})
            continue
        role = item.get("role", "assistant")
        if role != "assistant" or not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": role, "content": []})
        message = messages[-1]
        if item["type"] == "message":
            message["content"].append(_text_of(item["content"]))
        else:
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
    return [ChatMessage(**{**message, "content": _joined(message["content"])}) for message in messages]


def _joined(content: str | list[str]) -> str | None:
    """The texts of a message in one; None where it has none. Joined once: there may be tens of thousands."""
    return content if isinstance(content, str) else "".join(content) if content else None


def _parse_item(place: str, item: object) -> Item:
    if not isinstance(item, dict):
        raise _bad(place, "must be an object")
    kind = "message" if item.get("type") is None else item["type"]
    if not isinstance(kind, str) or kind not in _FIELDS:
        known = ", ".join(_FIELDS)
        raise _bad(f"{place}.type", f"{str(kind)[:60]!r} is not supported, only {known}")
    needed, harmless = _FIELDS[kind]
    for name, value in item.items():
        if name not in needed | harmless and value is not None:
            raise _bad(f"{place}.{name[:60]}", "is not supported")
    common: Item = {"id": new_id(_ID_PREFIXES[kind]), "type": kind, "status": "completed"}
    if kind == "message":
        return {**common, **_parse_message(place, item)}
    strings = ("call_id", "name", "arguments") if kind == "function_call" else ("call_id",)
    parsed = {name: _string(f"{place}.{name}", item.get(name)) for name in strings}
    if kind == "function_call_output":
        output = item.get("output")
        is_text = isinstance(output, str)
        common["output"] = output if is_text else _parse_parts(f"{place}.output", output, "input_text")
    return {**common, **parsed}


def _parse_message(place: str, item: dict[str, Any]) -> Item:
    role, content = item.get("role"), item.get("content")
    if role != "assistant" and role not in _INPUT_ROLES:
        known = ", ".join((*_INPUT_ROLES, "assistant"))
        raise _bad(f"{place}.role", f"{str(role)[:40]!r} is not supported, only {known}")
    kind = "output_text" if role == "assistant" else "input_text"
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    return {"role": role, "content": _parse_parts(f"{place}.content", content, kind)}


def _parse_parts(place: str, parts: object, kind: str) -> list[dict[str, Any]]:
    """Text parts, as parts of type `kind`."""
    if not isinstance(parts, list):
        raise _bad(place, "must be a string or a list of text parts")
    texts = []
    for i, part in enumerate(parts):
        key = _TEXT_KEYS.get(str(part.get("type"))) if isinstance(part, dict) else None
        if key is None:
            raise _bad(f"{place}.{i}", f"must be a part of type {', '.join(_TEXT_KEYS)}; others are not supported")
        texts.append(_string(f"{place}.{i}.{key}", part.get(key)))
    extra: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return [{"type": kind, "text": text, **extra} for text in texts]


def _string(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise _bad(place, "must be a string")
    return value


def _text_of(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _bad(place: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{place} {reason}", param=place)
