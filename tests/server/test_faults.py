"""What happens when something goes wrong under way: engine death, refusals, disconnects, slow readers."""

import json
import socket
from typing import Any

import httpx2
import openai
import pytest

from remuda.engine.errors import EngineDeadError
from remuda.engine.wire import AddRequest, RequestRejected, SequenceOutput
from remuda.server import protocol
from tests.server.fakes import AppServer, FakeEngine, eventually, ids, says

COMPLETION = {"model": "fake", "prompt": "Hi", "max_tokens": 100_000}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100_000}
ENDPOINTS = [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]


def endless(engine: FakeEngine) -> None:
    engine.script = says("x" * 50_000)
    engine.step_s = 0.002


def post_raw(connection: socket.socket, path: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
def test_death_under_way_ends_a_stream_with_an_error(
    server: AppServer, engine: FakeEngine, http: httpx2.Client, path: str, body: dict[str, Any]
) -> None:
    endless(engine)
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        # Comments come before it where the machine is slow.
        assert any(line.startswith("data: {") for line in lines)
        server.call(lambda: server.link.disconnect(EngineDeadError("the engine process ended (SIGKILL)")))
        rest = [line for line in lines if line]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "engine_unavailable")
    assert "data: [DONE]" not in rest
    assert not any('"usage"' in line for line in rest)


def test_death_raises_in_the_official_client(server: AppServer, engine: FakeEngine, client: openai.OpenAI) -> None:
    endless(engine)
    stream = client.completions.create(**COMPLETION, stream=True)
    next(stream)
    server.call(lambda: server.link.disconnect(EngineDeadError("it died")))
    with pytest.raises(openai.APIError, match="it died"):
        list(stream)


def test_death_under_way_is_503_where_nothing_was_sent(
    server: AppServer, engine: FakeEngine, http: httpx2.Client
) -> None:

    def die(request: AddRequest) -> list[list[SequenceOutput]]:
        server.loop.call_soon_threadsafe(server.link.disconnect, EngineDeadError("it died"))
        return []

    engine.script = die
    for stream in (False, True):
        if stream:
            server.call(lambda: server.link.connect(engine.address))
            assert eventually(lambda: http.get("/ready").status_code == 200)
        answer = http.post("/v1/completions", json={**COMPLETION, "stream": stream})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["message"] == "it died"
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["status"], answer.headers["retry-after"]) == (503, "down", "1")
    assert http.get("/health").status_code == 200
    assert http.post("/v1/completions", json=COMPLETION).status_code == 503


def test_not_ready(engine: FakeEngine) -> None:
    engine.status = None
    server = AppServer(engine)
    try:
        with httpx2.Client(base_url=server.url) as http:
            for path, status in (("/ready", 503), ("/health", 200)):
                answer = http.get(path)
                assert (answer.status_code, answer.json()["status"]) == (status, "loading")
            assert http.post("/tokenize", json={"prompt": "Hi"}).status_code == 200
            assert http.get("/v1/models").status_code == 200
            refused = http.post("/v1/completions", json=COMPLETION)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "loading" in refused.json()["error"]["message"]
    finally:
        server.stop()


def test_draining(server: AppServer, http: httpx2.Client) -> None:
    server.state.is_draining = True
    for path, status in (("/ready", 503), ("/health", 200)):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["status"]) == (status, "draining")
    server.state.has_given_up = True
    assert (http.get("/health").status_code, http.get("/ready").status_code) == (503, 503)
    assert http.get("/health").json()["status"] == "failed"
    assert http.post("/v1/completions", json=COMPLETION).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "error_type"),
    [
        ("InvalidRequestError", 400, "invalid_request_error"),
        ("QueueFullError", 429, "rate_limit_error"),
        ("UnhealthyStateError", 500, "server_error"),
    ],
)
def test_rejections_become_a_status(
    engine: FakeEngine, http: httpx2.Client, stream: bool, kind: str, status: int, error_type: str
) -> None:
    engine.script = lambda request: RequestRejected(request.request_id, kind, "the reason", "n")
    answer = http.post("/v1/completions", json={**COMPLETION, "stream": stream, "prompt": ["a", "b"]})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["message"], error["type"]) == ("the reason", error_type)
    assert (answer.headers.get("retry-after") == "1") == (status == 429)


