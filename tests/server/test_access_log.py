"""The access log: one line a request, in text or JSON, with ids, tokens and times, and without any prompt."""

import json
import logging
import sys
from typing import Any

import httpx2
import pytest

from remuda.engine.log_format import FIELDS, JsonFormatter, TextFormatter
from tests.server.fakes import AppServer, FakeEngine, eventually, says
from tests.server.raw_http import read_answer, read_to_end, request

COMPLETION = {"model": "fake", "prompt": "my secret prompt", "max_tokens": 5}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The records of the access log so far."""
    caplog.set_level(logging.INFO, "remuda.access")
    return lambda: [record for record in caplog.records if record.name == "remuda.access"]


def test_a_generating_request(http: httpx2.Client, lines: Any) -> None:
    answer = http.post("/v1/completions?key=hidden", json={**COMPLETION, "n": 2}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert eventually(lambda: len(lines()) == 1)
    (record,) = lines()
    fields = getattr(record, FIELDS)
    timings = {name: fields.pop(name) for name in ("total_ms", "ttft_ms")}
    assert 0 < timings["ttft_ms"] <= timings["total_ms"]
    assert fields == {
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "prompt_tokens": 17,
        "completion_tokens": 10,
        "queue_ms": None,
        "finish_reasons": ["length", "length"],
        "abort_reason": None,
    }
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record)
        assert "\n" not in line
        assert not any(secret in line for secret in ("secret", "hidden", "Hello"))
        assert "mine" in line


def test_other_requests(http: httpx2.Client, lines: Any) -> None:
    http.get("/v1/models")
    http.get("/nowhere")
    http.post("/v1/completions", json={})
    http.get("/health")
    http.get("/metrics")
    assert eventually(lambda: len(lines()) == 3)
    assert [(record.getMessage(), record.levelname) for record in lines()] == [
        ("GET /v1/models 200", "INFO"),
        ("GET /nowhere 404", "INFO"),
        ("POST /v1/completions 400", "INFO"),
    ]


def test_a_client_that_leaves(server: AppServer, engine: FakeEngine, http: httpx2.Client, lines: Any) -> None:
    engine.script, engine.step_s = says("x" * 50_000), 0.002
    body = {**COMPLETION, "max_tokens": 9999, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    assert eventually(lambda: len(lines()) == 1)
    fields = getattr(lines()[0], FIELDS)
    assert (fields["status"], fields["finish_reasons"], fields["abort_reason"]) == (200, ["abort"], "disconnect")
    with server.raw() as connection:
        data = json.dumps({**body, "stream": False}).encode()
        connection.sendall(request("POST", "/v1/completions", "content-type: application/json", body=data))
        assert eventually(lambda: len(engine.requests) == 2)
    assert eventually(lambda: len(lines()) == 2)
    assert getattr(lines()[1], FIELDS)["status"] == 499


def test_a_client_that_leaves_with_its_body_half_sent(server: AppServer, lines: Any) -> None:
    with server.raw() as connection:
        head = request("POST", "/v1/completions", "content-type: application/json", "content-length: 99")
        connection.sendall(head + b"{")
    assert eventually(lambda: len(lines()) == 1)
    assert getattr(lines()[0], FIELDS)["status"] == 499


@pytest.mark.parametrize("is_apart", [True, False])
def test_a_refused_body_is_one_request(server: AppServer, http: httpx2.Client, lines: Any, is_apart: bool) -> None:
    """Whether the application has begun with it or not; its id is the one that the client was told."""
    head = request("POST", "/v1/completions", "content-type: application/json", "transfer-encoding: chunked")
    with server.raw() as connection:
        if is_apart:
            connection.sendall(head)
            assert eventually(lambda: bool(server._server.server_state.tasks))
            connection.sendall(b"zz\r\n")
        else:
            connection.sendall(head + b"zz\r\n")
        status, headers, _ = read_answer(connection)
    assert eventually(lambda: len(lines()) == 1)
    fields = getattr(lines()[0], FIELDS)
    assert (status, fields["status"], fields["request_id"]) == (400, 400, headers["x-request-id"])
    counts = [line for line in http.get("/metrics").text.splitlines() if "http_requests_total{" in line]
    assert counts == ['remuda:http_requests_total{handler="/v1/completions",status="400"} 1.0']


@pytest.mark.parametrize("path", ["/%0aGET%20/forged%20200", "/a%1b[31m", "/" + "y" * 1000])
def test_no_path_breaks_a_line(server: AppServer, lines: Any, path: str) -> None:
    with server.raw() as connection:
        connection.sendall(request("GET", path, "connection: close"))
        read_to_end(connection)
    assert eventually(lambda: len(lines()) == 1)
    (record,) = lines()
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1"), ("x status=200", ""), ("<b>", "")],
)
def test_the_client_behind_a_proxy(http: httpx2.Client, lines: Any, forwarded: str, client: str) -> None:
    http.get("/v1/models", headers={"x-forwarded-for": forwarded})
    assert eventually(lambda: len(lines()) == 1)
    assert getattr(lines()[0], FIELDS)["client"] == client


def test_json_holds_an_exception() -> None:
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        logger = logging.getLogger("x")
        record = logger.makeRecord("x", logging.ERROR, "f", 1, "it %s", ("broke",), sys.exc_info())
    value = json.loads(JsonFormatter().format(record))
    assert (value["message"], value["level"], value["logger"]) == ("it broke", "error", "x")
    assert value["exception"].endswith("ValueError: odd\nvalue")
