"""Hostile connections, by the numbers of docs/security.md: header floods, odd bodies, peers that send slowly."""

import contextlib
import json
import logging
import random
import socket
import time
from collections.abc import Iterator

import httpx2
import pytest

from remuda.server import limits, protocol
from tests.server.fakes import AppServer, FakeEngine, eventually, says
from tests.server.raw_http import read_answer, read_to_end, request, split_answer

COMPLETION = json.dumps({"model": "fake", "prompt": "Hi"}).encode()
JSON = "content-type: application/json"
GOOD = request("POST", "/v1/completions", JSON, body=COMPLETION)


@pytest.fixture(autouse=True)
def _goes_on(server: AppServer, http: httpx2.Client) -> Iterator[None]:
    """Afterwards the next request works, and no connection but that request's is left."""
    yield
    answer = http.post("/v1/completions", content=COMPLETION, headers={"content-type": "application/json"})
    assert answer.json()["choices"][0]["text"] == "Hello there"
    assert eventually(lambda: len(server._server.server_state.connections) == 1)


def send_and_read(server: AppServer, data: bytes) -> bytes:
    with server.raw() as connection:
        # It may be refused before all of it was sent.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
        return read_to_end(connection)


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (request("GET", "/health", *[f"x-{i}: y" for i in range(6000)]), 431, "headers_too_large"),
        (request("GET", "/health", *[f"x-{i}: y" for i in range(101)]), 431, "headers_too_large"),
        (request("GET", "/health", "x: " + "y" * 70_000), 431, "headers_too_large"),
        (request("GET", "/health", *["x: " + "y" * 8000] * 5), 431, "headers_too_large"),
        (request("GET", "/health", "y" * 40_000 + ": x"), 431, "headers_too_large"),
        (b"GET /health HTTP/1.1\r\nx: " + b"y" * 300_000, 431, "headers_too_large"),
        (request("GET", "/" + "y" * 9000), 414, "url_too_long"),
        (b"GET /" + b"y" * 300_000, 414, "url_too_long"),
    ],
    ids=["6000", "101", "70 KB", "5 of 8 KB", "name", "endless header", "URL", "endless URL"],
)
def test_hostile_10_header_flood(server: AppServer, head: bytes, status: int, code: str) -> None:
    found, body = split_answer(send_and_read(server, head))
    assert (found, body["error"]["code"]) == (status, code)
    assert body["error"].keys() == {"message", "type", "param", "code"}


def test_hostile_10_as_many_headers_as_allowed(server: AppServer) -> None:
    with server.raw() as connection:
        connection.sendall(request("GET", "/health", *[f"x-{i}: {'y' * 200}" for i in range(99)]))
        assert read_answer(connection)[0] == 200


def test_hostile_10_trailers_are_bounded_and_unheard(server: AppServer) -> None:
    chunked = request("POST", "/v1/completions", JSON, "transfer-encoding: chunked")
    body = b"%x\r\n%s\r\n0\r\n" % (len(COMPLETION), COMPLETION)
    with server.raw() as connection:
        connection.sendall(chunked + body + b"x-request-id: from-a-trailer\r\n\r\n")
        status, headers, _ = read_answer(connection)
        assert status == 200
        assert headers["x-request-id"] != "from-a-trailer"
    for trailer in (b"x: " + b"y" * 300_000, b"x: y\r\n" * 6000):
        # Either the request was answered before its trailers came, or it is refused; the connection ends.
        received = send_and_read(server, chunked + body + trailer)
        assert received == b"" or received.split()[1] in (b"200", b"431")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"BREW /health HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx : y\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        request("POST", "/v1/completions", JSON, "content-length: -1"),
        request("POST", "/v1/completions", JSON, "content-length: " + "9" * 5000),
        request("POST", "/v1/completions", JSON, "content-length: 5", "content-length: 6"),
        request("POST", "/v1/completions", JSON, "content-length: 5", "transfer-encoding: chunked"),
        request("POST", "/v1/completions", JSON, "transfer-encoding: chunked") + b"fffffffffffffffff\r\n",
        request("POST", "/v1/completions", JSON, "transfer-encoding: chunked") + b"zz\r\n",
    ],
    ids=lambda data: repr(data[-40:]),
)
def test_hostile_10_not_http(server: AppServer, data: bytes) -> None:
    status, body = split_answer(send_and_read(server, data))
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n" * 10_000, b"100\r\n%s\r\n" % (b"x" * 256) * 1000])
def test_hostile_11_body_in_chunks(server: AppServer, engine: FakeEngine, chunk: bytes) -> None:
    head = request("POST", "/v1/completions", JSON, "transfer-encoding: chunked")
    received = send_and_read(server, head + chunk)
    # The server closes with the rest of the body unread, which may reset the connection before its answer is read.
    assert received == b"" or received.split()[1] == b"413"
    assert engine.requests == []


