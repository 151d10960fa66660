"""Streams that are written past uvicorn's `send`: when they are, when not, and what ends them."""

import json
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from remuda.engine.wire import AddRequest, SequenceOutput
from remuda.server import protocol
from remuda.server.chunk_writer import ChunkWriter
from remuda.server.completion_format import CompletionFormat
from remuda.server.tls import TlsFiles
from tests.server.fakes import AppServer, FakeEngine, eventually, says
from tests.server.raw_http import request

TLS = Path(__file__).parents[1] / "data" / "tls"
BODY = {"model": "fake", "prompt": "Hi", "max_tokens": 100_000, "stream": True}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the writers are given."""
    pieces: list[bytes] = []
    write = ChunkWriter.write

    def noting(writer: ChunkWriter, body: bytes) -> None:
        pieces.append(body)
        write(writer, body)

    monkeypatch.setattr(ChunkWriter, "write", noting)
    return pieces


@pytest.fixture
def secure(engine: FakeEngine) -> Iterator[AppServer]:
    """The application behind TLS."""
    running = AppServer(engine, tls=TlsFiles(str(TLS / "cert.pem"), str(TLS / "key.pem")))
    yield running
    running.stop()


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=TLS / "cert.pem")


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["text"] for event in events)


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_it_knows_uvicorn(engine: FakeEngine, http: httpx2.Client, written: list[bytes]) -> None:
    """Fails where a new uvicorn has other insides; streams would then go through `send`, at a higher cost."""
    engine.step_s = 0.002
    assert "[DONE]" in http.post("/v1/completions", json=BODY).text
    assert written


@pytest.mark.parametrize("send", [print, RequestResponseCycle.__new__(RequestResponseCycle).send])
def test_no_writer_beneath_what_it_does_not_know(send: Any) -> None:
    assert ChunkWriter.of(send) is None


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"stop": "re"}, {"stream_options": {"include_usage": True}}])
def test_the_answer_is_the_same_without(
    engine: FakeEngine, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def events() -> list[Any]:
        lines = http.post("/v1/completions", json={**BODY, **options}).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        found = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        return [(event["choices"], event.get("usage")) for event in found]

    engine.step_s = 0.002
    expected = events()
    monkeypatch.setattr(ChunkWriter, "of", lambda send: None)
    assert events() == expected


def test_the_connection_serves_the_next_request(
    server: AppServer, engine: FakeEngine, written: list[bytes]
) -> None:
    engine.step_s = 0.002
    stream = request("POST", "/v1/completions", "content-type: application/json", body=json.dumps(BODY).encode())
    with server.raw() as connection:
        connection.sendall(stream + stream)
        received = b""
        while received.count(b"\r\n0\r\n\r\n") < 2:
            received += connection.recv(65536)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(b"[DONE]") == 2
    assert written


def test_a_peer_that_pauses(
    server: AppServer, engine: FakeEngine, http: httpx2.Client, written: list[bytes]
) -> None:
    """Nothing is written past a full buffer; afterwards the rest comes, and is written directly again."""
    text = "abcdefghijklmnopqrstuvwxyz" * 12
    engine.script, engine.step_s = says(text), 0.002
    with http.stream("POST", "/v1/completions", json=BODY) as answer:
        events = events_of(answer.iter_lines())
        shown = [next(events)]
        assert eventually(lambda: len(written) > 10)
        (connection,) = server._server.server_state.connections
        server.call(connection.pause_writing)
        num_written = len(written)
        assert engine.num_active == 1
        assert not eventually(lambda: len(written) > num_written, 0.1)
        server.call(connection.resume_writing)
        shown += events
    assert text_of(shown) == text
    assert len(written) > num_written


def test_a_peer_that_leaves(
    server: AppServer, engine: FakeEngine, written: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    engine.script, engine.step_s = says("x" * 50_000), 0.002
    data = request("POST", "/v1/completions", "content-type: application/json", body=json.dumps(BODY).encode())
    with server.raw() as connection:
        connection.sendall(data)
        assert eventually(lambda: len(written) > 10)
    assert eventually(lambda: len(engine.aborts) == 1)
    assert eventually(lambda: server.records != [])
    assert server.records[0].abort_reason == "disconnect"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_bug_while_writing_ends_that_request_alone(
    server: AppServer,
    engine: FakeEngine,
    http: httpx2.Client,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As anywhere else in a stream: logged, the connection closed without an end, the request aborted."""
    delta = CompletionFormat.delta

    def failing(fmt: CompletionFormat, choice: Any, text: str) -> bytes:
        if text == "!":
            raise ZeroDivisionError("a bug")
        return delta(fmt, choice, text)

    def script(request: AddRequest) -> list[list[SequenceOutput]]:
        return says("abc!" + "d" * 1000 if len(request.prompt) == 3 else "x" * 100)(request)

    monkeypatch.setattr(CompletionFormat, "delta", failing)
    engine.script, engine.step_s = script, 0.002
    sound = client.completions.create(**{**BODY, "prompt": "Hello"})
    first = next(sound)
    with pytest.raises(httpx2.RemoteProtocolError):
        http.post("/v1/completions", json=BODY)
    assert "".join([first.choices[0].text, *(chunk.choices[0].text for chunk in sound)]) == "x" * 100
    assert eventually(lambda: len(engine.aborts) == 1)
    assert eventually(lambda: server.link.num_requests == 0)
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


def test_streams_over_tls_are_written_directly(
    secure: AppServer, engine: FakeEngine, written: list[bytes]
) -> None:
    text = "abcdefghijklmnopqrstuvwxyz" * 4
    engine.script, engine.step_s = says(text), 0.002
    with (
        httpx2.Client(base_url=secure.url, verify=trusting(), timeout=10) as client,
        client.stream("POST", "/v1/completions", json=BODY) as answer,
    ):
        assert text_of(list(events_of(answer.iter_lines()))) == text
    assert len(written) > 10


def test_a_peer_that_stops_reading_over_tls(
    secure: AppServer, engine: FakeEngine, written: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it above the kernel is bounded, in this process and in TLS; then its request ends."""
    monkeypatch.setattr(protocol, "STALL_TIMEOUT_S", 0.3)
    waiting: list[int] = []
    pause = protocol.StallGuardProtocol.pause_writing

    def noting(connection: protocol.StallGuardProtocol) -> None:
        waiting.append(connection.transport.get_write_buffer_size())
        pause(connection)

    monkeypatch.setattr(protocol.StallGuardProtocol, "pause_writing", noting)
    engine.script, engine.step_s = says("x" * 60_000), 0.0001
    data = request("POST", "/v1/completions", "content-type: application/json", body=json.dumps(BODY).encode())
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", secure.port))
        with trusting().wrap_socket(connection, server_hostname="127.0.0.1") as shaken:
            shaken.sendall(data)
            assert eventually(lambda: len(engine.aborts) == 1)
            assert eventually(lambda: not secure._server.server_state.connections)
    assert max(waiting) < protocol._MAX_UNSENT_BYTES + 1024
    # Of 13 MB that there were to send: the rest is what TLS, the transport below it and the kernel hold.
    assert sum(map(len, written)) < 2**19
