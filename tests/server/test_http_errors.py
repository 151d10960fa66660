"""Bad input at the door: the right 4xx, a body that clients parse, and a server that goes on."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from remuda.server import json_body
from tests.server.fake_info import VOCAB_SIZE
from tests.server.fakes import AppServer, FakeEngine, eventually

COMPLETION = {"model": "fake", "prompt": "Hi"}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}

HALF_REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
)


def assert_error(answer: httpx2.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return str(error["message"])


@pytest.fixture(autouse=True)
def _goes_on(http: httpx2.Client) -> Iterator[None]:
    """After every fault the next request works."""
    yield
    answer = http.post("/v1/completions", json=COMPLETION)
    assert answer.json()["choices"][0]["text"] == "Hello there"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [VOCAB_SIZE]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 128, "prompt": ["x"] * 9}, "n"),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 18: 1}}, "logit_bias"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids"),
        ({"stop_token_ids": list(range(257))}, "stop_token_ids"),
        ({"stop": ["x"] * 500_0}, "stop"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 50_000}, "prompt_logprobs"),
        ({"best_of": 4}, "best_of"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream_options": {"include": True}, "stream": True}, "stream_options.include"),
        ({"tools": [{}]}, "tools"),
        ({"nonsense": 1}, "nonsense"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_fields(http: httpx2.Client, fields: dict[str, Any], param: str) -> None:
    message = assert_error(http.post("/v1/completions", json={**COMPLETION, **fields}), 400, param)
    assert param.rpartition(".")[2] in message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": CHAT["messages"]}, "model"),
        ({"model": "fake"}, "messages"),
        ({"model": "fake", "messages": "Hi"}, "messages"),
        ({"model": "fake", "messages": []}, "messages"),
        ({"model": "fake", "messages": [{}]}, "messages.0.role"),
        ({**CHAT, "top_logprobs": 1}, "top_logprobs"),
        ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format"),
    ],
    ids=str,
)
def test_bad_chat(http: httpx2.Client, body: dict[str, Any], param: str) -> None:
    assert_error(http.post("/v1/chat/completions", json=body), 400, param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "fake", "prompt": "\xff\xfe"}',
        b'{"model": "fake", "prompt": "\\ud800"}',
        b'{"model": "fake", "prompt": "x", "prompt": "y"}',
        b'{"model": "fake", "prompt": "x", "temperature": NaN}',
        b'{"model": "fake", "prompt": "x", "temperature": 1e999}',
        b'{"model": "fake", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "fake", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bad_bodies(http: httpx2.Client, path: str, content: bytes) -> None:
    answer = http.post(path, content=content, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"


def test_content_type_and_encoding(http: httpx2.Client) -> None:
    data = json.dumps(COMPLETION).encode()
    for headers in ({}, {"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}):
        assert_error(http.post("/v1/completions", content=data, headers=headers), 400)
    accepted = {"content-type": "application/json; charset=utf-8"}
    assert http.post("/v1/completions", content=data, headers=accepted).status_code == 200


def test_model_names(http: httpx2.Client, client: openai.OpenAI) -> None:
    assert_error(http.post("/v1/completions", json={**COMPLETION, "model": "x"}), 404, "model", "model_not_found")
    assert_error(http.post("/v1/chat/completions", json={**CHAT, "model": ""}), 404, "model", "model_not_found")
    assert_error(http.get("/v1/models/x"), 404, "model", "model_not_found")
    assert client.models.retrieve("org/alias").id == "org/alias"
    assert [model.id for model in client.models.list()] == ["fake", "org/alias"]
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="x", prompt="Hi")


def test_unknown_urls_and_methods(http: httpx2.Client) -> None:
    assert "GET /v1/nothing" in assert_error(http.get("/v1/nothing"), 404, code="unknown_url")
    assert_error(http.post("/v1/completions/", json=COMPLETION), 404, code="unknown_url")
    answer = http.get("/v1/completions")
    assert_error(answer, 405, code="method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert_error(http.delete("/health"), 405, code="method_not_allowed")
    assert http.put("/v1/responses/resp_1").headers["allow"] == "DELETE, GET"
    assert http.request("OPTIONS", "/docs").headers["allow"] == "GET"


def test_request_id(http: httpx2.Client) -> None:
    found = {http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(found) == 3
    assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for given in ("a b", "x" * 200, "a\tb"):
        assert http.get("/health", headers={"x-request-id": given}).headers["x-request-id"] != given


def test_body_over_the_cap_by_its_length(http: httpx2.Client, client: openai.OpenAI) -> None:
    big = {**COMPLETION, "prompt": "x" * 200_000}
    assert_error(http.post("/v1/completions", json=big), 413, code="body_too_large")
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="fake", prompt="x" * 10_000_000)
    assert caught.value.status_code == 413


def test_body_over_the_cap_in_chunks(http: httpx2.Client, engine: FakeEngine) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "fake", "prompt": "'
        for _ in range(30):
            yield b"x" * 5_000
        yield b'"}'

    assert_error(http.post("/v1/completions", content=chunks(), headers=JSON), 413, code="body_too_large")
    assert engine.requests == []


def test_declared_length_is_refused_unread(server: AppServer) -> None:
    with server.raw() as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n"
        connection.sendall(head.encode())
        received = b""
        while data := connection.recv(10_000):
            received += data
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received


def test_body_that_does_not_come(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "BODY_TIMEOUT_S", 0.05)
    with server.raw() as connection:
        connection.sendall(HALF_REQUEST)
        received = b""
        while data := connection.recv(10_000):
            received += data
    assert received.startswith(b"HTTP/1.1 408 ")


def test_client_that_leaves_while_sending(server: AppServer, engine: FakeEngine) -> None:
    with server.raw() as connection:
        connection.sendall(HALF_REQUEST)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert eventually(lambda: not server._server.server_state.tasks)
    assert engine.requests == []


def test_bugs_are_500_without_details(
    server: AppServer, http: httpx2.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.tokenizer, "encode", lambda *args, **kwargs: 1 / 0)
        response = http.post("/v1/completions", json=COMPLETION)
    assert "division" not in assert_error(response, 500)
    assert response.headers["connection"] == "close"
    assert eventually(lambda: "ZeroDivisionError" in caplog.text)
