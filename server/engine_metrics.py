"""The engine's own numbers for Prometheus, as a snapshot: one worker asks for it, so nobody's are added up."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from remuda.engine.config import EngineInfo
from remuda.engine.wire import EngineStats
from remuda.server.metrics import PREFIX
from remuda.server.restart_budget import Restarts

if TYPE_CHECKING:
    from prometheus_client import Metric


class EngineSnapshot:
    """A collector of one moment. `stats` and `info` are None where no engine serves."""

    def __init__(
        self, info: EngineInfo | None, stats: EngineStats | None, restarts: Restarts, *, is_ready: bool
    ) -> None:
        self._info = info
        self._stats = stats
        self._restarts = restarts
        self._is_ready = is_ready
        self._server_resident_bytes = 0

    def render(self, server_resident_bytes: int) -> bytes:
        """The snapshot in Prometheus' text format, with what the other processes hold of the host's memory."""
        import prometheus_client as client

        registry = client.CollectorRegistry()
        self._server_resident_bytes = server_resident_bytes
        registry.register(self)
        return client.generate_latest(registry)

    def collect(self) -> Iterator["Metric"]:
        """The metrics, for prometheus_client."""
        yield _gauge("engine_up", "1 while the engine serves.", int(self._is_ready))
        restarts = self._restarts
        yield _counter("engine_restarts", "Times that the engine process was started again.", restarts.num_engine)
        yield _counter("api_worker_restarts", "Times that an API worker was started again.", restarts.num_workers)
        # No Gauge: one would have a file of its own, which the metrics of all workers would tell of as well.
        text = "Host memory of the server's processes but the engine."
        yield _gauge("server_resident_memory_bytes", text, self._server_resident_bytes)
        if self._info is not None:
            yield from _of_info(self._info)
        if self._stats is not None:
            yield from _of_stats(self._stats)
            if self._info is not None:
                num_used = self._info.num_slots - self._stats.num_free_slots
                yield _gauge("state_slots_used", "State slots that sequences hold.", num_used)


def _of_info(info: EngineInfo) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily

    labels = {
        "model_name": info.model,
        "device": info.device,
        "backend": info.backend,
        "dtype": info.dtype,
        "state_dtype": info.state_dtype,
        "version": version("remuda"),
    }
    described = GaugeMetricFamily(f"{PREFIX}engine_info", "What serves; always 1.", labels=list(labels))
    described.add_metric(list(labels.values()), 1)
    yield described
    yield _gauge("state_slots", "State slots of the pool, which is how many sequences can run.", info.num_slots)
    yield _gauge("state_slot_bytes", "Bytes of one state slot.", info.slot_bytes)
    yield _gauge("state_pool_bytes", "Bytes of all state slots.", info.num_slots * info.slot_bytes)
    yield _gauge("max_queue", "Requests that may wait for a slot.", info.max_queue)


def _of_stats(stats: EngineStats) -> Iterator["Metric"]:
    yield _gauge("num_requests_running", "Requests that hold state slots.", stats.num_running)
    yield _gauge("num_requests_waiting", "Requests that wait for a state slot.", stats.num_waiting)
    yield _gauge("state_slots_free", "State slots that no sequence holds.", stats.num_free_slots)
    yield _gauge("engine_resident_memory_bytes", "Host memory of the engine process.", stats.resident_bytes)
    if stats.device_bytes is not None:
        yield _gauge("engine_device_memory_bytes", "Memory that the engine holds of a GPU.", stats.device_bytes)
    yield _counter("prompt_tokens", "Prompt tokens of requests that the engine took.", stats.num_prompt_tokens)
    yield _counter("generation_tokens", "Tokens that the engine has drawn.", stats.num_output_tokens)
    yield _counter("engine_steps", "Steps that brought tokens.", stats.num_steps)
    yield _counter("engine_aborts", "Requests that were ended before their time.", stats.num_aborts)


def _gauge(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(PREFIX + name, text, value=value)
