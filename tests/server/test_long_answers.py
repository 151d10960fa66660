"""Answers with very many log-probabilities: the event loop does other work between slices of them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from remuda.engine.logprob_pieces import MAX_IN_PIECE
from remuda.server import logprobs
from tests.server.fakes import AppServer, FakeEngine, eventually, ids, says
from tests.server.raw_http import request

NUM_TOKENS = 2000
PROMPT = ids("abcdefghijklmnopqrstuvwxyz" * NUM_TOKENS)[:NUM_TOKENS]
LONG = {"model": "fake", "prompt": PROMPT, "max_tokens": 1}


class Turns:
    """Counts what is described in one turn of a server's event loop."""

    def __init__(self, server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = [0]
        self._loop = server.loop
        self._is_on = True
        string, advance = logprobs.token_string, logprobs.TextOffsets.advance

        def counted_string(*arguments: Any) -> str:
            self.counts[-1] += 1
            return string(*arguments)

        def counted_advance(*arguments: Any) -> int:
            self.counts[-1] += 1
            return advance(*arguments)

        monkeypatch.setattr(logprobs, "token_string", counted_string)
        monkeypatch.setattr(logprobs.TextOffsets, "advance", counted_advance)
        server.call(self._turn)

    def stop(self) -> None:
        self._is_on = False

    def _turn(self) -> None:
        if self.counts[-1]:
            self.counts.append(0)
        if self._is_on:
            self._loop.call_later(0, self._turn)


@pytest.fixture
def turns(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """From here on."""
    counting = Turns(server, monkeypatch)
    yield counting
    counting.stop()


@pytest.mark.parametrize(
    ("path", "body", "num_described"),
    [
        ("/v1/completions", {**LONG, "prompt_logprobs": 20}, 20 * NUM_TOKENS),
        ("/v1/completions", {**LONG, "echo": True, "logprobs": 20}, 22 * NUM_TOKENS),
        ("/v1/completions", {**LONG, "echo": True, "logprobs": 20, "stream": True}, 22 * NUM_TOKENS),
        ("/v1/completions", {**LONG, "echo": True, "logprobs": 0, "n": 3}, 6 * NUM_TOKENS),
        (
            "/v1/chat/completions",
            {
                "model": "fake",
                "messages": [{"role": "user", "content": "x"}],
                "logprobs": True,
                "top_logprobs": 20,
                "max_tokens": NUM_TOKENS,
            },
            20 * NUM_TOKENS,
        ),
    ],
    ids=["prompt", "echo", "stream", "choices", "chat"],
)
def test_no_turn_of_the_loop_describes_more_than_a_slice(
    engine: FakeEngine, http: httpx2.Client, turns: Turns, path: str, body: dict[str, Any], num_described: int
) -> None:
    engine.script = says("y" * 2 * NUM_TOKENS)
    answer = http.post(path, json=body)
    assert answer.status_code == 200
    turns.stop()
    assert sum(turns.counts) > num_described
    # A token's own entry comes on top of its alternatives, and another column may begin in the same turn.
    assert max(turns.counts) <= MAX_IN_PIECE + 2 * 21


def test_a_long_answer_is_right_to_its_end(http: httpx2.Client) -> None:
    answer = http.post("/v1/completions", json={**LONG, "echo": True, "logprobs": 1})
    (choice,) = answer.json()["choices"]
    assert len(answer.content) == int(answer.headers["content-length"])
    found = choice["logprobs"]
    assert {len(found[name]) for name in found} == {NUM_TOKENS + 1}
    assert found["token_logprobs"] == [None] + [-0.5] * NUM_TOKENS
    assert found["text_offset"][-1] == len(choice["text"]) - 1


def test_a_streamed_echo_goes_on_with_the_right_offsets(http: httpx2.Client) -> None:
    body = {**LONG, "echo": True, "logprobs": 1, "stream": True, "max_tokens": 5, "n": 2}
    lines = http.post("/v1/completions", json=body).text.split("\n\n")
    for index in (0, 1):
        choices = [json.loads(line[6:])["choices"][0] for line in lines if f'"index":{index}' in line]
        text = "".join(choice["text"] for choice in choices)
        offsets = [o for choice in choices if choice["logprobs"] for o in choice["logprobs"]["text_offset"]]
        assert text.endswith("Hello")
        assert len(offsets) == NUM_TOKENS + 5
        assert [text[o] for o in offsets[-5:]] == list("Hello")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_the_slices(
    server: AppServer, engine: FakeEngine, turns: Turns, stream: bool
) -> None:
    """The rest of its answer is not made."""
    longer = {**LONG, "prompt": PROMPT * 2, "echo": True, "logprobs": 20, "stream": stream}
    body = json.dumps(longer).encode()
    with server.raw() as connection:
        connection.sendall(request("POST", "/v1/completions", "content-type: application/json", body=body))
        assert eventually(lambda: sum(turns.counts) > 0)
    assert eventually(lambda: server.records != [])
    assert 0 < sum(turns.counts) < 44 * NUM_TOKENS
