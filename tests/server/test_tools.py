"""Tools over a scripted engine, through the official client: what is asked, rendered, parsed and streamed."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar
from remuda.server.tool_parsers import CALL_FORMATS
from remuda.server.tools import MAX_TOOLS, parse_tools
from tests.server.fake_info import ASSISTANT, BOS, END, USER
from tests.server.fakes import TEMPLATE, AppServer, FakeEngine, byte_tokenizer, ids, says

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of é.", "parameters": SCHEMA},
}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TWO = f'Let me see.\n{CALL}\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>'
# Writes out all that it is given of tools.
KNOWING = (
    "{% for t in tools or [] %}[{{ t.function.name }}:{{ t.function.parameters.type }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.id }}:{{ c.function.name }}={{ c.function.arguments.city }})"
    "{% endfor %}"
    "{{ m.tool_call_id or '' }}{% endfor %}"
)
BEGINNING: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}]
HISTORY: list[Any] = [
    *MESSAGES,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ur"}'}},
            {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{cut"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
]


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[AppServer]:
    """One whose template may tell of tools, and does not."""
    running = AppServer(engine, byte_tokenizer(template=TEMPLATE + "{% if tools %}{% endif %}"))
    yield running
    running.stop()


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "fake", "messages": MESSAGES, "tools": TOOLS, **fields})


def test_calls_of_a_whole_answer(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says(TWO)
    answer = chat(client)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "time"]
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"city": "Zürich"}, {}]
    found = {call.id for call in choice.message.tool_calls}
    assert len(found) == 2
    assert all(call_id.startswith("call_") for call_id in found)
    assert engine.requests[0].params.grammar is None


def test_an_answer_without_calls_is_as_ever(client: openai.OpenAI, http: httpx2.Client) -> None:
    assert chat(client).choices[0].message.content == "Hello there"
    body = {"model": "fake", "messages": MESSAGES, "tools": TOOLS}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello there", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_only_calls_have_null_content(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says(CALL)
    assert chat(client).choices[0].message.content is None


@pytest.mark.parametrize("n", [1, 2])
def test_streamed_calls(client: openai.OpenAI, engine: FakeEngine, n: int) -> None:
    engine.script = says(TWO)
    chunks = list(chat(client, stream=True, n=n))
    for index in range(n):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert "".join(choice.delta.content or "" for choice in own) == "Let me see."
        pieces = [call for choice in own for call in choice.delta.tool_calls or []]
        for number, name in enumerate(["weather", "time"]):
            first, *rest = [piece for piece in pieces if piece.index == number]
            assert (first.type, first.function.name, first.function.arguments) == ("function", name, "")
            assert first.id.startswith("call_")
            assert all((p.id, p.type, p.function.name) == (None, None, None) for p in rest)
            arguments = "".join(piece.function.arguments for piece in rest)
            assert json.loads(arguments) == ({"city": "Zürich"} if number == 0 else {})
        # They come as they are written, and not at the end.
        assert len([piece for piece in pieces if piece.index == 0]) > 10
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["tool_calls"]


def test_the_client_gathers_a_stream(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says(TWO)
    with client.chat.completions.stream(model="fake", messages=MESSAGES, tools=TOOLS) as stream:  # type: ignore[list-item]
        events = [event.type for event in stream]
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in events
    assert [call.function.arguments for call in calls or []] == ['{"city": "Zürich"}', "{}"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_all_tokens_are_there(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.script = says(CALL + "\n")
    answer = chat(client, logprobs=True, stream=stream)
    content = [
        entry.token
        for chunk in (answer if stream else [answer])
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content
    ]
    assert len(content) == len(ids(CALL + "\n")) + 1


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("text", [CALL, CALL + "\n", "Hi \n"])
def test_ids_of_all_tokens_are_streamed(
    client: openai.OpenAI, engine: FakeEngine, text: str, logprobs: bool
) -> None:
    engine.script = says(text)
    chunks = list(chat(client, logprobs=logprobs, stream=True, extra_body={"return_token_ids": True}))
    streamed = [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", None) or []]
    assert streamed == [*ids(text), END]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.script = says(CALL)
    answer = chat(client, max_tokens=60, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert choices[-1].finish_reason == "length"
    calls = [call for c in choices for call in (c.delta if stream else c.message).tool_calls or []]
    arguments = "".join(call.function.arguments for call in calls)
    assert '{"city": "Zürich"}'.startswith(arguments)
    assert len(arguments) > 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("num_tokens", "names"), [(20, []), (40, ["weather"])])
def test_a_call_that_is_cut_before_its_arguments(
    client: openai.OpenAI, engine: FakeEngine, num_tokens: int, names: list[str], stream: bool
) -> None:
    """None of its markup is shown; the name is told once it is whole."""
    engine.script = says("Well. " + CALL)
    answer = chat(client, max_tokens=num_tokens, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert choices[-1].finish_reason == "length"
    messages = [choice.delta if stream else choice.message for choice in choices]
    assert "".join(message.content or "" for message in messages) == "Well."
    calls = [call for message in messages for call in message.tool_calls or []]
    assert [(call.function.name, call.function.arguments) for call in calls] == [(name, "") for name in names]


def test_one_call_at_most(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says(TWO)
    (call,) = chat(client, parallel_tool_calls=False).choices[0].message.tool_calls
    assert call.function.name == "weather"


def test_no_tools_to_call(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says(CALL)
    choice = chat(client, tool_choice="none").choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")
    assert engine.requests[0].prompt.tolist() == [BOS, USER, *ids("Hi"), END, ASSISTANT]


def test_a_server_that_looks_for_no_calls(engine: FakeEngine) -> None:
    server = AppServer(engine, byte_tokenizer(template=TEMPLATE + "{% if tools %}{% endif %}"))
    server.state.tool_call_parser = "none"
    engine.script = says(CALL)
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            assert chat(client).choices[0].message.content == CALL
            (call,) = chat(client, tool_choice="required").choices[0].message.tool_calls
            assert call.function.name == "weather"
            # What looks like a call is no answer of the shape that was asked for.
            chat(client, response_format={"type": "json_object"})
            grammar = engine.requests[-1].params.grammar
            assert grammar is not None
            assert grammar.kind == "json_schema"
    finally:
        server.stop()


def test_templates_that_know_tools(engine: FakeEngine) -> None:
    server = AppServer(engine, byte_tokenizer(template=KNOWING))
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            chat(client, messages=HISTORY)
            chat(client, messages=HISTORY[:1], tools=None)
    finally:
        server.stop()
    said = "[weather:object][time:object]<user>Hi<assistant>(c1:weather=Ur)(c2:time=)<tool>sunnyc1<tool>noonc2"
    assert engine.requests[0].prompt.tolist() == ids(said)
    assert engine.requests[1].prompt.tolist() == ids("<user>Hi")


def test_templates_that_do_not(engine: FakeEngine) -> None:
    server = AppServer(
        engine, byte_tokenizer(template="{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}")
    )
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            chat(client, messages=[*BEGINNING, *HISTORY])
            chat(client, messages=HISTORY, tools=None)
    finally:
        server.stop()
    texts = [server.tokenizer.decode(r.prompt, False) for r in engine.requests]  # type: ignore[attr-defined]
    assert texts[0].startswith("<system>Be brief.\n\nBe kind.\n\nYou may call functions")
    assert '{"type": "function", "function": {"name": "weather", "description": "Weather of é."' in texts[0]
    said = (
        '<user>Hi<assistant><tool_call>\n{"name": "weather", "arguments": {"city": "Ur"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": "{cut"}\n</tool_call>'
        "<user><tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    )
    assert texts[0].endswith(said)
    assert texts[1] == said


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "description": 5}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "description": "d" * 20_000}}]}, "tools"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [TIME] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": [TIME]}}},
            "tool_choice",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice",
        ),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
        ({"tool_choice": "required", "structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages.0.tool_calls.0"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "x", "parameters": {"not": {}}}}],
            },
            "tools",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    answer = http.post(
        "/v1/chat/completions", json={"model": "fake", "messages": MESSAGES, "tools": TOOLS, **fields}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not engine.requests


def lark(choice: object, **more: Any) -> str:
    tools = parse_tools(TOOLS, choice, more.get("parallel"))
    assert tools is not None
    grammar = tools.grammar(CALL_FORMATS["hermes"], more.get("answer"))
    return "" if grammar is None else grammar.text


def test_what_is_enforced() -> None:
    assert lark("auto") == ""
    required = lark("required")
    assert "start: calls\n" in required
    assert "call: call_0 | call_1\n" in required
    assert "{0,15}" in required
    assert "{0,15}" not in lark("required", parallel=False)
    for named in ({"type": "function", "function": {"name": "time"}}, {"type": "function", "name": "time"}):
        assert "weather" not in lark(named)
        assert "call: call_0\n" in lark(named)
    answer = Grammar("json_schema", '{"type": "object"}', "response_format")
    assert lark("auto", answer=answer).startswith("start: answer | calls\nanswer: %json")
    assert lark("required", answer=answer) == required
    assert lark("auto", answer=Grammar("regex", "a")) == "a"


@pytest.mark.parametrize(
    ("more", "is_closed"),
    [
        ({}, True),
        ({"additionalProperties": True}, False),
        ({"allOf": [{"properties": {"country": {"type": "string"}}}]}, False),
    ],
)
def test_a_function_has_no_other_arguments_than_those_listed(more: dict[str, Any], is_closed: bool) -> None:
    parameters = {"properties": {"city": {"type": "string"}}, **more}
    function = {"name": "f", "parameters": parameters}
    tools = parse_tools([{"type": "function", "function": function}], "required", None)
    assert tools is not None
    text = tools.grammar(CALL_FORMATS["hermes"], None)
    assert text is not None
    assert ('"additionalProperties": false' in text.text) is is_closed
    # The template is given the schema as it came.
    assert tools.offered[0].parameters == {"type": "object", **parameters}


def test_allowed_tools() -> None:
    chosen = {"type": "function", "function": {"name": "time"}}
    for choice in (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [chosen]}},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
    ):
        tools = parse_tools(TOOLS, choice, None)
        assert tools is not None
        assert [tool.name for tool in tools.offered] == ["time"]
        assert (tools.callable_names, tools.mode, tools.is_parallel) == ({"time"}, "required", True)
    named = parse_tools(TOOLS, chosen, False)
    assert named is not None
    # The model is told of all, though it must call one.
    assert [tool.name for tool in named.offered] == ["weather", "time"]
    assert (named.callable_names, named.is_parallel) == ({"time"}, False)
    assert parse_tools([], None, None) is parse_tools(None, "none", None) is None
    with pytest.raises(InvalidRequestError):
        parse_tools([], "required", None)
