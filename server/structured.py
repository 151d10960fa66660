"""The shape that a request asks its text to have: OpenAI's `response_format`, vLLM's fields. Enforces nothing."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import MAX_GRAMMAR_CHARS, Grammar

MAX_SCHEMA_DEPTH: Final = 64
MAX_GRAMMAR_CHOICES: Final = 1024

# vLLM's older fields, each with the member of `structured_outputs` that replaced it.
GUIDED_FIELDS: Final = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_MEMBERS: Final = ("json", "regex", "choice", "grammar", "json_object")
_ANY_OBJECT: Final = '{"type": "object"}'
_SCHEMA_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def requested_grammar(fields: Mapping[str, Any]) -> Grammar | None:
    """The grammar of a request's `response_format`, `structured_outputs` and `guided_…`; None for free text.

    Raises InvalidRequestError for what is malformed or over a limit, and where two ask at once.
    """
    found = [
        grammar
        for grammar in (
            response_format_grammar(fields.get("response_format")),
            _structured_outputs(fields.get("structured_outputs")),
            *(_member(name, member, fields.get(name)) for name, member in GUIDED_FIELDS.items()),
        )
        if grammar is not None
    ]
    if len(found) > 1:
        message = f"{found[1].param} cannot be combined with {found[0].param}"
        raise InvalidRequestError(message, param=found[1].param)
    return found[0] if found else None


def response_format_grammar(value: object, param: str = "response_format") -> Grammar | None:
    """Of `{"type": "text" | "json_object" | "json_schema", …}`.

    A schema is taken as Chat Completions gives it, under `json_schema`, or as Responses does, beside the type.
    """
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("text", "json_object", "json_schema"):
        raise _error(param, 'must be {"type": …} of type text, json_object or json_schema')
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_schema", _ANY_OBJECT, param)
    described = value if "schema" in value else value.get("json_schema")
    if not isinstance(described, dict):
        raise _error(param, "json_schema must be an object with name and schema")
    name = described.get("name")
    if not isinstance(name, str) or not _SCHEMA_NAME.fullmatch(name):
        raise _error(param, "the schema's name must be 1 to 64 letters, digits, dashes or underscores")
    return schema_grammar(described.get("schema"), param)


def schema_grammar(schema: object, param: str) -> Grammar:
    """Texts of a JSON schema, given as an object. Raises InvalidRequestError."""
    return Grammar("json_schema", schema_text(schema, param), param)


def schema_text(schema: object, param: str) -> str:
    """A JSON schema as text, once it is found to be within the limits."""
    if not isinstance(schema, dict):
        raise _error(param, "the schema must be an object")
    depth = _depth(schema)
    if depth > MAX_SCHEMA_DEPTH:
        raise _error(param, f"the schema is nested {depth} deep, over the limit of {MAX_SCHEMA_DEPTH}")
    text = json.dumps(schema, ensure_ascii=False)
    _check_length(text, param)
    return text


def _check_length(text: str, param: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise _error(param, f"a schema of {len(text)} characters is over the limit of {MAX_GRAMMAR_CHARS}")


def _structured_outputs(value: object) -> Grammar | None:
    param = "structured_outputs"
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _error(param, "must be an object")
    given = {name: item for name, item in value.items() if item not in (None, False)}
    for name in given:
        if name not in _MEMBERS:
            raise _error(param, f"{name[:100]!r} is not supported, only {', '.join(_MEMBERS)}")
    if len(given) != 1:
        raise _error(param, f"must have exactly one of {', '.join(_MEMBERS)}, not {len(given)}")
    ((name, item),) = given.items()
    return _member(param, name, item)


def _member(param: str, member: str, value: object) -> Grammar | None:
    if value is None:
        return None
    match member:
        case "json":
            return schema_grammar(_parsed(value, param), param)
        case "json_object":
            return Grammar("json_schema", _ANY_OBJECT, param)
        case "choice":
            return _choice(value, param)
    if not isinstance(value, str):
        raise _error(param, f"the {member} must be a string")
    return Grammar("regex" if member == "regex" else "grammar", value, param)


def _parsed(schema: object, param: str) -> object:
    """A schema may come as text, too."""
    if not isinstance(schema, str):
        return schema
    _check_length(schema, param)
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _error(param, "the schema is not valid JSON") from error


def _choice(value: object, param: str) -> Grammar:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise _error(param, "the choice must be a list of strings, at least one")
    if len(value) > MAX_GRAMMAR_CHOICES:
        raise _error(param, f"a choice of {len(value)} texts is over the limit of {MAX_GRAMMAR_CHOICES}")
    return Grammar("lark", "start: " + " | ".join(map(lark_string, value)), param)


def lark_string(text: str) -> str:
    """A text as a literal of Lark's notation, which is JSON's; all in ASCII, since it takes no raw DEL."""
    return json.dumps(text)


def _depth(value: object) -> int:
    """How deeply containers are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = inner
    return depth - 1


def _error(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {reason}", param=param)
