"""Tools and the shape of text in `/v1/responses`, over a scripted engine: items, events, the client's parsing."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pydantic
import pytest
from openai.types.responses import Response

from tests.server.fakes import TEMPLATE, AppServer, FakeEngine, byte_tokenizer, eventually, ids, says
from tests.server.test_responses import EXTRAS, post, stream, types
from tests.server.test_tools import KNOWING
from tests.server.typed import conform

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Weather of é.",
    "parameters": SCHEMA,
    "strict": True,
}
TIME: dict[str, Any] = {"type": "function", "name": "time"}
TOOLS: list[Any] = [WEATHER, TIME]
ARGUMENTS = '{"city": "Zürich"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
OTHER = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
LOGPROBS = ["message.output_text.logprobs"]
Items = list[tuple[str, str, str]]


class City(pydantic.BaseModel):
    """What an answer or a call is about."""

    city: str


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[AppServer]:
    """One whose template may tell of tools, and does not."""
    running = AppServer(engine, byte_tokenizer(template=TEMPLATE + "{% if tools %}{% endif %}"))
    yield running
    running.stop()


def summary(response: dict[str, Any]) -> Items:
    """Type, status and content of each item."""
    return [
        (item["type"], item["status"], item["content"][0]["text"] if "content" in item else item["arguments"])
        for item in response["output"]
    ]


def said(text: str) -> tuple[str, str, str]:
    return "message", "completed", text


def called(arguments: str) -> tuple[str, str, str]:
    return "function_call", "completed", arguments


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (CALL, [called(ARGUMENTS)]),
        (f"Wait. {CALL}", [said("Wait."), called(ARGUMENTS)]),
        (f"{CALL}\n{OTHER}", [called(ARGUMENTS), called("{}")]),
        (f"a{CALL}b{OTHER}", [said("a"), called(ARGUMENTS), said("b"), called("{}")]),
        ("It rains <tool_call>", [said("It rains <tool_call>")]),
        ('<tool_call>{"name": "x"', [said('<tool_call>{"name": "x"')]),
        ("", [said("")]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_calls_are_items(http: httpx2.Client, engine: FakeEngine, text: str, items: Items) -> None:
    engine.script = says(text)
    whole = post(http, tools=TOOLS)
    conform(Response, whole.content, EXTRAS)
    events = stream(http, tools=TOOLS)
    last = events[-1]["response"]
    assert summary(whole.json()) == summary(last) == items
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == last["output"]
    for index, item in enumerate(last["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
        assert "".join(event["delta"] for event in own if "delta" in event) == items[index][2]
        if item["type"] == "function_call":
            started = {**item, "arguments": "", "status": "in_progress"}
            assert own[0]["item"] == started
            assert (item["id"][:3], item["call_id"][:5]) == ("fc_", "call_")
    assert len({item["id"] for item in last["output"]}) == len(items)


def test_the_events_of_a_text_and_a_call(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = says(f"So: {CALL}")
    found = types(stream(http, tools=TOOLS))
    assert [kind for i, kind in enumerate(found) if i == 0 or kind != found[i - 1]] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    # They come as they are written, and not at the end.
    assert found.count("function_call_arguments.delta") > 10


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_client_s_own_types(client: openai.OpenAI, engine: FakeEngine, is_stream: bool) -> None:
    engine.script = says(f"So: {CALL}")
    tools = [openai.pydantic_function_tool(City, name="weather")]
    fields: dict[str, Any] = {"model": "fake", "input": "Hi", "tools": tools}
    if is_stream:
        with client.responses.stream(**fields) as found:
            kinds = {event.type for event in found}
            answer = found.get_final_response()
        assert "response.function_call_arguments.delta" in kinds
    else:
        answer = client.responses.parse(**fields)
    message, call = answer.output
    assert (message.type, answer.output_text) == ("message", "So:")
    assert call.type == "function_call"
    assert call.parsed_arguments == City(city="Zürich")


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_client_parses_a_shape(client: openai.OpenAI, engine: FakeEngine, is_stream: bool) -> None:
    engine.script = says(ARGUMENTS)
    fields: dict[str, Any] = {"model": "fake", "input": "Hi", "text_format": City}
    if is_stream:
        with client.responses.stream(**fields) as found:
            answer = found.get_final_response()
    else:
        answer = client.responses.parse(**fields)
    assert answer.output_parsed == City(city="Zürich")
    grammar = engine.requests[0].params.grammar
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.text)["required"], grammar.param) == (
        "json_schema",
        ["city"],
        "text.format",
    )
    assert answer.text is not None
    shape = answer.text.format
    assert shape is not None
    assert shape.type == "json_schema"
    assert (shape.name, shape.strict) == ("City", True)


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "x", "schema": SCHEMA},
            {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": None, "description": None},
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": False}},
            {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": False, "description": None},
        ),
    ],
    ids=str,
)
def test_shapes(http: httpx2.Client, engine: FakeEngine, given: dict[str, Any], echoed: dict[str, Any]) -> None:
    answer = post(http, text={"format": given})
    conform(Response, answer.content, EXTRAS)
    assert answer.json()["text"] == {"format": echoed, "verbosity": "medium"}
    assert (engine.requests[0].params.grammar is None) == (given["type"] == "text")


@pytest.mark.parametrize(
    ("given", "echoed", "must_call"),
    [
        (None, "auto", []),
        ("auto", "auto", []),
        ("required", "required", ["weather", "time"]),
        ({"type": "function", "name": "time"}, {"type": "function", "name": "time"}, ["time"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            ["time"],
        ),
    ],
    ids=str,
)
def test_choices(http: httpx2.Client, engine: FakeEngine, given: Any, echoed: Any, must_call: list[str]) -> None:
    engine.script = says(OTHER)
    answer = post(http, tools=TOOLS, tool_choice=given)
    conform(Response, answer.content, EXTRAS)
    assert (answer.json()["tool_choice"], summary(answer.json())) == (echoed, [called("{}")])
    unsaid = {"description": None, "parameters": None, "strict": None}
    assert answer.json()["tools"] == [WEATHER, {**TIME, **unsaid}]
    grammar = engine.requests[0].params.grammar
    assert (grammar is None) == (not must_call)
    assert [name for name in ("weather", "time") if grammar and name in grammar.text] == must_call


def test_no_tools_to_call(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = says(CALL)
    answer = post(http, tools=TOOLS, tool_choice="none").json()
    assert summary(answer) == [said(CALL)]
    assert (answer["tool_choice"], len(answer["tools"])) == ("none", 2)
    assert summary(post(http).json()) == [said(CALL)]
    assert engine.requests[0].prompt == engine.requests[1].prompt


def test_one_call_at_most(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = says(CALL + OTHER)
    answer = post(http, tools=TOOLS, parallel_tool_calls=False).json()
    assert (summary(answer), answer["parallel_tool_calls"]) == ([called(ARGUMENTS)], False)


def test_a_server_that_looks_for_no_calls(server: AppServer, http: httpx2.Client, engine: FakeEngine) -> None:
    server.state.tool_call_parser = "none"
    engine.script = says(OTHER)
    assert summary(post(http, tools=TOOLS).json()) == [said(OTHER)]
    assert summary(post(http, tools=TOOLS, tool_choice="required").json()) == [called("{}")]
    # An answer of a shape may then be no call, which nobody would find.
    post(http, tools=TOOLS, text={"format": {"type": "json_object"}})
    grammar = engine.requests[2].params.grammar
    assert grammar is not None
    assert grammar.kind == "json_schema"


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities_are_those_of_messages(http: httpx2.Client, engine: FakeEngine, is_stream: bool) -> None:
    engine.script = says(f"a< {CALL}\nc<")
    fields: dict[str, Any] = {"tools": TOOLS, "include": LOGPROBS}
    response = stream(http, **fields)[-1]["response"] if is_stream else post(http, **fields).json()
    first, _, second = response["output"]
    entries = [[entry["token"] for entry in item["content"][0]["logprobs"]] for item in (first, second)]
    assert entries[0] == ["a", "<"]
    # With the token that ended the text.
    assert (entries[1][:-1], len(entries[1])) == (["\n", "c", "<"], 4)


@pytest.mark.parametrize(
    ("num_tokens", "kind", "status"),
    [
        (20, "message", "incomplete"),
        (30, "function_call", "incomplete"),
        (55, "function_call", "incomplete"),
        (-12, "function_call", "completed"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_is_cut(
    http: httpx2.Client, engine: FakeEngine, num_tokens: int, kind: str, status: str, is_stream: bool
) -> None:
    engine.script = says(CALL)
    fields: dict[str, Any] = {"tools": TOOLS, "max_output_tokens": len(ids(CALL[:num_tokens]))}
    response = stream(http, **fields)[-1]["response"] if is_stream else post(http, **fields).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    ((found, state, text),) = summary(response)
    assert (found, state) == (kind, status)
    assert (text == ARGUMENTS) == (status == "completed")


def test_a_round_trip(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says(f"So: {CALL}{OTHER}")
    first = client.responses.create(model="fake", input="Hi", tools=TOOLS)
    _, weather, time = first.output
    assert weather.type == time.type == "function_call"
    assert json.loads(weather.arguments) == {"city": "Zürich"}
    outputs: Any = [
        {"type": "function_call_output", "call_id": weather.call_id, "output": "sunny"},
        {"type": "function_call_output", "call_id": time.call_id, "output": "noon"},
    ]
    engine.script = says("Sunny at noon.")
    by_id = client.responses.create(model="fake", input=outputs, previous_response_id=first.id, tools=TOOLS)
    written: Any = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in first.output), *outputs]
    in_full = client.responses.create(model="fake", input=written, tools=TOOLS)
    assert by_id.output_text == in_full.output_text == "Sunny at noon."
    assert engine.requests[1].prompt == engine.requests[2].prompt
    # As in chat completions.
    calls = [
        {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in (weather, time)
    ]
    chat: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "So:", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": o["call_id"], "content": o["output"]} for o in outputs),
    ]
    tools: Any = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in TOOLS]
    client.chat.completions.create(model="fake", messages=chat, tools=tools)
    assert engine.requests[3].prompt == engine.requests[1].prompt


def test_the_template_is_told(engine: FakeEngine) -> None:
    server = AppServer(engine, byte_tokenizer(template=KNOWING))
    try:
        with httpx2.Client(base_url=server.url) as http:
            engine.script = says(CALL)
            first = post(http, tools=TOOLS).json()
            (call,) = first["output"]
            output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
            post(http, previous_response_id=first["id"], input=[output])
    finally:
        server.stop()
    assert engine.requests[0].prompt.tolist() == ids("[weather:object][time:object]<user>Hi")
    call_id = call["call_id"]
    said = f"<user>Hi<assistant>({call_id}:weather=Zürich)<tool>sunny{call_id}"
    assert engine.requests[1].prompt.tolist() == ids(said)


def test_in_the_background(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = says(f"So: {CALL}")
    run = post(http, tools=TOOLS, background=True).json()
    url = f"/v1/responses/{run['id']}"
    assert eventually(lambda: http.get(url).json()["status"] == "completed")
    answer = http.get(url)
    conform(Response, answer.content, EXTRAS)
    assert summary(answer.json()) == [said("So:"), called(ARGUMENTS)]


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"tools": {}}, "tools", "list"),
        ({"tools": ["web_search"]}, "tools", "tools.0"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search'"),
        ({"tools": [WEATHER, {"type": "mcp", "server_label": "x"}]}, "tools", "tools.1: the type 'mcp'"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools", "tools.0.function"),
        ({"tools": [{**TIME, "defer_loading": True}]}, "tools", "tools.0.defer_loading"),
        ({"tools": [{**TIME, "strict": "yes"}]}, "tools", "tools.0.strict"),
        ({"tools": [TIME, TIME]}, "tools", "two functions"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "always"}, "tool_choice", "must be none"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "must be none"),
        ({"tool_choice": {"type": "function", "name": "unknown"}}, "tool_choice", "'unknown'"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "boolean"),
        ({"tools": [{**TIME, "parameters": {"not": {}}}], "tool_choice": "required"}, "tools", "not"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "must be"),
        ({"text": {"format": "text"}}, "text.format", "must be"),
        ({"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "text.format", "name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "name and schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "text.format",
            "text.format",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": 1}}},
            "text.format",
            "text.format.strict",
        ),
        ({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "guided_regex", "text.format"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(
    http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], param: str, named: str
) -> None:
    answer = post(http, **{"tools": TOOLS, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], named in error["message"]) == (param, True), error
    assert len(error["message"]) < 400
    assert engine.requests == []
