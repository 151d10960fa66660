"""Shapes enforced on the demo model by a real server: whatever schema, seed and temperature, texts conform."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import jsonschema
import openai
import psutil
import pydantic
import pytest

from tests.server.conftest import ServerProcess
from tests.server.fakes import eventually

pytestmark = pytest.mark.e2e

MESSAGES: list[Any] = [{"role": "user", "content": "Write a story about a cat."}]
# Strings are short, since this model, left alone, goes on for ever.
TEXT = {"type": "string", "maxLength": 12}
CLOSED = {"type": "object", "additionalProperties": False}
SCHEMAS: dict[str, Any] = {
    "object": {
        "type": "object",
        "properties": {"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional": {"properties": {"a": TEXT, "b": {"type": "null"}}, **CLOSED},
    "enum": {"enum": ["red", "green", 3, None, {"a": [1]}]},
    "const": {"properties": {"k": {"const": 'é"\\'}}, "required": ["k"], **CLOSED},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [TEXT, {"type": "boolean"}], "items": False, "minItems": 2},
    "anyOf": {
        "anyOf": [{"type": "integer", "minimum": 5, "maximum": 7}, {"type": "array", "items": TEXT, "maxItems": 1}]
    },
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "number": {"type": "number", "minimum": -1.5, "maximum": 1.5},
    "pattern": {"type": "string", "pattern": "^[A-C]{2}-[0-9]{3}$"},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "properties": {
                    "v": {"type": "boolean"},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["v", "next"],
                **CLOSED,
            }
        },
    },
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 50},
}
NEVER = {"if": {}}
# What may go on for ever by chance: objects in objects, digits, names.
OPEN = {"recursive", "number", "map"}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMAS["object"], "strict": True}},
    {"type": "function", "function": {"name": "now"}},
    {
        "type": "function",
        "function": {
            "name": "flags",
            "parameters": {"properties": {"flags": SCHEMAS["array"]}, "required": ["flags"], **CLOSED},
        },
    },
]


@pytest.fixture(scope="module")
def client(demo: ServerProcess) -> Iterator[openai.OpenAI]:
    with demo.openai() as found:
        yield found


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    base = {"model": "demo", "messages": MESSAGES, "max_tokens": 300}
    return client.chat.completions.create(**base | fields)


def check_answer(choice: Any, schema: Any) -> bool:
    """Whether the answer is complete; then it conforms."""
    if choice.finish_reason == "stop":
        jsonschema.validate(json.loads(choice.message.content), schema, jsonschema.Draft202012Validator)
        return True
    assert choice.finish_reason == "length"
    return False


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_conform_to_their_schema(client: openai.OpenAI, name: str) -> None:
    schema = SCHEMAS[name]
    shape = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1, "seed": 1, "n": 3},
        {"temperature": 2, "seed": 2, "n": 3},
        {"temperature": 1.5, "seed": 3, "top_p": 0.5, "extra_body": {"top_k": 5, "min_tokens": 40}},
        {
            "temperature": 1,
            "seed": 4,
            "frequency_penalty": 2,
            "presence_penalty": 2,
            "logit_bias": {3: 100, 0: 100},
        },
    ]
    results = [ask(client, response_format=shape, **fields) for fields in settings]
    complete = [check_answer(choice, schema) for answer in results for choice in answer.choices]
    assert sum(complete) >= len(complete) // 2
    assert name in OPEN or all(complete)


def test_any_object(client: openai.OpenAI) -> None:
    for seed in range(4):
        choice = ask(client, response_format={"type": "json_object"}, seed=seed, temperature=1.5).choices[0]
        check_answer(choice, {"type": "object"})
        assert choice.message.content.startswith("{")


def test_an_answer_that_is_cut_says_so(client: openai.OpenAI) -> None:
    choice = ask(client, response_format={"type": "json_object"}, seed=1, max_tokens=3).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("{")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_regex": "[0-9]{3}-[0-9]{4}"}, "[0-9]{3}-[0-9]{4}"),
        ({"structured_outputs": {"regex": "(cat|dog)s?"}}, "(cat|dog)s?"),
        ({"guided_choice": ["yes", "no", "é"]}, "yes|no|é"),
        ({"structured_outputs": {"choice": ["positive", "negative"]}}, "positive|negative"),
        ({"guided_grammar": 'root ::= "a" ("b" | "c")*  "d"'}, "a[bc]*d"),
        ({"structured_outputs": {"grammar": 'start: "x" /[0-9]{1,4}/ "y"'}}, "x[0-9]{1,4}y"),
        ({"guided_json": {"type": "boolean"}}, "true|false"),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, "null"),
    ],
    ids=str,
)
def test_other_shapes_in_both_endpoints(client: openai.OpenAI, fields: dict[str, Any], expected: str) -> None:
    for seed in range(3):
        answer = ask(client, seed=seed, temperature=1.3, extra_body=fields).choices[0]
        plain = client.completions.create(
            model="demo", prompt="Once", max_tokens=300, seed=seed, temperature=1.3, extra_body=fields
        ).choices[0]
        for text, reason in ((answer.message.content, answer.finish_reason), (plain.text, plain.finish_reason)):
            assert reason == "length" or re.fullmatch(expected, text), text


def test_streams_and_whole_answers_are_the_same(client: openai.OpenAI) -> None:
    fields = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS["object"]}}
    }
    whole = ask(client, seed=5, **fields).choices[0].message.content
    stream = ask(client, seed=5, stream=True, **fields)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_enforced_calls_conform(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters", {"maxProperties": 0}) for tool in TOOLS
    }
    names = set()
    for seed in range(3):
        fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "seed": seed, "temperature": 1.5}
        fields |= {"parallel_tool_calls": seed == 0, "max_tokens": 5000}
        if stream:
            with client.chat.completions.stream(model="demo", messages=MESSAGES, **fields) as events:
                for _ in events:
                    pass
                answer: Any = events.get_final_completion().choices[0]
        else:
            answer = ask(client, **fields).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert not answer.message.content
        assert len(answer.message.tool_calls) == 1 or seed == 0
        for call in answer.message.tool_calls:
            names.add(call.function.name)
            jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    assert names == {"weather"} if choice != "required" else names <= set(schemas)


def test_a_conversation_with_results_goes_on(client: openai.OpenAI) -> None:
    first = ask(client, tools=TOOLS, tool_choice="required", seed=1, max_tokens=5000).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "42"} for call in first.tool_calls]
    answer = ask(client, messages=[*MESSAGES, first, *results], tools=TOOLS, max_tokens=5).choices[0]
    assert answer.finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "(?=a)b"}, "guided_regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": NEVER}}},
            "response_format",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused_and_the_next_is_served(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    for _ in range(2):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, extra_body=fields)
        assert caught.value.param == param
        good = ask(client, extra_body={"guided_regex": "[0-9]{4}"}).choices[0]
        assert re.fullmatch("[0-9]{4}", good.message.content)


def test_bad_and_good_beside_free_text(client: openai.OpenAI) -> None:
    """Whatever happens to the others, a free request gets the text that it gets alone."""
    free = {"seed": 7, "max_tokens": 60}
    alone = ask(client, **free).choices[0].message.content

    def one(i: int) -> str:
        match i % 3:
            case 0:
                return str(ask(client, **free).choices[0].message.content)
            case 1:
                with pytest.raises(openai.BadRequestError):
                    ask(client, extra_body={"guided_regex": f"a{i}(?!b)"})
                return alone
        text = ask(client, seed=i, extra_body={"guided_regex": f"{i}[a-z]{{5}}"}).choices[0].message.content
        assert re.fullmatch(f"{i}[a-z]{{5}}", text)
        return alone

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(24))) == {alone}


class Cat(pydantic.BaseModel):
    """What the client's own helper asks for."""

    name: Annotated[str, pydantic.Field(max_length=10)]
    lives: Literal[7, 9]
    friend: Annotated[str, pydantic.Field(max_length=10)] | None


def test_the_clients_own_parser(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "demo", "messages": MESSAGES, "max_tokens": 500, "seed": 2}
    parsed = client.chat.completions.parse(response_format=Cat, **fields).choices[0].message.parsed
    assert isinstance(parsed, Cat)
    tools = [openai.pydantic_function_tool(Cat)]
    answer = client.chat.completions.parse(
        tools=tools, tool_choice="required", parallel_tool_calls=False, **fields
    ).choices[0]
    (call,) = answer.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Cat)


def test_the_next_grammar_works_after_the_checking_process_is_killed(
    client: openai.OpenAI, demo: ServerProcess
) -> None:
    ask(client, extra_body={"guided_regex": "[a-f]{3}"})
    children = psutil.Process(demo.process.pid).children(recursive=True)
    (checking,) = [child for child in children if "remuda.engine.grammar_process" in child.cmdline()]
    checking.kill()
    # Until then it may still take a grammar.
    assert eventually(lambda: checking.status() == psutil.STATUS_ZOMBIE)
    text = ask(client, extra_body={"guided_regex": "[g-k]{3}"}).choices[0].message.content
    assert re.fullmatch("[g-k]{3}", text)
