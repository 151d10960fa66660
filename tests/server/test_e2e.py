"""The real server on the demo model, through the official client."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.server.conftest import ServerProcess
from tests.server.fakes import eventually

pytestmark = pytest.mark.e2e

PROMPT = "Once upon a time, there was a little girl named"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi! How are you today?"}]


@pytest.fixture
def client(demo: ServerProcess) -> Iterator[openai.OpenAI]:
    with demo.openai() as found:
        yield found


@pytest.fixture
def http(demo: ServerProcess) -> Iterator[httpx2.Client]:
    with demo.http() as found:
        yield found


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": "demo", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    return client.completions.create(**{**given, **fields})


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": "demo", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**{**given, **fields})


def test_ready_line(demo: ServerProcess, http: httpx2.Client) -> None:
    (line,) = [line for line in demo.log.splitlines() if "ready at" in line]
    assert line.startswith("remuda: demo (longhorn, 3.96M parameters) on cpu, cpu backend, float32, 4 slots × ")
    assert http.get("/ready").json()["status"] == "ready"
    assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == ["demo", "stories"]


def test_completion_stream_is_the_whole(client: openai.OpenAI) -> None:
    whole = complete(client)
    assert whole.choices[0].text.startswith(" Lily. She loved to play")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (12, 24)
    *chunks, last = complete(client, stream=True, stream_options={"include_usage": True}, model="stories")
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.usage == whole.usage


def test_chat_stream_is_the_whole(client: openai.OpenAI) -> None:
    whole = chat(client)
    assert whole.choices[0].message.content.startswith("I'm doing well, thank you!")
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(chat(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


def test_chat_tokens_are_its_rendered_text(client: openai.OpenAI) -> None:
    """The template writes the BOS; encoding it as a completion adds no second one."""
    rendered = "<|endoftext|><|user|>Hi! How are you today?<|end|><|assistant|>"
    as_text = complete(client, prompt=rendered)
    assert as_text.choices[0].text == chat(client).choices[0].message.content
    assert as_text.usage == chat(client).usage


def test_logprobs_agree_with_scoring(client: openai.OpenAI) -> None:
    """What the model gave its own tokens while decoding, it gives them again while reading."""
    said = complete(client, logprobs=2).choices[0]
    read = complete(client, prompt=PROMPT + said.text, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert read.text == PROMPT + said.text
    assert read.logprobs.tokens[12:] == said.logprobs.tokens
    assert read.logprobs.token_logprobs[12:] == pytest.approx(said.logprobs.token_logprobs, abs=1e-3)
    assert read.logprobs.token_logprobs[0] is None
    offsets = zip(read.logprobs.text_offset[12:], said.logprobs.text_offset, strict=True)
    assert all(in_both == len(PROMPT) + in_answer for in_both, in_answer in offsets)
    for token, chosen, top in zip(
        said.logprobs.tokens, said.logprobs.token_logprobs, said.logprobs.top_logprobs, strict=True
    ):
        assert max(top.values()) == top[token] == chosen


def test_chat_logprobs(client: openai.OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=3).choices[0]
    assert (
        b"".join(bytes(entry.bytes) for entry in choice.logprobs.content[:-1]).decode() == choice.message.content
    )
    for entry in choice.logprobs.content:
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob)


def test_choices_and_seeds(client: openai.OpenAI) -> None:
    drawn = complete(client, n=4, seed=7, temperature=1)
    texts = [choice.text for choice in drawn.choices]
    assert len(set(texts)) > 1
    again = complete(client, n=4, seed=7, temperature=1)
    assert [choice.text for choice in again.choices] == texts
    other = complete(client, n=4, seed=8, temperature=1)
    assert [choice.text for choice in other.choices] != texts


def test_stop(client: openai.OpenAI) -> None:
    whole = complete(client).choices[0].text
    stopped = complete(client, stop=["to play", "zzz"]).choices[0]
    assert stopped.text == whole.partition("to play")[0]
    assert stopped.finish_reason == "stop"


def test_token_ids(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=[[0, 500, 600], [0, 700]], max_tokens=3)
    assert answer.usage.prompt_tokens == 5
    assert len(answer.choices) == 2


def test_many_async_clients(demo: ServerProcess, client: openai.OpenAI) -> None:
    """More requests than slots: all end, and greedy texts do not depend on their neighbours."""
    alone = complete(client).choices[0].text

    async def one(async_client: openai.AsyncOpenAI) -> str:
        stream = await async_client.completions.create(
            model="demo", prompt=PROMPT, max_tokens=24, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", timeout=60) as async_client:
            return await asyncio.gather(*(one(async_client) for _ in range(16)))

    assert asyncio.run(main()) == [alone] * 16


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_frees_the_slots(demo: ServerProcess, client: openai.OpenAI, stream: bool) -> None:
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 10_000_000, "n": 4, "stream": stream}
    data = httpx2.Request("POST", demo.url, json={**body, "ignore_eos": True}, headers={"connection": "close"})
    host, port = demo.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data.content)}\r\n"
        connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + data.content)
        if stream:
            assert b"200 OK" in connection.recv(100)
        else:
            with demo.http() as http:
                assert eventually(lambda: http.get("/health").json()["num_requests"] == 1)
    # Every slot was taken; this needs all of them again.
    assert len(complete(client, n=4).choices) == 4


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "gpt-5"}, 404),
        ({"prompt": []}, 400),
        ({"prompt": [[]]}, 400),
        ({"max_tokens": -1}, 400),
        ({"max_tokens": 10**15}, 400),
        ({"temperature": -1}, 400),
        ({"temperature": "hot"}, 400),
        ({"prompt": [2048]}, 400),
        ({"prompt": [-1]}, 400),
        ({"prompt": 5}, 400),
        ({"prompt": "x" * 10_000_000}, 413),
        ({"logit_bias": {"2048": 5}}, 400),
        ({"stop_token_ids": [2048]}, 400),
        ({"n": 5}, 400),
        ({"tools": [{}]}, 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input(client: openai.OpenAI, fields: dict[str, Any], status: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{"model": "demo", "prompt": "Hi", "extra_body": fields})
    assert caught.value.status_code == status
    assert caught.value.type == "invalid_request_error"
    assert complete(client, max_tokens=1).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "\xff"}', b"[1", b'{"model": "demo", "prompt": "x", "temperature": Infinity}', b"", b"[]"],
    ids=repr,
)
def test_bad_body(http: httpx2.Client, client: openai.OpenAI, content: bytes) -> None:
    answer = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert complete(client, max_tokens=1).choices[0].finish_reason == "length"


def test_empty_prompt_is_the_bos(client: openai.OpenAI) -> None:
    assert complete(client, prompt="").usage.prompt_tokens == 1


def test_unknown_route(http: httpx2.Client) -> None:
    answer = http.post("/v1/nothing", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


def test_seed_and_fingerprint(client: openai.OpenAI) -> None:
    """The same request is the same text, alone or among others; another seed is another text."""
    fields = {"temperature": 1.0, "max_tokens": 12, "n": 2}
    first, again, other = (complete(client, seed=seed, **fields) for seed in (7, 7, 8))
    texts = [[choice.text for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
    assert first.system_fingerprint == other.system_fingerprint != "fp_"


def test_continued_message(client: openai.OpenAI) -> None:
    """What the model says of its own accord, it says too when it is given the beginning."""
    whole = chat(client).choices[0].message.content
    begun = {"role": "assistant", "content": whole.partition(",")[0]}
    rest = chat(client, messages=[*MESSAGES, begun], extra_body={"continue_final_message": True})
    assert begun["content"] + rest.choices[0].message.content == whole


def test_token_ids_are_those_of_the_text(client: openai.OpenAI) -> None:
    extra = {"return_token_ids": True}
    first = complete(client, extra_body=extra).choices[0]
    by_ids = complete(client, prompt=first.prompt_token_ids, extra_body=extra).choices[0]
    assert (by_ids.text, by_ids.token_ids) == (first.text, first.token_ids)
    assert len(first.token_ids) == 24
