"""`/v1/completions` over a scripted engine, through the official client."""

from typing import Any

import httpx2
import openai
import pytest

from remuda.server import prompts
from tests.server.fake_info import BOS
from tests.server.fakes import TOKENIZER, AppServer, FakeEngine, eventually, ids, says


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "fake", "prompt": "Hi", "max_tokens": 100, **fields})


def test_text_and_usage(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = complete(client)
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", "fake")
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Hello there", "stop", None)
    # The token that ended it counts, as it was computed.
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert engine.requests[0].prompt.tolist() == [BOS, *ids("Hi")]


def test_required_keys_are_there(http: httpx2.Client) -> None:
    body = http.post("/v1/completions", json={"model": "org/alias", "prompt": "Hi"}).json()
    assert body["model"] == "org/alias"
    assert body["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}


def test_default_is_sixteen_tokens(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says("x" * 50)
    answer = client.completions.create(model="fake", prompt="Hi")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_times_n(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    answer = complete(client, prompt=["a", "b"], n=3, stream=stream)
    texts = [""] * 6
    chunks = answer if stream else [answer]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["Hello there"] * 6
    assert [request.prompt.tolist() for request in engine.requests] == [[BOS, *ids("a")], [BOS, *ids("b")]]


def test_usage_counts_a_prompt_once(client: openai.OpenAI) -> None:
    usage = complete(client, prompt=[[5, 6, 7], [8]], n=2).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 48)


def test_stream(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says("é😀!")
    chunks = list(complete(client, stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["é", "😀", "!", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "text_completion"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_chunk(client: openai.OpenAI) -> None:
    *chunks, last = complete(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage.total_tokens == 15


def test_raw_stream(http: httpx2.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "fake", "prompt": "Hi", "stream": True, "max_tokens": 1})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    first, second, done, rest = answer.text.split("\n\n")
    assert first.startswith('data: {"id":"cmpl-')
    assert first.endswith('"choices":[{"index":0,"text":"H","logprobs":null,"finish_reason":null}]}')
    assert second.endswith('"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}')
    assert (done, rest) == ("data: [DONE]", "")


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(client: openai.OpenAI, engine: FakeEngine, stream: bool) -> None:
    engine.script = says("one two three" + "x" * 200)
    engine.step_s = 0.001
    answer = complete(client, stop=["four", "o th"], stream=stream, max_tokens=500)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one tw"
    assert chunks[-1].choices[0].finish_reason == "stop"
    if not stream:
        assert answer.usage.completion_tokens == len("one two th")
    # The engine is told at once, for this sequence, and at the end for the request.
    assert eventually(lambda: len(engine.aborts) >= 2)
    assert [abort.index for abort in engine.aborts][:2] == [0, None]


def test_stop_string_leaves_other_choices_alone(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says("abc")
    answer = complete(client, stop="b", n=2, prompt=["x", "y"])
    assert [choice.text for choice in answer.choices] == ["a"] * 4
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["é<end>Hi", [5, 6, 7]])
def test_echo(client: openai.OpenAI, stream: bool, prompt: Any) -> None:
    answer = complete(client, prompt=prompt, echo=True, stream=stream)
    chunks = answer if stream else [answer]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    shown = prompt if isinstance(prompt, str) else TOKENIZER.decode([5, 6, 7])
    assert text == shown + "Hello there"


def test_echo_with_logprobs(client: openai.OpenAI) -> None:
    choice = complete(client, prompt="é!", echo=True, logprobs=1, max_tokens=1).choices[0]
    assert choice.text == "é!H"
    assert choice.logprobs.tokens == ["<bos>", "bytes:\\xc3", "bytes:\\xa9", "!", "H"]
    assert choice.logprobs.text_offset == [0, 0, 1, 1, 2]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.top_logprobs[3] == {'"': -0.1, "!": -0.5}


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_as_lm_eval_does(http: httpx2.Client, max_tokens: int) -> None:
    """Token ids, echo, logprobs=1: one entry per token, null for the first."""
    tokens = [BOS, *ids("The cat")]
    body = {"model": "fake", "prompt": [tokens, tokens], "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    answer = http.post("/v1/completions", json={**body, "temperature": 0, "seed": 1234}).json()
    for choice in answer["choices"]:
        found = choice["logprobs"]["token_logprobs"]
        assert found == [None] + [-0.5] * (len(tokens) - 1 + max_tokens)
        assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2 * max_tokens


def test_stream_with_echo_and_logprobs(client: openai.OpenAI) -> None:
    chunks = list(complete(client, prompt="ab", echo=True, logprobs=0, n=2, max_tokens=2, stream=True))
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert [choice.text for choice in own] == ["ab", "H", "e", ""]
        assert own[0].logprobs.tokens == ["<bos>", "a", "b"]
        assert [own[i].logprobs.text_offset for i in (0, 1, 2)] == [[0, 0, 1], [2], [3]]
        assert own[3].logprobs is None


def test_logprobs_wait_for_their_text(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = says("é!")
    chunks = list(complete(client, logprobs=0, stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["é", "!", "", ""]
    tokens = [chunk.choices[0].logprobs and chunk.choices[0].logprobs.tokens for chunk in chunks]
    assert tokens == [["bytes:\\xc3", "bytes:\\xa9"], ["!"], ["<end>"], None]


def test_prompt_logprobs(http: httpx2.Client) -> None:
    body = {"model": "fake", "prompt": "ab", "prompt_logprobs": 1, "max_tokens": 1}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["logprobs"] is None
    first, second, third = choice["prompt_logprobs"]
    assert first is None
    assert second[str(ids("a")[0])] == {"logprob": -0.5, "rank": None, "decoded_token": "a"}
    assert third[str(ids("c")[0])] == {"logprob": -0.1, "rank": 1, "decoded_token": "c"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        # With the BOS, 21 tokens.
        ({"prompt": "a" * 20, "prompt_logprobs": 4}, "prompt_logprobs"),
        ({"prompt": "a" * 20, "echo": True, "logprobs": 4}, "logprobs"),
        ({"prompt": ["a" * 9, "a" * 10], "prompt_logprobs": 4}, "prompt_logprobs"),
        ({"prompt": "a" * 19, "prompt_logprobs": 4}, None),
        ({"prompt": "a" * 9, "prompt_logprobs": 4, "n": 2}, None),
        ({"prompt": "a" * 20, "logprobs": 4}, None),
        ({"prompt": "a" * 99, "prompt_logprobs": 0}, None),
    ],
    ids=str,
)
def test_number_of_prompt_logprobs_is_limited(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], param: str | None
) -> None:
    assert prompts.MAX_PROMPT_LOGPROBS == 100_000
    monkeypatch.setattr(prompts, "MAX_PROMPT_LOGPROBS", 100)
    answer = http.post("/v1/completions", json={"model": "fake", "max_tokens": 1, **fields})
    if param is None:
        assert answer.status_code == 200
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert "21 prompt tokens × (4 + 1) = 105 " in error["message"]
    assert "limit of 100" in error["message"]


def test_zero_tokens(client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "length")
    chunks = list(complete(client, max_tokens=0, stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks] == ["length"]


def test_without_special_tokens(client: openai.OpenAI, engine: FakeEngine) -> None:
    complete(client, extra_body={"add_special_tokens": False})
    assert engine.requests[0].prompt.tolist() == ids("Hi")


def test_without_tokenizer(engine: FakeEngine) -> None:
    from remuda.engine.tokenizer import TokenIdTokenizer

    server = AppServer(engine, TokenIdTokenizer())
    try:
        with httpx2.Client(base_url=server.url) as http:
            body = {"model": "fake", "prompt": [7, 10], "max_tokens": 2, "logprobs": 0}
            choice = http.post("/v1/completions", json=body).json()["choices"][0]
            first, second = (f"token_id:{token}" for token in ids("He"))
            assert choice["text"] == f"{first} {second}"
            assert choice["logprobs"]["tokens"] == [first, second]
            assert choice["logprobs"]["text_offset"] == [0, len(first)]
            choice = http.post("/v1/completions", json={**body, "echo": True}).json()["choices"][0]
            assert choice["text"] == f"token_id:7 token_id:10 {first} {second}"
            for body in ({"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}):
                path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
                answer = http.post(path, json={"model": "fake", **body})
                assert answer.status_code == 400
    finally:
        server.stop()
