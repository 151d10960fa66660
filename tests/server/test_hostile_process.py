"""A real server process under hostile peers, with its real timeouts; and what its log keeps of keys: nothing."""

import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

from tests.server.conftest import ServerProcess, serving
from tests.server.fakes import eventually
from tests.server.raw_http import read_answer, read_to_end, request

pytestmark = pytest.mark.e2e

TLS = Path(__file__).parents[1] / "data" / "tls"
JSON = "content-type: application/json"
# What is promised of every connection on which nothing comes.
CLOSED_WITHIN_S = 15
CANARY = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 16, "seed": 7, "temperature": 0.8}


def address(server: ServerProcess) -> tuple[str, int]:
    host, _, port = server.url.partition("://")[2].rpartition(":")
    return host, int(port)


def state_of(server: ServerProcess) -> tuple[int, int, float, float]:
    """Connections, files and slots in use, requests waiting: what must be as before after each fault."""
    with server.http() as http:
        text = http.get("/metrics").text
    connections = [c for process in server.http_processes for c in process.net_connections("tcp")]
    num_open = sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)
    num_files = sum(process.num_fds() for process in server.http_processes)
    values = [float(re.search(rf"^remuda:{name} (\S+)$", text, re.M)[1]) for name in GAUGES]  # type: ignore[index]
    return num_open, num_files, values[0], values[1]


GAUGES = ("state_slots_used", "num_requests_waiting")


