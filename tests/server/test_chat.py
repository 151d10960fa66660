"""`/v1/chat/completions` over a scripted engine, through the official client."""

from typing import Any

import httpx2
import openai
import pytest

from tests.server.fake_info import ASSISTANT, BOS, END, USER
from tests.server.fakes import AppServer, FakeEngine, byte_tokenizer, ids, says

MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "fake", "messages": MESSAGES, **fields})


def test_message_and_usage(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = chat(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello there")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert engine.requests[0].prompt.tolist() == [BOS, USER, *ids("Hi"), END, ASSISTANT]
    assert engine.requests[0].params.max_tokens == 1024
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 12)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_required_keys_are_there(http: httpx2.Client) -> None:
    body = http.post("/v1/chat/completions", json={"model": "fake", "messages": MESSAGES}).json()
    choice = body["choices"][0]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"] == {"role": "assistant", "content": "Hello there", "refusal": None}


def test_answer_can_be_sent_back(client: openai.OpenAI, engine: FakeEngine) -> None:
    message = chat(client).choices[0].message.model_dump()
    chat(client, messages=[*MESSAGES, message, {"role": "user", "content": "Bye"}])
    said = [USER, *ids("Hi"), END, ASSISTANT, *ids("Hello there"), END, USER, *ids("Bye"), END, ASSISTANT]
    assert engine.requests[1].prompt.tolist() == [BOS, *said]


@pytest.mark.parametrize("n", [1, 3])
def test_stream(client: openai.OpenAI, engine: FakeEngine, n: int) -> None:
    engine.script = says("é!")
    chunks = list(chat(client, stream=True, n=n))
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    for index in range(n):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert [choice.delta.content for choice in own[1:]] == ["é", "!", None]
        assert [choice.finish_reason for choice in own] == [None, None, None, "stop"]


def test_steps_that_arrive_together(client: openai.OpenAI, engine: FakeEngine) -> None:
    """However many outputs one wake-up takes, each choice has its deltas, then one finish."""
    step_by_step = says("é!")
    engine.script = lambda request: [[output for step in step_by_step(request) for output in step]]
    choices = [chunk.choices[0] for chunk in chat(client, stream=True)]
    assert [choice.delta.content for choice in choices] == ["", "é", "!", None]
    assert [choice.finish_reason for choice in choices] == [None, None, None, "stop"]


def test_usage_chunk(client: openai.OpenAI) -> None:
    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], 12)


def test_raw_stream(http: httpx2.Client) -> None:
    body = {"model": "fake", "messages": MESSAGES, "stream": True, "max_tokens": 1}
    events = http.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert len(events) == 5
    assert '"delta":{"role":"assistant","content":"","refusal":null}' in events[0]
    assert '"delta":{"content":"H"},"logprobs":null,"finish_reason":null}]' in events[1]
    assert '"delta":{},"logprobs":null,"finish_reason":"length"}]' in events[2]
    assert events[3:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    answer = chat(client, logprobs=True, top_logprobs=2, max_tokens=2, stream=stream)
    chunks = answer if stream else [answer]
    content = [
        entry
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content
    ]
    assert [(entry.token, entry.logprob, entry.bytes) for entry in content] == [
        ("H", -0.5, [72]),
        ("e", -0.5, [101]),
    ]
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [("I", -0.1), ("J", -0.2)]


def test_parts_and_roles(client: openai.OpenAI, engine: FakeEngine) -> None:
    chat(client, messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    assert engine.requests[0].prompt.tolist() == [BOS, USER, *ids("Hi"), END, ASSISTANT]


def test_template_that_refuses(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no system role"):
        chat(client, messages=[{"role": "system", "content": "x"}])


def test_checkpoint_without_template(engine: FakeEngine) -> None:
    server = AppServer(engine, byte_tokenizer(template=None))
    try:
        with httpx2.Client(base_url=server.url) as http:
            answer = http.post("/v1/chat/completions", json={"model": "fake", "messages": MESSAGES})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "no_chat_template"
    finally:
        server.stop()
