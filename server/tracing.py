"""OpenTelemetry traces, where an endpoint is configured: one span for each request, made when it has ended.

A span is written from the request's record alone, so that tracing costs nothing per token. Spans join the
trace of a W3C `traceparent` header, and follow its word on sampling.
"""

import os
import threading
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from remuda.engine.errors import ConfigError
from remuda.server.request_record import PROBES, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
}
# What is left to send when the server ends may take this long.
_CLOSE_S: Final = 2.0


class Tracing:
    """Turns records into spans and hands them to `processor`, which sends them from a thread of its own."""

    def __init__(self, model_name: str, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {"service.version": version("remuda")}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes["service.name"] = "remuda"
        self._model_name = model_name
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("remuda")
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, record: RequestRecord) -> None:
        """Write the span of one request that has ended."""
        if record.route in PROBES:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {} if record.traceparent is None else {"traceparent": record.traceparent}
        unix_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_of_http(record) | (_of_generation(record, self._model_name) if record.meter else {}),
            start_time=unix_ns - round(record.total_s * 1e9),
        )
        if record.status >= 500 or record.abort_reason is not None:
            span.set_status(Status(StatusCode.ERROR, record.abort_reason))
        span.end(unix_ns)

    def close(self) -> None:
        """Send what is left, if it goes quickly; an endpoint that does not answer must not hold up the end."""
        sender = threading.Thread(target=self._provider.shutdown, daemon=True, name="last-traces")
        sender.start()
        sender.join(_CLOSE_S)


def start_tracing(endpoint: str, model_name: str) -> Tracing:
    """Trace to `endpoint`, by OTLP over HTTP. Raises ConfigError where the optional extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError("--otlp-endpoint needs the extra `otel`: pip install 'remuda[otel]'") from error
    return Tracing(model_name, BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def _of_http(record: RequestRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "client.address": record.client,
        "remuda.request_id": record.request_id,
    }
    if record.is_background:
        attributes["remuda.background"] = True
    if record.abort_reason is not None:
        attributes["error.type"] = record.abort_reason
    elif record.status >= 500:
        attributes["error.type"] = str(record.status)
    return attributes


def _of_generation(record: RequestRecord, model_name: str) -> dict[str, Any]:
    """The names are those of OpenTelemetry's conventions, and of vLLM for latencies, in seconds."""
    queued_s = None if record.meter is None else record.meter.queued_s
    attributes = {
        "gen_ai.operation.name": _OPERATIONS.get(record.route, "generate_content"),
        "gen_ai.provider.name": "remuda",
        "gen_ai.request.model": model_name,
        "gen_ai.response.model": model_name,
        "gen_ai.response.finish_reasons": list(record.finish_reasons),
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_output_tokens,
        "gen_ai.latency.time_to_first_token": record.first_token_s,
        "gen_ai.latency.time_in_queue": queued_s,
        "gen_ai.latency.e2e": record.total_s,
    }
    return {name: value for name, value in attributes.items() if value is not None}
