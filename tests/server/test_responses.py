"""`/v1/responses` over a scripted engine, through the official client: answers, events, inputs, fields."""

import json
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.server.fake_info import ASSISTANT, BOS, END, USER
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, ids, says
from tests.server.typed import conform

ASKED = [BOS, USER, *ids("Hi"), END, ASSISTANT]
# OpenAI sends it; the package's model does not know it.
EXTRAS = frozenset({"store"})
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def respond(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "fake", "input": "Hi", **fields})


def post(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post("/v1/responses", json={"model": "fake", "input": "Hi", **fields})


def stream(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    """The events of a whole stream, held to the types of the package, in their order of numbers."""
    answer = post(http, stream=True, **fields)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, rest = answer.text.split("\n\n")
    assert rest == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        conform(type(EVENTS.validate_python(event)), data.removeprefix("data: "), EXTRAS)
        events.append(event)
    return events


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_answer_and_usage(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = respond(client)
    assert answer.id.startswith("resp_")
    assert (answer.object, answer.status, answer.output_text) == ("response", "completed", "Hello there")
    (item,) = answer.output
    assert item.id.startswith("msg_")
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert (answer.error, answer.incomplete_details, answer.instructions) == (None, None, None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (6, 12, 18)
    assert answer.usage.input_tokens_details.cached_tokens == 0
    assert answer.completed_at >= answer.created_at
    assert engine.requests[0].prompt.tolist() == ASKED
    assert engine.requests[0].params.max_tokens == 1024


def test_required_keys_are_there_and_no_others(http: httpx2.Client) -> None:
    answer = conform(Response, post(http).content, EXTRAS)
    assert (answer.temperature, answer.top_p, answer.metadata) == (1.0, 1.0, {})
    body = post(http).json()
    for key in ("error", "incomplete_details", "instructions", "temperature", "top_p", "metadata"):
        assert key in body
    assert body["output"][0]["content"] == [
        {"type": "output_text", "text": "Hello there", "annotations": [], "logprobs": []}
    ]


def test_a_length_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = respond(client, max_output_tokens=3)
    assert (answer.status, answer.output_text) == ("incomplete", "Hel")
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.output[0].status, answer.completed_at) == ("incomplete", None)


def test_events_in_their_order(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = says("é!")
    events = stream(http)
    assert types(events) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    created, done, last = events[0]["response"], events[-2]["item"], events[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert [event["delta"] for event in events if "delta" in event] == ["é", "!"]
    assert events[6]["text"] == events[7]["part"]["text"] == "é!"
    assert last["output"] == [done]
    assert len({event["item_id"] for event in events if "item_id" in event} | {done["id"]}) == 1
    assert last["usage"]["output_tokens"] == 4
    assert {created["id"], last["id"]} == {events[1]["response"]["id"]}


def test_a_stream_says_what_the_whole_says(http: httpx2.Client) -> None:
    def described(response: dict[str, Any]) -> dict[str, Any]:
        """But for ids and times."""
        item = {**response["output"][0], "id": ""}
        return {**response, "output": [item], "id": "", "created_at": 0, "completed_at": 0}

    fields: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "seed": 3}
    assert described(stream(http, **fields)[-1]["response"]) == described(post(http, **fields).json())


def test_a_stream_cut_by_length(http: httpx2.Client) -> None:
    events = stream(http, max_output_tokens=1)
    assert types(events)[-2:] == ["output_item.done", "incomplete"]
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


def test_an_answer_without_text_has_its_item(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = says("")
    events = stream(http)
    assert types(events)[2:] == [
        *("output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]


def test_the_client_reads_the_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="Hi") as found:
        deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
        assert "".join(deltas) == found.get_final_response().output_text == "Hello there"


@pytest.mark.parametrize("is_stream", [False, True])
def test_logprobs(http: httpx2.Client, is_stream: bool) -> None:
    fields: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    fields["max_output_tokens"] = 2
    response = stream(http, **fields)[-1]["response"] if is_stream else post(http, **fields).json()
    conform(Response, json.dumps(response), EXTRAS)
    entries = response["output"][0]["content"][0]["logprobs"]
    assert [(entry["token"], entry["logprob"], entry["bytes"]) for entry in entries] == [
        ("H", -0.5, [72]),
        ("e", -0.5, [101]),
    ]
    assert [top["token"] for top in entries[0]["top_logprobs"]] == ["I", "J"]


def test_logprobs_in_deltas(http: httpx2.Client) -> None:
    events = stream(http, include=["message.output_text.logprobs"], max_output_tokens=2)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"][0]["token"] for event in deltas] == ["H", "e"]


def said(*turns: tuple[int, str]) -> list[int]:
    """The prompt of a conversation."""
    return [BOS, *(token for role, text in turns for token in (role, *ids(text), END)), ASSISTANT]


TEXT_PARTS = [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i"}]
EASY_ANSWER = {"role": "assistant", "content": "Yo"}
ANSWER = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Yo", "annotations": []}],
}


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ([{"role": "user", "content": "Hi"}], ASKED),
        ([{"type": "message", "role": "user", "content": TEXT_PARTS, "status": None}], ASKED),
        ([{"role": "user", "content": "a"}, ANSWER, {"role": "user", "content": "b"}], None),
        ([{"role": "user", "content": "a"}, EASY_ANSWER, {"role": "user", "content": "b"}], None),
        ("", said((USER, ""))),
    ],
    ids=lambda value: str(value)[:60],
)
def test_forms_of_input(client: openai.OpenAI, engine: FakeEngine, given: Any, prompt: list[int] | None) -> None:
    assert respond(client, input=given).status == "completed"
    assert engine.requests[0].prompt.tolist() == (prompt or said((USER, "a"), (ASSISTANT, "Yo"), (USER, "b")))


def test_instructions_come_first(engine: FakeEngine) -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    server = AppServer(engine, byte_tokenizer(bos=False, template=template))
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            first = respond(client, instructions="Be brief", input=[{"role": "developer", "content": "x"}])
            assert first.instructions == "Be brief"
            assert engine.requests[0].prompt.tolist() == ids("system:Be brief;system:x;")
            # They are of one turn alone.
            respond(client, previous_response_id=first.id)
            assert engine.requests[1].prompt.tolist() == ids("system:x;assistant:Hello there;user:Hi;")
    finally:
        server.stop()


def test_sampling_fields_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    extra = {
        "top_k": 5,
        "seed": 7,
        "stop": ["zz"],
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "logit_bias": {"9": 1},
    }
    answer = respond(client, temperature=0.5, top_p=0.9, max_output_tokens=7, extra_body=extra)
    params = engine.requests[0].params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.5, 0.9, 7)
    assert (params.top_k, params.seed, params.stop, params.min_p) == (5, 7, ("zz",), 0.1)
    assert (params.repetition_penalty, params.logit_bias) == (1.2, {9: 1})
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.5, 0.9, 7)


def test_a_stop_string_completes(client: openai.OpenAI) -> None:
    answer = respond(client, extra_body={"stop": "lo t"})
    assert (answer.status, answer.output_text) == ("completed", "Hel")


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
        {"service_tier": "auto"},
        {"parallel_tool_calls": False, "tools": [], "tool_choice": "none", "max_tool_calls": 3},
        {"truncation": "auto"},
        {"text": {"format": {"type": "text"}}},
        {"text": {"verbosity": "medium"}},
        {"reasoning": {"effort": "none", "summary": "auto"}},
        {"include": ["reasoning.encrypted_content"], "top_logprobs": 0},
        {"store": False},
        {"background": False},
        {"conversation": None, "prompt": None, "context_management": [], "moderation": None},
        {"n": 1},
    ],
    ids=str,
)
def test_harmless_fields(http: httpx2.Client, fields: dict[str, Any]) -> None:
    answer = post(http, **fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    for name in ("metadata", "user", "truncation", "parallel_tool_calls", "max_tool_calls", "store"):
        assert body[name] == fields.get(name, body[name])
    conform(Response, answer.content, EXTRAS)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "gpt-5"}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{}]}, "input.0.role"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"role": "user", "content": "x", "audio": 1}]}, "input.0.audio"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
        ({"input": [{"type": ["message"]}]}, "input.0.type"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0.type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
        ({"input": [{"role": "system", "content": "x"}]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": -(10**4000)}, "max_output_tokens"),
        ({"max_output_tokens": 2**31}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"include": ["everything"]}, "include.0"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncation": "middle"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"nonsense": 1}, "nonsense"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"previous_response_id": "x" * 50_000}, "previous_response_id"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_fields(http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    answer = post(http, **fields)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert len(error["message"]) < 400
    assert engine.requests == []
    assert post(http).json()["status"] == "completed"


def test_without_a_template(engine: FakeEngine) -> None:
    server = AppServer(engine, byte_tokenizer(template=None))
    try:
        with httpx2.Client(base_url=server.url) as http:
            error = post(http).json()["error"]
            assert (error["param"], error["code"]) == ("input", "no_chat_template")
    finally:
        server.stop()
