"""`/v1/embeddings` over a scripted engine: inputs, forms of the vector, errors."""

import base64
import math
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from remuda.engine.wire import AddRequest, RequestRejected, SequenceOutput
from tests.server.fake_info import BOS, END, VOCAB_SIZE
from tests.server.fakes import AppServer, FakeEngine, eventually, ids
from tests.server.typed import conform


def post(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    return http.post("/v1/embeddings", json={"model": "fake", "input": "Hi", **fields})


def vectors(http: httpx2.Client, **fields: Any) -> list[list[float]]:
    answer = post(http, **fields)
    assert answer.status_code == 200, answer.text
    return [entry["embedding"] for entry in answer.json()["data"]]


def test_a_vector_has_length_one(http: httpx2.Client, engine: FakeEngine) -> None:
    answer = conform(CreateEmbeddingResponse, post(http).content)
    (entry,) = answer.data
    assert (answer.object, answer.model, entry.object, entry.index) == ("list", "fake", "embedding", 0)
    assert entry.embedding == pytest.approx([x / math.sqrt(34) for x in (3, 4, 3)], rel=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    (request,) = engine.requests
    assert request.prompt.tolist() == [BOS, *ids("Hi")]
    assert (request.params.pooling, request.params.max_tokens) == ("last", 0)
    assert vectors(http, normalize=False) == [[3, 4, 3]]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling(http: httpx2.Client, engine: FakeEngine, pooling: str) -> None:
    vectors(http, pooling=pooling)
    assert engine.requests[0].params.pooling == pooling


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Hi", [[BOS, *ids("Hi")]]),
        (["a", "bc"], [[BOS, *ids("a")], [BOS, *ids("bc")]]),
        ([9, 8, 7], [[9, 8, 7]]),
        ([[9], [8, 7]], [[9], [8, 7]]),
        ("", [[BOS]]),
    ],
    ids=str,
)
def test_forms_of_input(http: httpx2.Client, engine: FakeEngine, given: Any, prompts: list[list[int]]) -> None:
    found = vectors(http, input=given, normalize=False)
    assert [vector[2] for vector in found] == [len(prompt) for prompt in prompts]
    assert [request.prompt.tolist() for request in engine.requests] == prompts


def test_without_special_tokens(http: httpx2.Client, engine: FakeEngine) -> None:
    vectors(http, add_special_tokens=False)
    assert engine.requests[0].prompt.tolist() == ids("Hi")


def test_base64_is_the_same_vector(http: httpx2.Client, client: openai.OpenAI) -> None:
    (text,) = vectors(http, encoding_format="base64")
    (numbers,) = vectors(http, encoding_format="float")
    assert np.frombuffer(base64.b64decode(str(text)), dtype="<f4").tolist() == numbers
    # The client asks for base64 by itself, and decodes it.
    assert client.embeddings.create(model="fake", input="Hi").data[0].embedding == numbers


def test_answers_come_in_the_order_of_the_inputs(http: httpx2.Client, engine: FakeEngine) -> None:
    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        vector = np.array([len(request.prompt)], dtype="<f4").tobytes()
        output = SequenceOutput(request.request_id, 0, [], finish_reason="length", embedding=vector)
        return [[] for _ in range(9 - len(request.prompt))] + [[output]]

    engine.script = script
    answer = post(http, input=[[5] * n for n in (1, 4, 2, 8)], normalize=False).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    assert [entry["embedding"] for entry in answer["data"]] == [[1], [4], [2], [8]]


def test_a_large_answer(http: httpx2.Client, engine: FakeEngine) -> None:
    vector = np.ones(40_000, dtype="<f4").tobytes()
    engine.script = lambda request: [
        [SequenceOutput(request.request_id, 0, [], finish_reason="length", embedding=vector)]
    ]
    (found,) = vectors(http)
    assert found == pytest.approx([1 / 200] * 40_000, rel=1e-6)


def test_a_zero_vector_stays_zero(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [
        [SequenceOutput(request.request_id, 0, [], finish_reason="length", embedding=bytes(8))]
    ]
    assert vectors(http) == [[0, 0]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "x"}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [VOCAB_SIZE]}, "input"),
        ({"input": [10**30]}, "input"),
        ({"input": ["x"] * 1025}, "input"),
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"stream": True}, "stream"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_fields(http: httpx2.Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    answer = post(http, **fields)
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(("kind", "status"), [("QueueFullError", 429), ("UnhealthyStateError", 500)])
def test_rejections(http: httpx2.Client, engine: FakeEngine, kind: str, status: int) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, kind, "no")
    assert post(http, input=["a", "b"]).status_code == status


def test_a_bad_state_is_an_error(http: httpx2.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [
        [SequenceOutput(request.request_id, 0, [], finish_reason="error", error="not finite")]
    ]
    answer = post(http)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "not finite")


def test_a_client_that_leaves(server: AppServer, engine: FakeEngine) -> None:
    engine.running.clear()
    body = b'{"model": "fake", "input": ["a", "b"]}'
    with server.raw() as connection:
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        assert eventually(lambda: len(engine.requests) == 2)
    assert eventually(lambda: len(engine.aborts) == 2)
    assert server.link.num_requests == 0


def test_end_of_sequence_tokens_are_read_like_others(http: httpx2.Client, engine: FakeEngine) -> None:
    vectors(http, input=[BOS, END])
    assert engine.requests[0].prompt.tolist() == [BOS, END]