def test_hostile_11_chunk_extensions_without_end(server: AppServer) -> None:
    head = request("POST", "/v1/completions", JSON, "transfer-encoding: chunked")
    received = send_and_read(server, head + b"1;" + b"x" * 300_000)
    assert received == b"" or received.split()[1] in (b"400", b"431")


def test_hostile_11_many_bodies_at_once(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that never end hold no more than their share together; who comes after is told to come again."""
    monkeypatch.setattr(limits, "_MAX_BODIES_HELD", 3)
    monkeypatch.setattr(limits, "_MIN_HELD_BYTES", 0)
    narrow = AppServer(server.engine)
    try:
        held = [socket.create_connection(("127.0.0.1", narrow.port), timeout=10) for _ in range(4)]
        for connection in held[:3]:
            connection.sendall(request("POST", "/v1/completions", JSON, "content-length: 99999") + b"x" * 90_000)
        time.sleep(0.1)
        held[3].sendall(request("POST", "/v1/completions", JSON, "content-length: 99999") + b"x" * 90_000)
        status, headers, body = read_answer(held[3])
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["error"]["code"] == "too_many_bodies"
        for connection in held:
            connection.close()
        assert eventually(lambda: not narrow._server.server_state.tasks)
        with narrow.raw() as connection:
            connection.sendall(GOOD)
            assert read_answer(connection)[0] == 200
    finally:
        narrow.stop()


def test_hostile_12_requests_behind_a_request(server: AppServer, engine: FakeEngine) -> None:
    """A few may wait behind an answer under way; thousands are not kept."""
    engine.running.clear()
    with server.raw() as connection:
        connection.sendall(GOOD + request("GET", "/health") * 5)
        assert eventually(lambda: len(engine.requests) == 1)
        engine.running.set()
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 6:
            received += connection.recv(65536)
    engine.running.clear()
    refusal = send_and_read(server, GOOD + request("GET", "/health") * 5000)
    assert refusal.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nretry-after: 1\r\n" in refusal
    engine.running.set()


@pytest.mark.parametrize("stream", [False, True])
def test_hostile_23_a_client_that_leaves_with_requests_waiting(
    server: AppServer, engine: FakeEngine, stream: bool
) -> None:
    """uvicorn would tell only the request that waits, and the one that runs would run on."""
    engine.script, engine.step_s = says("x" * 50_000), 0.005
    body = json.dumps({"model": "fake", "prompt": "Hi", "max_tokens": 50_000, "stream": stream}).encode()
    with server.raw() as connection:
        connection.sendall(request("POST", "/v1/completions", JSON, body=body) + request("GET", "/health") * 3)
        assert eventually(lambda: len(engine.requests) == 1)
        time.sleep(0.05)
    assert eventually(lambda: len(engine.aborts) == 1)
    engine.script, engine.step_s = says("Hello there"), 0.0


SEEDS = [
    request("GET", "/health"),
    GOOD,
    GOOD.replace(b"content-length", b"expect: 100-continue\r\ncontent-length"),
    request("POST", "/v1/completions", JSON, "transfer-encoding: chunked")
    + b"%x\r\n%s\r\n0\r\nx: y\r\n\r\n" % (len(COMPLETION), COMPLETION),
    request("POST", "/v1/completions", JSON, "connection: upgrade", "upgrade: h2c", body=COMPLETION),
    request("GET", "/v1/models") * 20,
]
PIECES = [
    b"\r\n",
    b"\0",
    b": ",
    b"a" * 40_000,
    b"\r\n\r\n",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"upgrade: h2c\r\nconnection: upgrade\r\n",
    *SEEDS,
]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes changed, put in or taken out."""
    for _ in range(chance.randrange(6)):
        i = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data = data[:i] + chance.randbytes(chance.randrange(1, 4)) + data[i + 1 :]
            case 1:
                data = data[:i] + data[i + chance.randrange(20) :]
            case 2:
                data = data[:i] + chance.choice(PIECES) + data[i:]
            case 3:
                data = data[:i]
    return data


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_upset_the_server(server: AppServer, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    """Broken requests, whole or in two pieces, from clients that wait, leave, or reset: no error of ours."""
    chance = random.Random(seed)
    for _ in range(150):
        data = mutated(chance.choice(SEEDS), chance)
        cut = chance.randrange(len(data) + 1)
        with server.raw() as connection:
            connection.settimeout(0.01)
            with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                connection.sendall(data[:cut])
                connection.sendall(data[cut:])
                if chance.random() < 0.5:
                    connection.recv(4096)
            if chance.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    state = server._server.server_state
    assert eventually(lambda: not state.connections and not state.tasks)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_hostile_11_packed_bodies(http: httpx2.Client, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = http.post("/v1/completions", content=b"\x1f\x8b" * 1000, headers=headers)
    assert answer.status_code == 400
    assert "Content-Encoding" in answer.json()["error"]["message"]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(protocol, "BODY_STALL_S", 0.3)
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 1.0)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),
        (b"GET /hea", 408),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n", 408),
        (b"\r\n\r\n", 408),
        (GOOD[:-1], 408),
        (request("POST", "/v1/completions", JSON, "content-length: 9"), 408),
        (request("POST", "/v1/completions", JSON, "transfer-encoding: chunked") + b"5\r\n{", 408),
    ],
    ids=["silent", "half a line", "half a head", "empty lines", "all but a byte", "no body", "half a chunk"],
)
def test_hostile_12_slowloris(server: AppServer, data: bytes, status: int | None) -> None:
    received = send_and_read(server, data)
    if status is None:
        assert received == b""
    else:
        found, body = split_answer(received)
        assert (found, body["error"]["code"]) == (status, "request_timeout")


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("start", [b"GET /health HTTP/1.1\r\nx: ", GOOD.replace(b"length: ", b"length: 9")[:-1]])
def test_hostile_12_a_byte_now_and_then(server: AppServer, start: bytes) -> None:
    """Progress does not help beyond the time for the whole head, or body."""
    with server.raw() as connection:
        connection.sendall(start)
        for _ in range(200):
            time.sleep(0.05)
            try:
                connection.sendall(b"y")
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            pytest.fail("it went on for ten times the limit")