@pytest.mark.parametrize("stream", [False, True])
def test_a_sequence_that_fails(engine: FakeEngine, http: httpx2.Client, stream: bool) -> None:
    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        bad = SequenceOutput(request.request_id, 0, [], finish_reason="error", error="logits are not finite")
        return [[SequenceOutput(request.request_id, 0, [40])], [bad]]

    engine.script = script
    engine.step_s = 0.02
    answer = http.post("/v1/completions", json={**COMPLETION, "stream": stream})
    assert answer.status_code == (200 if stream else 500)
    error = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert (error["message"], error["code"]) == ("logits are not finite", "unhealthy_state")
    engine.script = says("ok")
    assert http.post("/v1/completions", json=COMPLETION).json()["choices"][0]["text"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
@pytest.mark.parametrize("has_begun", [False, True])
def test_disconnect_aborts(
    server: AppServer, engine: FakeEngine, path: str, body: dict[str, Any], stream: bool, has_begun: bool
) -> None:
    endless(engine)
    if not has_begun:
        engine.running.clear()
    with server.raw() as connection:
        post_raw(connection, path, {**body, "stream": stream})
        if stream and has_begun:
            assert b"200 OK" in connection.recv(1000)
        assert eventually(lambda: len(engine.requests) == 1)
        assert engine.aborts == []
    assert eventually(lambda: len(engine.aborts) == 1)
    assert (engine.aborts[0].request_id, engine.aborts[0].index) == (engine.requests[0].request_id, None)
    assert eventually(lambda: server.link.num_requests == 0)


def test_silence_gets_headers_and_pings(
    server: AppServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda.server.sse._HEADERS_WITHIN_S", 0.02)
    monkeypatch.setattr("remuda.server.sse._PING_AFTER_S", 0.02)
    engine.running.clear()
    with server.raw() as connection:
        post_raw(connection, "/v1/completions", {**COMPLETION, "stream": True, "max_tokens": 1})
        received = b""
        while received.count(b": keep-alive\n\n") < 3:
            received += connection.recv(1000)
        assert b"data:" not in received
        engine.running.set()
        while b"[DONE]" not in received:
            received += connection.recv(1000)


def test_reader_that_stops_is_cut_off(
    server: AppServer, engine: FakeEngine, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_TIMEOUT_S", 0.2)
    text = "x" * 60_000
    engine.script = says(text)
    with server.raw() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        post_raw(connection, "/v1/completions", {**COMPLETION, "stream": True})
        # It reads nothing; the buffers fill, the request is ended, and the connection is closed.
        assert eventually(lambda: engine.aborts != [])
        assert eventually(lambda: server.link.num_requests == 0)
        assert eventually(lambda: not server._server.server_state.connections)
    engine.script = says("ok")
    assert http.post("/v1/completions", json=COMPLETION).json()["choices"][0]["text"] == "ok"


def test_burst_arrives_whole(engine: FakeEngine, client: openai.OpenAI) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(5000))
    engine.script = says(text)
    chunks = client.completions.create(**COMPLETION, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_many_at_once(engine: FakeEngine, server: AppServer) -> None:
    engine.script = lambda request: says(chr(request.prompt[-1] + 28) * 50)(request)
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(40)]
    for i, connection in enumerate(connections):
        post_raw(connection, "/v1/completions", {**COMPLETION, "prompt": [40 + i], "stream": True})
    for i, connection in enumerate(connections):
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(65536)
        events = [json.loads(line[6:]) for line in received.decode().split("\n") if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == chr(68 + i) * 50
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_fails_under_way_is_the_request_s_fault(
    client: openai.OpenAI, engine: FakeEngine, stream: bool
) -> None:
    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        output = SequenceOutput(request.request_id, 0, [], finish_reason="error", error="too many items")
        output.is_grammar_error = True
        return [[SequenceOutput(request.request_id, 0, ids("a"))], [output]]

    engine.script = script
    with pytest.raises(openai.APIError, match="guided_regex: too many items") as caught:
        list(client.completions.create(model="fake", prompt="a", stream=stream, extra_body={"guided_regex": "a+"}))
    assert caught.value.param == "guided_regex"
    assert caught.value.type == "invalid_request_error"
    assert isinstance(caught.value, openai.BadRequestError) or stream
