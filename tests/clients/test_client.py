"""Every method of both clients, against the real HTTP app over a scripted engine."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from remuda.clients import (
    AuthenticationError,
    BadRequestError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
)
from remuda.clients.errors import StreamFailedError
from remuda.engine.wire import AddRequest, RequestRejected, SequenceOutput
from remuda.server.access import AccessPolicy
from tests.clients.kinds import Kind
from tests.server.fake_info import BOS
from tests.server.fakes import TEMPLATE, AppServer, FakeEngine, byte_tokenizer, eventually, ids, says

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def tool_server(engine: FakeEngine) -> Iterator[AppServer]:
    """With a chat template that knows of tools."""
    running = AppServer(engine, byte_tokenizer(template=TEMPLATE + "{% if tools %}{% endif %}"))
    yield running
    running.stop()


def test_completions(kind: Kind, server: AppServer, engine: FakeEngine) -> None:
    found = kind.call(server.url, "completions", model="fake", prompt="hi", max_tokens=5, top_k=7, seed=3)
    assert (found.text, found.choices[0].finish_reason, found.model) == ("Hello", "length", "fake")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 5)
    params = engine.requests[0].params
    assert (params.top_k, params.seed, params.max_tokens) == (7, 3, 5)


def test_completions_of_many_prompts(kind: Kind, server: AppServer) -> None:
    found = kind.call(server.url, "completions", model="fake", prompt=["hi", "there"], n=2, return_token_ids=True)
    assert [(choice.index, choice.text) for choice in found.choices] == [(i, "Hello there") for i in range(4)]
    assert found.choices[0].token_ids[:5] == ids("Hello")


def test_chat(kind: Kind, server: AppServer) -> None:
    found = kind.call(server.url, "chat", model="fake", messages=HI, logprobs=True, top_logprobs=1)
    assert (found.text, found.choices[0].message.role) == ("Hello there", "assistant")
    assert found.choices[0].logprobs["content"][0]["token"] == "H"


def test_a_call_of_a_tool(kind: Kind, tool_server: AppServer, engine: FakeEngine) -> None:
    engine.script = says('<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>')
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    whole = kind.call(tool_server.url, "chat", model="fake", messages=HI, tools=tools)
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"at": 1})
    streamed = kind.stream(tool_server.url, "stream_chat", model="fake", messages=HI, tools=tools)
    parts = [part for event in streamed.events for part in event.choices[0].delta.tool_calls or ()]
    assert parts[0].function.name == "look"
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == {"at": 1}


@pytest.mark.parametrize(
    ("method", "fields"), [("stream_completions", {"prompt": "hi"}), ("stream_chat", {"messages": HI})]
)
def test_streams(kind: Kind, server: AppServer, method: str, fields: dict[str, Any]) -> None:
    usage = {"include_usage": True}
    streamed = kind.stream(server.url, method, model="fake", stream_options=usage, **fields)
    assert streamed.error is None
    assert "".join(event.text for event in streamed.events) == "Hello there"
    assert streamed.events[-1].usage.completion_tokens == len("Hello there") + 1
    assert streamed.received is not None
    assert (streamed.received.text, streamed.received.finish_reasons) == ("Hello there", {0: "stop"})
    assert streamed.received.num_events == len(streamed.events)


def test_a_stream_of_two_choices(kind: Kind, server: AppServer) -> None:
    streamed = kind.stream(server.url, "stream_completions", model="fake", prompt="hi", n=2)
    assert streamed.error is None
    assert streamed.received is not None
    assert streamed.received.texts == {0: "Hello there", 1: "Hello there"}


def test_a_stream_of_a_response(kind: Kind, server: AppServer) -> None:
    streamed = kind.stream(server.url, "stream_respond", model="fake", input="hi")
    assert streamed.error is None
    assert streamed.received is not None
    assert (streamed.received.text, streamed.received.finish_reasons) == ("Hello there", {0: "completed"})
    last = streamed.events[-1]
    assert (last.type, last.response.text) == ("response.completed", "Hello there")


def test_responses_are_kept_and_deleted(kind: Kind, server: AppServer) -> None:
    made = kind.call(server.url, "respond", model="fake", input="hi", metadata={"a": "b"})
    assert (made.status, made.text, made.usage.output_tokens) == ("completed", "Hello there", 12)
    found = kind.call(server.url, "retrieve_response", made.id)
    assert (found.text, found.metadata, found.created_at) == (made.text, {"a": "b"}, made.created_at)
    items = kind.call(server.url, "response_input_items", made.id, limit=1, order="asc")
    assert items.data[0]["content"][0]["text"] == "hi"
    assert not items.has_more
    assert kind.call(server.url, "delete_response", made.id).deleted
    with pytest.raises(NotFoundError) as caught:
        kind.call(server.url, "retrieve_response", made.id)
    assert (caught.value.status, caught.value.code) == (404, "response_not_found")


def test_a_response_in_the_background_is_cancelled(kind: Kind, server: AppServer, engine: FakeEngine) -> None:
    engine.running.clear()
    made = kind.call(server.url, "respond", model="fake", input="hi", background=True)
    assert made.status == "queued"
    assert kind.call(server.url, "cancel_response", made.id).status == "cancelled"


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings(kind: Kind, server: AppServer, encoding: str | None) -> None:
    found = kind.call(
        server.url, "embeddings", model="fake", input=["hi", "you"], normalize=False, encoding_format=encoding
    )
    assert [item.vector for item in found.data] == [[3.0, 4.0, 3.0], [3.0, 4.0, 4.0]]
    assert found.usage.prompt_tokens == 7


def test_tokens(kind: Kind, server: AppServer) -> None:
    found = kind.call(server.url, "tokenize", "hé", return_token_strs=True)
    assert (found.count, found.tokens) == (4, [BOS, *ids("hé")])
    assert kind.call(server.url, "detokenize", found.tokens[1:]) == "hé"
    assert kind.call(server.url, "tokenize", messages=HI).count > 4


def test_what_the_server_says_of_itself(kind: Kind, server: AppServer) -> None:
    assert [model.id for model in kind.call(server.url, "models")] == ["fake", "org/alias"]
    assert kind.call(server.url, "model", "org/alias").id == "org/alias"
    info = kind.call(server.url, "info")
    assert (info.model, info.slot_bytes, info.num_slots, info.has_chat_template) == ("fake", 1000, 64, True)
    assert kind.call(server.url, "health").status == "ready"
    assert kind.call(server.url, "ready").is_ready
    assert kind.call(server.url, "version") == info.version


def test_metrics(kind: Kind, server: AppServer) -> None:
    kind.call(server.url, "completions", model="fake", prompt="hi")
    metrics = kind.call(server.url, "metrics")
    assert metrics.value("remuda:state_slots") == 64
    assert metrics.value("remuda:engine_resident_memory_bytes") == 7_000_000
    assert metrics.value("remuda:http_requests_total", status="200", handler="/v1/completions") == 1
    assert metrics.value("remuda:no_such_thing") is None


def test_ready_and_health_are_answers_while_the_engine_loads(kind: Kind) -> None:
    engine = FakeEngine()
    engine.status = None
    server = AppServer(engine)
    try:
        found = kind.call(server.url, "ready")
        assert (found.status, found.is_ready) == ("loading", False)
        assert kind.call(server.url, "health").status == "loading"
    finally:
        server.stop()
        engine.stop()


@pytest.mark.parametrize(
    ("fields", "error", "status", "param"),
    [
        ({}, BadRequestError, 400, "messages"),
        ({"messages": []}, BadRequestError, 400, "messages"),
        ({"messages": HI, "model": "other"}, NotFoundError, 404, "model"),
        ({"messages": HI, "temperature": 9}, BadRequestError, 400, "temperature"),
        ({"messages": HI, "no_such_field": 1}, BadRequestError, 400, "no_such_field"),
    ],
)
def test_refusals_name_the_field(
    kind: Kind, server: AppServer, fields: dict[str, Any], error: type[Exception], status: int, param: str
) -> None:
    with pytest.raises(error) as caught:
        kind.call(server.url, "chat", **{"model": "fake", "messages": None, **fields})
    assert (caught.value.status, caught.value.param) == (status, param)
    assert caught.value.request_id.startswith("req_")
    assert str(caught.value) == f"{caught.value.message} (HTTP {status})"


def test_a_full_queue_is_a_rate_limit(kind: Kind, server: AppServer, engine: FakeEngine) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, "QueueFullError", "the queue is full")
    with pytest.raises(RateLimitError) as caught:
        kind.call(server.url, "completions", model="fake", prompt="hi")
    assert (caught.value.code, caught.value.retry_after) == ("queue_full", 1)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("stream_completions", {"prompt": "hi"}),
        ("stream_chat", {"messages": HI}),
        ("stream_respond", {"input": "hi"}),
    ],
)
def test_an_error_event_is_raised_with_the_text_before_it(
    kind: Kind, server: AppServer, engine: FakeEngine, method: str, fields: dict[str, Any]
) -> None:
    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        steps = says("Hello")(request)[:3]
        return [*steps, [SequenceOutput(request.request_id, 0, [], finish_reason="error")]]

    engine.script = script
    streamed = kind.stream(server.url, method, model="fake", **fields)
    assert isinstance(streamed.error, StreamFailedError)
    assert streamed.error.received.text == "Hel"


def test_leaving_a_stream_ends_the_request(kind: Kind, server: AppServer, engine: FakeEngine) -> None:
    engine.script = says("word " * 2000)
    engine.step_s = 0.001
    streamed = kind.stream(server.url, "stream_completions", most=3, model="fake", prompt="hi", max_tokens=9999)
    assert (len(streamed.events), streamed.error) == (3, None)
    assert eventually(lambda: len(engine.aborts) == 1)
    assert eventually(lambda: server.link.num_requests == 0)


@pytest.mark.parametrize("key", [None, "wrong"])
def test_keys(kind: Kind, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    server = AppServer(engine, policy=AccessPolicy(("right",)))
    try:
        with pytest.raises(AuthenticationError) as caught:
            kind.call(server.url, "models", client={"api_key": key})
        assert caught.value.status == 401
        assert len(kind.call(server.url, "models", client={"api_key": "right"})) == 2
        monkeypatch.setenv("REMUDA_API_KEY", "right")
        assert len(kind.call(server.url + "/v1/", "models")) == 2
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("chat", {"model": "m", "messages": [], "stream": True}, "stream: call the method"),
        (
            "chat",
            {"model": "m", "messages": [], "temperature": float("nan")},
            "temperature must be a finite number",
        ),
        ("chat", {"model": "m", "messages": [object()]}, "/v1/chat/completions: the request cannot be written"),
        ("retrieve_response", {"response_id": ""}, "response_id must not be empty"),
    ],
)
def test_what_cannot_be_meant_is_not_sent(kind: Kind, method: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        kind.call("http://127.0.0.1:1", method, **fields)
