"""vLLM's extras and the system fingerprint over a scripted engine: each arrives, and shows in the answer."""

import json
from typing import Any

import httpx2
import msgspec
import pytest

from remuda.server.state import ServerState
from tests.server.fake_info import BOS, END, INFO, USER
from tests.server.fakes import AppServer, FakeEngine, ids, says

COMPLETION: dict[str, Any] = {"model": "fake", "prompt": "Hi"}
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
BODIES = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}
PATHS = pytest.mark.parametrize("path", BODIES)


def post(http: httpx2.Client, path: str, **fields: Any) -> dict[str, Any]:
    answer = http.post(path, json={**BODIES[path], **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stream(http: httpx2.Client, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, without [DONE]."""
    answer = http.post(path, json={**BODIES[path], **fields, "stream": True})
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in own)


@PATHS
def test_sampling_extras_reach_the_engine(http: httpx2.Client, engine: FakeEngine, path: str) -> None:
    extras = {
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "prompt_logprobs": 3,
        "priority": -5,
    }
    post(http, path, **extras, stop_token_ids=[9])
    params = engine.requests[0].params
    assert {name: getattr(params, name) for name in extras} == extras
    assert params.stop_token_ids == (9,)


@PATHS
def test_stop_string_is_shown(http: httpx2.Client, engine: FakeEngine, path: str) -> None:
    engine.script = says("one two three")
    fields = {"stop": ["tw", "two"], "include_stop_str_in_output": True}
    chunks = stream(http, path, **fields)
    assert text_of(chunks) == "one tw"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    whole = post(http, path, **fields)["choices"][0]
    assert (whole.get("text") or whole["message"]["content"]) == "one tw"


@PATHS
def test_token_ids(http: httpx2.Client, engine: FakeEngine, path: str) -> None:
    engine.script = says("é!")
    tokens = [*ids("é!"), END]
    body = post(http, path, return_token_ids=True, n=2)
    assert [choice["token_ids"] for choice in body["choices"]] == [tokens, tokens]
    chunks = stream(http, path, return_token_ids=True)
    # The first half of the character waits for the other; the token that ends has no text.
    pieces = [chunk["choices"][0]["token_ids"] for chunk in chunks if chunk["choices"][0].get("token_ids")]
    assert pieces == [ids("é"), ids("!"), [END]]
    # Completions have several prompts, so that there each choice tells its own.
    holders = [body, chunks[0]] if "chat" in path else [*body["choices"], *chunks[0]["choices"]]
    assert all(holder["prompt_token_ids"] == engine.requests[0].prompt.tolist() for holder in holders)
    assert "token_ids" not in post(http, path)["choices"][0]


def test_token_ids_of_each_prompt(http: httpx2.Client) -> None:
    body = post(http, "/v1/completions", prompt=["a", [5, 6]], return_token_ids=True, max_tokens=1)
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == [[BOS, *ids("a")], [5, 6]]
    chunks = stream(http, "/v1/completions", prompt=["a", [5, 6]], return_token_ids=True, echo=True)
    first = {chunk["choices"][0]["index"]: chunk["choices"][0] for chunk in reversed(chunks)}
    assert [first[i]["prompt_token_ids"] for i in (0, 1)] == [[BOS, *ids("a")], [5, 6]]
    assert first[0]["text"] == "a"


def test_prompt_logprobs_of_a_chat(http: httpx2.Client) -> None:
    body = post(http, "/v1/chat/completions", prompt_logprobs=1)
    first, second, *rest = body["prompt_logprobs"]
    assert first is None
    assert second[str(USER)]["logprob"] == -0.5
    assert len(rest) == body["usage"]["prompt_tokens"] - 2
    refused = http.post("/v1/chat/completions", json={**CHAT, "prompt_logprobs": 1, "stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")


@PATHS
def test_usage_in_every_event(http: httpx2.Client, engine: FakeEngine, path: str) -> None:
    engine.script = says("é!")
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = stream(http, path, n=2, stream_options=options)
    for index in (0, 1):
        own = [chunk["usage"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in own if usage["completion_tokens"] > 1] == [2, 3, 4]
        assert {usage["prompt_tokens"] for usage in own} == {last["usage"]["prompt_tokens"]}
    assert last["usage"]["completion_tokens"] == 8
    chunks = stream(http, path, stream_options={"continuous_usage_stats": True})
    assert all("usage" not in chunk for chunk in chunks)


@PATHS
def test_fingerprint(http: httpx2.Client, path: str) -> None:
    body = post(http, path)
    chunks = stream(http, path, stream_options={"include_usage": True}, logprobs=1 if "chat" not in path else True)
    assert body["system_fingerprint"].startswith("fp_")
    assert {chunk["system_fingerprint"] for chunk in chunks} == {body["system_fingerprint"]}


@pytest.mark.parametrize("changed", [None, "weights_fingerprint", "dtype", "state_dtype", "backend", "device"])
def test_fingerprint_follows_weights_and_arithmetic(server: AppServer, changed: str | None) -> None:
    state: ServerState = server.state
    before = state.system_fingerprint
    server.link.info = msgspec.structs.replace(INFO, **({} if changed is None else {changed: "other"}))
    assert (state.system_fingerprint != before) == (changed is not None)
