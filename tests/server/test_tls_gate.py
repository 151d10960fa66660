"""Connections that have not shaken hands yet: they count, they are closed in time, and nothing of them is left."""

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from remuda.server import tls_gate
from remuda.server.tls import TlsFiles
from tests.server.fakes import AppServer, FakeEngine, eventually, says
from tests.server.raw_http import read_answer, read_to_end, request

TLS = Path(__file__).parents[1] / "data" / "tls"
MAX_CONNECTIONS = 6


@pytest.fixture
def secure(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppServer]:
    """A server that speaks TLS to few, and has little patience."""
    monkeypatch.setattr(tls_gate, "HANDSHAKE_TIMEOUT_S", 1.0)
    files = TlsFiles(str(TLS / "cert.pem"), str(TLS / "key.pem"))
    running = AppServer(engine, max_connections=MAX_CONNECTIONS, tls=files)
    yield running
    running.stop()


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=TLS / "cert.pem")


def num_connections(server: AppServer) -> int:
    return len(server._server.server_state.connections)


def ask_health(server: AppServer) -> None:
    with server.raw() as connection, trusting().wrap_socket(connection, server_hostname="127.0.0.1") as shaken:
        shaken.sendall(request("GET", "/health"))
        assert read_answer(shaken)[0] == 200


@contextlib.contextmanager
def silent(server: AppServer, count: int) -> Iterator[list[socket.socket]]:
    """Connections on which nothing is said."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.raw()) for _ in range(count)]


def test_hostile_12_a_flood_before_the_handshake(secure: AppServer, engine: FakeEngine) -> None:
    """Who is served goes on; the surplus is closed at once, the others in time; no descriptor is left."""
    text = "x" * 400
    engine.script, engine.step_s = says(text), 0.005
    body = {"model": "fake", "prompt": "Hi", "max_tokens": 1000, "stream": True}
    num_fds = psutil.Process().num_fds
    with (
        httpx2.Client(base_url=secure.url, verify=trusting(), timeout=10) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        shown = [next(lines)]
        before = num_fds()
        with silent(secure, 40) as flood:
            assert eventually(lambda: num_connections(secure) == MAX_CONNECTIONS)
            surplus = flood[MAX_CONNECTIONS - 1 :]
            assert [read_to_end(connection) for connection in surplus] == [b""] * len(surplus)
            with pytest.raises(OSError), secure.raw() as late:
                trusting().wrap_socket(late, server_hostname="127.0.0.1")
            assert num_connections(secure) == MAX_CONNECTIONS
            assert [read_to_end(connection) for connection in flood] == [b""] * len(flood)
        assert eventually(lambda: num_fds() == before and num_connections(secure) == 1)
        shown += lines
        events = [json.loads(line[6:]) for line in shown if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert client.get("/health").status_code == 200
    count = len(surplus) + 1
    assert (
        f'http_requests_total{{handler="none",status="503"}} {count}.0'.encode() in secure.state.metrics.render()
    )


@pytest.mark.parametrize(
    "data",
    [b"GET /health HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""],
    ids=["no TLS", "half a greeting", "nothing"],
)
def test_a_handshake_that_fails_is_counted_no_longer(secure: AppServer, data: bytes) -> None:
    ask_health(secure)
    before = psutil.Process().num_fds()
    for _ in range(3 * MAX_CONNECTIONS):
        with secure.raw() as connection:
            connection.sendall(data)
    assert eventually(lambda: num_connections(secure) == 0)
    assert eventually(lambda: psutil.Process().num_fds() <= before)
    ask_health(secure)


def test_as_many_as_allowed_are_served(secure: AppServer) -> None:
    """At the end of a handshake nobody counts twice."""
    with silent(secure, MAX_CONNECTIONS) as raw, contextlib.ExitStack() as stack:
        shaken = [
            stack.enter_context(trusting().wrap_socket(connection, server_hostname="127.0.0.1"))
            for connection in raw
        ]
        for connection in shaken:
            connection.sendall(request("GET", "/health"))
            assert read_answer(connection)[0] == 200


def test_the_server_stops_with_handshakes_under_way(secure: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent(secure, 2) as connections:
        assert eventually(lambda: num_connections(secure) == 2)
        secure.stop()
        assert [read_to_end(connection) for connection in connections] == [b"", b""]