@pytest.mark.usefixtures("_impatient")
def test_hostile_12_half_a_second_request(server: AppServer) -> None:
    with server.raw() as connection:
        connection.sendall(request("GET", "/health") + b"GET /hea")
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in received


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("between", [b"", request("GET", "/health")])
def test_hostile_12_half_a_request_behind_a_stream(server: AppServer, engine: FakeEngine, between: bytes) -> None:
    """The answer under way is neither cut nor mixed with another."""
    engine.step_s = 0.08
    body = json.dumps({"model": "fake", "prompt": "Hi", "stream": True}).encode()
    with server.raw() as connection:
        connection.sendall(request("POST", "/v1/completions", JSON, body=body) + between + b"GET /hea")
        received = read_to_end(connection)
    answer, _, rest = received.partition(b"data: [DONE]")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " not in answer
    assert rest


@pytest.mark.usefixtures("_impatient")
def test_hostile_12_refused_with_its_body_missing(server: AppServer) -> None:
    """An answer before the body leaves the connection no longer than the body may take."""
    with server.raw() as connection:
        connection.sendall(request("GET", "/nowhere", "content-length: 1000"))
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 404 ")
    assert received.count(b"HTTP/1.1") == 1


def test_hostile_12_idle_between_requests(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remuda.server.http_config.KEEP_ALIVE_S", 0)
    impatient = AppServer(engine)
    try:
        with impatient.raw() as connection:
            connection.sendall(request("GET", "/health"))
            assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")
    finally:
        impatient.stop()


def test_hostile_12_too_many_connections(engine: FakeEngine) -> None:
    full = AppServer(engine, max_connections=3)
    try:
        held = [socket.create_connection(("127.0.0.1", full.port), timeout=10) for _ in range(3)]
        assert eventually(lambda: len(full._server.server_state.connections) == 3)
        with full.raw() as connection:
            received = read_to_end(connection)
        status, body = split_answer(received)
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        assert b"retry-after: 1\r\n" in received
        for connection in held:
            connection.sendall(request("GET", "/health"))
            assert read_answer(connection)[0] == 200
            connection.close()
        assert b'http_requests_total{handler="none",status="503"} 1.0' in full.state.metrics.render()
    finally:
        full.stop()


@pytest.mark.parametrize("connection_header", ["Upgrade, HTTP2-Settings", "upgrade", "close, upgrade"])
def test_an_offer_of_another_protocol_is_overlooked(server: AppServer, connection_header: str) -> None:
    """As Java's client makes with its requests: head and body must be one request all the same."""
    offer = (f"connection: {connection_header}", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAA")
    data = request("POST", "/v1/completions", JSON, *offer, body=COMPLETION)
    head, _, body = data.partition(b"\r\n\r\n")
    for pieces in ([data], [head + b"\r\n\r\n", body], [data[:50], data[50:-10], data[-10:]]):
        with server.raw() as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.02)
            status, headers, answer = read_answer(connection)
            assert status == 200
            assert json.loads(answer)["choices"][0]["text"] == "Hello there"
            if "close" in connection_header:
                assert headers["connection"] == "close"
            else:
                connection.sendall(request("GET", "/health"))
                assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("is_at_once", [False, True])
def test_offers_with_every_request_of_a_connection(server: AppServer, is_at_once: bool) -> None:
    """As Java's client makes them, which has got no answer to the one before; one by one, or all at once."""
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAA")
    data = request("POST", "/v1/completions", JSON, *offer, body=COMPLETION)
    with server.raw() as connection, connection.makefile("rb") as file:
        if is_at_once:
            connection.sendall(data * 3)
        for _ in range(3):
            if not is_at_once:
                connection.sendall(data)
            assert file.readline().split()[1] == b"200"
            length = next(int(line[16:]) for line in file if line.lower().startswith(b"content-length: "))
            while file.readline().strip():
                pass
            assert json.loads(file.read(length))["choices"][0]["text"] == "Hello there"
