"""What this API worker counts and times, for Prometheus, under vLLM's names where it has them.

The workers of a server keep their numbers in files of one directory, which whichever of them is asked adds up; a
process without `shared_metrics` keeps them in memory. The engine's own numbers are in engine_metrics.py.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from remuda.server.request_record import RequestRecord
from remuda.server.token_meter import GAP_BOUNDS, TokenMeter

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

PREFIX: Final = "remuda:"
_DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_LATENCY_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_QUEUE_BOUNDS: Final = (0.001, 0.005, *_LATENCY_BOUNDS)
_TOKEN_BOUNDS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


def shared_metrics(directory: Path) -> dict[str, str]:
    """The environment of processes that are to keep their metrics in `directory`, which must be empty at first.

    prometheus_client looks at it when it is imported.
    """
    return {_DIRECTORY_VARIABLE: str(directory)}


def forget_process(environment: Mapping[str, str], pid: int) -> None:
    """Of a process that is gone: what it counted stays, what it had does not. environment: its own."""
    if _DIRECTORY_VARIABLE in environment:
        # The name that prometheus_client gives to the file of gauges that live as long as their process.
        Path(environment[_DIRECTORY_VARIABLE], f"gauge_liveall_{pid}.db").unlink(missing_ok=True)


class ServerMetrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        # Not needed by whoever only asks for the options of serving.
        import prometheus_client as client

        client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = client.CollectorRegistry()

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> "Counter":
            return client.Counter(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, bounds: Iterable[float]) -> "Histogram":
            return client.Histogram(PREFIX + name, text, buckets=tuple(bounds), registry=registry)

        self._requests = counter("http_requests", "HTTP requests by route and status.", ("handler", "status"))
        self._success = counter("request_success", "Ended choices by finish reason.", ("finished_reason",))
        self._aborts = counter("request_aborts", "Requests that ended before their time.", ("reason",))
        self._e2e = histogram("e2e_request_latency_seconds", "From request to end of answer.", _LATENCY_BOUNDS)
        self._first = histogram("time_to_first_token_seconds", "From request to first token.", _LATENCY_BOUNDS)
        self._queue = histogram("request_queue_time_seconds", "Wait for a state slot.", _QUEUE_BOUNDS)
        self._gaps = histogram("inter_token_latency_seconds", "Between two tokens of a choice.", GAP_BOUNDS)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKEN_BOUNDS)
        self._output = histogram("request_generation_tokens", "New tokens of a request.", _TOKEN_BOUNDS)

        self._tasks = client.Gauge(
            f"{PREFIX}asyncio_tasks",
            "Tasks of an API worker's event loop.",
            registry=registry,
            multiprocess_mode="liveall",
        )

    def note_tasks(self, num_tasks: int) -> None:
        """How many tasks the event loop of this process has."""
        self._tasks.set(num_tasks)

    def observe(self, record: RequestRecord) -> None:
        """Count one request that has ended, or one run in the background, whose request was counted before."""
        if not record.is_background:
            self._requests.labels(record.route, str(record.status)).inc()
        if record.meter is None:
            return
        for reason in record.finish_reasons:
            self._success.labels(reason).inc()
        if record.abort_reason is not None:
            self._aborts.labels(record.abort_reason).inc()
        self._e2e.observe(record.total_s)
        self._prompt.observe(record.num_prompt_tokens)
        self._output.observe(record.num_output_tokens)
        if record.first_token_s is not None:
            self._first.observe(record.first_token_s)
        if record.meter.queued_s is not None:
            self._queue.observe(record.meter.queued_s)
        self._add_gaps(record.meter)

    def count_refusal(self, status: int) -> None:
        """Count a request that was refused before it was one."""
        self._requests.labels("none", str(status)).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format; of all processes where they share."""
        import prometheus_client as client
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if _DIRECTORY_VARIABLE in os.environ:
            registry = client.CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return client.generate_latest(registry)

    def _add_gaps(self, meter: TokenMeter) -> None:
        """Add a request's gaps at once: `observe` would be called for each token."""
        for bucket, count in zip(self._gaps._buckets, meter.gap_counts, strict=True):
            if count:
                bucket.inc(count)
        self._gaps._sum.inc(meter.gap_sum)