def ended(metrics: str) -> float:
    """How many generating requests have ended."""
    return float(re.search(r"^remuda:e2e_request_latency_seconds_count (\S+)$", metrics, re.M)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def _canary(demo: ServerProcess) -> Iterator[None]:
    """The same seed gives the same bytes before and after all that happens here."""

    def ask() -> str:
        with demo.http() as http:
            return str(http.post("/v1/completions", json=CANARY).json()["choices"][0]["text"])

    before, state = ask(), state_of(demo)
    yield
    assert ask() == before
    assert eventually(lambda: state_of(demo) == state)


@pytest.mark.usefixtures("_canary")
def test_hostile_12_half_open_connections_are_closed(demo: ServerProcess) -> None:
    starts = [
        b"",
        b"G",
        b"GET /health HTTP/1.1\r\nhost: x\r\n",
        request("POST", "/v1/completions", JSON, "content-length: 99"),
        request("POST", "/v1/completions", JSON, "content-length: 99") + b'{"model": "demo"',
        request("POST", "/v1/completions", JSON, "transfer-encoding: chunked") + b"5\r\n{",
        request("GET", "/health"),
        request("GET", "/health") + b"GET /he",
        request("GET", "/health", "content-length: 99"),
    ]
    connections = [socket.create_connection(address(demo), timeout=CLOSED_WITHIN_S) for _ in starts]
    opened = time.monotonic()
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    with demo.http() as http:
        assert http.get("/health").status_code == 200
        assert http.post("/v1/completions", json=CANARY).status_code == 200
    for connection, start in zip(connections, starts, strict=True):
        connection.settimeout(opened + CLOSED_WITHIN_S - time.monotonic())
        read_to_end(connection)
        connection.close()
        assert time.monotonic() - opened <= CLOSED_WITHIN_S, start


@pytest.mark.usefixtures("_canary")
def test_hostile_10_and_11_floods(demo: ServerProcess) -> None:
    chunked = request("POST", "/v1/completions", JSON, "transfer-encoding: chunked")
    for data, statuses in (
        (request("GET", "/health", *[f"x-{i}: y" for i in range(6000)]), (b"431",)),
        (b"GET /health HTTP/1.1\r\nx: " + b"y" * 1_000_000, (b"431", b"")),
        (request("POST", "/v1/completions", JSON, "content-length: 150000000"), (b"413",)),
        (chunked + b"1\r\nx\r\n" * 10**6, (b"413", b"")),
        (chunked + b"10000\r\n%s\r\n" % (b"x" * 0x10000) * 400, (b"413", b"")),
    ):
        with socket.create_connection(address(demo), timeout=30) as connection:
            try:
                connection.sendall(data)
            except (ConnectionResetError, BrokenPipeError):
                statuses = (*statuses, b"")
            received = read_to_end(connection)
        # Where it closed with our bytes unread, the answer may be lost to a reset.
        assert [*received.split(), b"", b""][1] in statuses


@pytest.mark.usefixtures("_canary")
def test_metrics_of_a_real_engine(demo: ServerProcess) -> None:
    with demo.http() as http:
        before = http.get("/metrics").text
        http.post("/v1/completions", json={**CANARY, "n": 2, "ignore_eos": True, "max_tokens": 20})
        # An answer is counted once it has been sent.
        assert eventually(lambda: ended(http.get("/metrics").text) == ended(before) + 1)
        after = http.get("/metrics").text

    def grown(name: str) -> float:
        values = [re.search(rf"^remuda:{name} (\S+)$", text, re.M) for text in (before, after)]
        assert all(values), name
        return float(values[1][1]) - float(values[0][1])  # type: ignore[index]

    assert grown("generation_tokens_total") == 40
    assert grown("request_generation_tokens_sum") == 40
    assert grown("prompt_tokens_total") == grown("request_prompt_tokens_sum") > 0
    assert grown("inter_token_latency_seconds_count") == 38
    assert grown("time_to_first_token_seconds_count") == 1
    assert grown("request_queue_time_seconds_count") == 1
    assert grown("e2e_request_latency_seconds_count") == 1
    assert re.search(r"^remuda:engine_resident_memory_bytes [1-9]", after, re.M)
    assert re.search(r"^remuda:state_slots 4.0$", after, re.M)
    assert re.search(r"^remuda:engine_restarts_total 0.0$", after, re.M)


def test_keys_tls_and_a_log_of_json(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-of-the-file\n")
    arguments = [
        *("demo", "--num-slots", "2", "--log-format", "json", "--log-level", "debug"),
        *("--api-key-file", str(tmp_path / "keys"), "--ssl-certfile", str(TLS / "cert.pem")),
        *("--ssl-keyfile", str(TLS / "key-encrypted.pem"), "--allowed-host", "127.0.0.1"),
    ]
    environment = {"REMUDA_API_KEYS": "key-of-the-environment", "REMUDA_SSL_KEYFILE_PASSWORD": "correct-horse"}
    with serving(*arguments, environment=environment) as server:
        assert server.url.startswith("https://")
        # The engine has no business with keys.
        assert not set(environment) & set(server.engine.environ())
        trusted = ssl.create_default_context(cafile=TLS / "cert.pem")
        with httpx2.Client(base_url=server.url, verify=trusted, timeout=60) as http:
            for key, status in (("key-of-the-file", 200), ("key-of-the-environment", 200), ("wrong-key", 401)):
                answer = http.get(f"/v1/models?key={key}", headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == status
            body = {"model": "demo", "prompt": "a secret prompt", "max_tokens": 4, "ignore_eos": True}
            headers = {"authorization": "Bearer key-of-the-file", "x-request-id": "mine"}
            assert http.post("/v1/completions", json=body, headers=headers).status_code == 200
            assert http.get("/metrics").status_code == 401
            assert http.get("/health", headers={"host": "evil.org"}).status_code == 200
            assert http.get("/v1/models", headers={"host": "evil.org"}).status_code == 421
            client = openai.OpenAI(
                base_url=f"{server.url}/v1", api_key="key-of-the-environment", http_client=http, max_retries=0
            )
            assert client.models.list().data[0].id == "demo"
        # Plain HTTP, and silence where a handshake is due.
        with socket.create_connection(address(server), timeout=CLOSED_WITHIN_S) as connection:
            connection.sendall(request("GET", "/health"))
            assert b"200" not in read_to_end(connection)
        with socket.create_connection(address(server), timeout=CLOSED_WITHIN_S) as connection:
            assert read_to_end(connection) == b""
        log = server.log
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (line,) = [line for line in lines if line.get("request_id") == "mine"]
    assert (line["path"], line["status"], line["finish_reasons"]) == ("/v1/completions", 200, ["length"])
    assert (line["prompt_tokens"] > 0, line["completion_tokens"]) == (True, 4)
    assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["total_ms"]
    for secret in ("key-of-the", "wrong-key", "secret", "correct-horse"):
        assert secret not in log


def test_a_public_server_without_keys_says_so() -> None:
    code = (
        "from remuda.server.options import ServeOptions; from remuda.server.prepare import prepare_process; "
        "prepare_process(ServeOptions(host='0.0.0.0'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no API key is set" in done.stderr


def test_headers_of_an_answer_name_no_server(demo: ServerProcess) -> None:
    with socket.create_connection(address(demo), timeout=30) as connection:
        connection.sendall(request("GET", "/health"))
        _, headers, _ = read_answer(connection)
    assert set(headers) == {"date", "content-length", "content-type", "x-request-id"}
