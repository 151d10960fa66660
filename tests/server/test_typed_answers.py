"""Answers, stream events and errors are what the `openai` package's models say, and nothing else; in order."""

from typing import Any

import httpx2
import pydantic
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject

from remuda.engine.errors import UnhealthyStateError
from remuda.engine.wire import RequestRejected, SequenceOutput
from tests.server.fakes import FakeEngine, ids, says
from tests.server.typed import conform, events

CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "fake", "prompt": "Hi"}

CHAT_FIELDS = pytest.mark.parametrize(
    ("fields", "extras"),
    [
        ({}, []),
        ({"n": 3}, []),
        ({"logprobs": True}, []),
        ({"logprobs": True, "top_logprobs": 3}, []),
        ({"max_tokens": 0}, []),
        ({"max_tokens": 2, "stop": "e"}, []),
        ({"return_token_ids": True}, ["prompt_token_ids", "token_ids"]),
    ],
    ids=str,
)
COMPLETION_FIELDS = pytest.mark.parametrize(
    ("fields", "extras"),
    [
        ({}, []),
        ({"n": 2, "prompt": ["a", "b"]}, []),
        ({"echo": True}, []),
        ({"logprobs": 2}, []),
        ({"max_tokens": 0}, []),
        ({"return_token_ids": True}, ["prompt_token_ids", "token_ids"]),
    ],
    ids=str,
)


def post(http: httpx2.Client, path: str, body: dict[str, Any]) -> str:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.text


@CHAT_FIELDS
def test_chat(http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], extras: list[str]) -> None:
    engine.script = says("é😀 there")
    answer = conform(ChatCompletion, post(http, "/v1/chat/completions", CHAT | fields), frozenset(extras))
    assert [choice.index for choice in answer.choices] == list(range(fields.get("n", 1)))


@CHAT_FIELDS
@pytest.mark.parametrize("usage", [None, {"include_usage": True}])
def test_chat_stream(
    http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], extras: list[str], usage: Any
) -> None:
    engine.script = says("é😀 there")
    text = post(http, "/v1/chat/completions", CHAT | fields | {"stream": True, "stream_options": usage})
    chunks = [conform(ChatCompletionChunk, event, frozenset(extras)) for event in events(text)]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    if usage is not None:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    for index in range(fields.get("n", 1)):
        first, *deltas, final = (c.choices[0] for c in chunks if c.choices[0].index == index)
        assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
        assert all(c.delta.role is None and c.delta.content is not None for c in deltas)
        assert all(c.finish_reason is None for c in deltas)
        assert final.delta.content is None
        assert final.finish_reason in ("stop", "length")


@COMPLETION_FIELDS
def test_completion(http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], extras: list[str]) -> None:
    engine.script = says("é😀 there")
    answer = conform(Completion, post(http, "/v1/completions", COMPLETION | fields), frozenset(extras))
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))


@COMPLETION_FIELDS
@pytest.mark.parametrize("usage", [None, {"include_usage": True}])
def test_completion_stream(
    http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], extras: list[str], usage: Any
) -> None:
    """The package has no type for a chunk: it is a Completion whose finish reason is null until the last."""
    engine.script = says("é😀 there")
    text = post(http, "/v1/completions", COMPLETION | fields | {"stream": True, "stream_options": usage})
    parsed = events(text)
    if usage is not None:
        last = conform(Completion, parsed.pop())
        assert last.choices == []
        assert last.usage is not None
    open_end = '"finish_reason":null'
    chunks = [
        conform(Completion, event.replace(open_end, '"finish_reason":"stop"'), frozenset(extras))
        for event in parsed
    ]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    for index in range(fields.get("n", 1) * (2 if "prompt" in fields else 1)):
        own = [event for event, c in zip(parsed, chunks, strict=True) if c.choices[0].index == index]
        assert [open_end in event for event in own] == [True] * (len(own) - 1) + [False]


def test_echo_with_logprobs_has_the_one_null_that_the_types_do_not_know(http: httpx2.Client) -> None:
    text = post(http, "/v1/completions", COMPLETION | {"echo": True, "logprobs": 1, "max_tokens": 0})
    with pytest.raises(pydantic.ValidationError) as caught:
        conform(Completion, text)
    places = [error["loc"][-2:] for error in caught.value.errors()]
    assert places == [("token_logprobs", 0), ("top_logprobs", 0)]


def test_models(http: httpx2.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed.keys() == {"object", "data"}
    for name in ("fake", "org/alias"):
        assert conform(Model, http.get(f"/v1/models/{name}").content).id == name


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {}, 400),
        ("/v1/completions", COMPLETION | {"temperature": 9}, 400),
        ("/v1/completions", COMPLETION | {"model": "x"}, 404),
        ("/v1/chat/completions", CHAT | {"messages": []}, 400),
        ("/v1/chat/completions", COMPLETION | {"stop": 5}, 400),
        ("/nowhere", {}, 404),
        ("/health", {}, 405),
    ],
    ids=str,
)
def test_errors(http: httpx2.Client, path: str, body: dict[str, Any], status: int) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status
    check_error(answer.json())


def test_rejection_by_the_engine(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, "QueueFullError", "full")
    answer = http.post("/v1/completions", json=COMPLETION)
    assert answer.status_code == 429
    check_error(answer.json())


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_error_in_a_stream(http: httpx2.Client, engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
    def fails_at_the_second_token(request: Any) -> list[list[SequenceOutput]]:
        first = SequenceOutput(request.request_id, 0, ids("H"))
        return [[first], [SequenceOutput(request.request_id, 0, [], finish_reason="error", error="bad state")]]

    engine.script = fails_at_the_second_token
    *_, last, rest = post(http, path, body | {"stream": True}).split("\n\n")
    assert rest == ""
    assert "[DONE]" not in last
    check_error(pydantic.TypeAdapter(dict[str, Any]).validate_json(last.removeprefix("data: ")))
    assert UnhealthyStateError.__name__ not in last


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", COMPLETION | {"n": 2}),
        ("/v1/chat/completions", CHAT | {"n": 2}),
        ("/v1/responses", {"model": "fake", "input": "Hi"}),
    ],
)
def test_text_that_comes_with_an_error_is_sent(
    http: httpx2.Client, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    def fails_with_text(request: Any) -> list[list[SequenceOutput]]:
        text = [SequenceOutput(request.request_id, i, ids("Hey"[i])) for i in range(request.params.n)]
        error = SequenceOutput(request.request_id, 0, [], finish_reason="error", error="bad state")
        # Also before what another choice has brought.
        return [[text[0], error, *text[1:]]]

    engine.script = fails_with_text
    *events, rest = post(http, path, body | {"stream": True}).split("\n\n")
    assert rest == ""
    num_choices = body.get("n", 1)
    for i in range(num_choices):
        assert sum(f'"{"Hey"[i]}"' in event for event in events) == 1
    assert ["bad state" in event for event in events] == [False] * (len(events) - 1) + [True]


def check_error(body: dict[str, Any]) -> None:
    (error,) = body.values()
    assert error.keys() == {"message", "type", "param", "code"}
    # The type has `code` as a string or null; both are there.
    ErrorObject.model_validate(error, strict=True)
