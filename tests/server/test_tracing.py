"""OpenTelemetry: one span a request with its parent and numbers, sent over OTLP; none without an endpoint."""

import http.server
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from remuda.server.request_record import RequestRecord
from remuda.server.token_meter import TokenMeter
from remuda.server.tracing import Tracing, start_tracing
from tests.server.fakes import AppServer, FakeEngine, eventually, says

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
COMPLETION = {"model": "org/alias", "prompt": "my secret prompt", "max_tokens": 5}


@pytest.fixture
def spans(engine: FakeEngine) -> Iterator[Any]:
    """The ended spans, and a client of the server that makes them."""
    exporter = InMemorySpanExporter()
    running = AppServer(engine)
    tracing = Tracing("fake", SimpleSpanProcessor(exporter))
    running.state.record_sinks.append(tracing.observe)
    with httpx2.Client(base_url=running.url) as client:
        yield client, lambda: list(exporter.get_finished_spans())
    running.stop()
    tracing.close()


def wait_for(get: Any, count: int) -> list[ReadableSpan]:
    assert eventually(lambda: len(get()) == count)
    return list(get())


def test_a_request_is_a_span_of_its_callers_trace(spans: Any) -> None:
    client, get = spans
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    assert (
        client.post("/v1/completions?key=hidden", json={**COMPLETION, "n": 2}, headers=headers).status_code == 200
    )
    (span,) = wait_for(get, 1)
    assert (span.name, span.kind) == ("POST /v1/completions", trace.SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    attributes = dict(span.attributes)
    first, whole = (attributes.pop(f"gen_ai.latency.{name}") for name in ("time_to_first_token", "e2e"))
    assert 0 < first <= whole
    assert span.end_time - span.start_time == pytest.approx(whole * 1e9, abs=1000)
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/completions",
        "client.address": "127.0.0.1",
        "remuda.request_id": "mine",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "remuda",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": 17,
        "gen_ai.usage.output_tokens": 10,
    }
    assert span.status.is_ok


def test_other_requests(spans: Any) -> None:
    client, get = spans
    for path in ("/health", "/metrics", "/v1/models", "/nowhere"):
        client.get(path, headers={"traceparent": "not-one"})
    found = wait_for(get, 2)
    assert [span.name for span in found] == ["GET /v1/models", "GET none"]
    assert all(span.parent is None for span in found)


def test_a_caller_that_does_not_sample(spans: Any) -> None:
    client, get = spans
    client.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    client.get("/v1/models")
    assert len(wait_for(get, 1)) == 1


def test_a_request_that_breaks_off(spans: Any, engine: FakeEngine) -> None:
    client, get = spans
    engine.script, engine.step_s = says("x" * 50_000), 0.002
    with client.stream(
        "POST", "/v1/completions", json={**COMPLETION, "max_tokens": 9999, "stream": True}
    ) as answer:
        next(answer.iter_lines())
    (span,) = wait_for(get, 1)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"] == "disconnect"


def test_no_tracing_by_default(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI traces by itself where a provider is set up for the process; this app does not."""
    exporter = InMemorySpanExporter()
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    assert http.get("/v1/models").status_code == 200
    assert exporter.get_finished_spans() == ()
    provider.shutdown()


def record() -> RequestRecord:
    made = RequestRecord("id", "POST", "/v1/completions", "", None, status=200, route="/v1/completions")
    made.meter, made.ended = TokenMeter(1), made.started + 0.5
    return made


def test_spans_are_sent_by_otlp() -> None:
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        tracing = start_tracing(f"http://127.0.0.1:{collector.server_port}/v1/traces", "fake")
        tracing.observe(record())
        tracing.close()
        collector.shutdown()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"gen_ai.operation.name" in body
    assert b"remuda" in body


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remuda.server.tracing._CLOSE_S", 0.05)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    tracing = start_tracing("http://127.0.0.1:9/v1/traces", "fake")
    tracing.observe(record())
    tracing.close()
