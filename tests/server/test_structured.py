"""What requests say of the shape of their text, and every way to say it wrongly."""

import json
from typing import Any

import pytest

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import MAX_GRAMMAR_CHARS, MAX_REGEX_CHARS, Grammar
from remuda.server.structured import MAX_GRAMMAR_CHOICES, MAX_SCHEMA_DEPTH, requested_grammar

SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
NAMED = {"name": "n", "schema": SCHEMA}
STRICT = {**NAMED, "strict": True, "description": "d"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range((depth - 1) // 2):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("field", "value", "kind", "text"),
    [
        ("response_format", {"type": "json_object"}, "json_schema", '{"type": "object"}'),
        ("response_format", {"type": "json_schema", "json_schema": NAMED}, "json_schema", TEXT),
        (
            "response_format",
            {"type": "json_schema", "json_schema": STRICT},
            "json_schema",
            TEXT,
        ),
        ("response_format", {"type": "json_schema", **NAMED}, "json_schema", TEXT),
        ("structured_outputs", {"json": SCHEMA}, "json_schema", TEXT),
        ("structured_outputs", {"json": TEXT}, "json_schema", TEXT),
        ("structured_outputs", {"json_object": True, "regex": None}, "json_schema", '{"type": "object"}'),
        ("structured_outputs", {"regex": "a+"}, "regex", "a+"),
        ("structured_outputs", {"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ("structured_outputs", {"choice": ["a", 'é"\\']}, "lark", 'start: "a" | "\\u00e9\\"\\\\"'),
        ("guided_json", SCHEMA, "json_schema", TEXT),
        ("guided_regex", "a+", "regex", "a+"),
        ("guided_choice", ["a"], "lark", 'start: "a"'),
        ("guided_grammar", 'start: "a"', "grammar", 'start: "a"'),
    ],
)
def test_shapes(field: str, value: object, kind: Any, text: str) -> None:
    assert requested_grammar({field: value}) == Grammar(kind, text, field)


def test_free_text() -> None:
    for fields in ({}, {"response_format": {"type": "text"}}, {"response_format": None, "guided_json": None}):
        assert requested_grammar(fields) is None


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "must be"),
        ({"response_format": "json_object"}, "response_format", "must be"),
        ({"response_format": {"type": ["text"]}}, "response_format", "must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format", "name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format", "object"),
        ({"guided_json": nested(MAX_SCHEMA_DEPTH + 2)}, "guided_json", f"limit of {MAX_SCHEMA_DEPTH}"),
        ({"guided_json": {"title": "x" * MAX_GRAMMAR_CHARS}}, "guided_json", f"limit of {MAX_GRAMMAR_CHARS}"),
        ({"guided_json": "{"}, "guided_json", "not valid JSON"),
        ({"guided_json": '{"a":' * 10_000}, "guided_json", "not valid JSON"),
        ({"guided_json": "[]"}, "guided_json", "object"),
        ({"guided_json": True}, "guided_json", "object"),
        ({"guided_regex": "a" * (MAX_REGEX_CHARS + 1)}, "guided_regex", f"limit of {MAX_REGEX_CHARS}"),
        ({"guided_regex": 5}, "guided_regex", "string"),
        ({"guided_regex": "\ud800"}, "guided_regex", "surrogate"),
        ({"guided_grammar": "a" * (MAX_GRAMMAR_CHARS + 1)}, "guided_grammar", "limit"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"guided_choice": ["a", 1]}, "guided_choice", "strings"),
        ({"guided_choice": "abc"}, "guided_choice", "list"),
        ({"guided_choice": ["a"] * (MAX_GRAMMAR_CHOICES + 1)}, "guided_choice", f"limit of {MAX_GRAMMAR_CHOICES}"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs", "whitespace_pattern"),
        ({"structured_outputs": ["regex"]}, "structured_outputs", "object"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "combined with guided_regex"),
        ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json", "combined"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_refused(fields: dict[str, Any], param: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        requested_grammar(fields)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300


def test_the_deepest_schema() -> None:
    assert requested_grammar({"guided_json": nested(MAX_SCHEMA_DEPTH - 1)}) is not None


def test_a_schema_as_text_is_measured_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("remuda.server.structured.json.loads")
    text = "[" + "{}," * MAX_GRAMMAR_CHARS + "{}]"
    for fields in ({"guided_json": text}, {"structured_outputs": {"json": text}}):
        with pytest.raises(InvalidRequestError, match="over the limit of 65536"):
            requested_grammar(fields)
