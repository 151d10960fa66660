"""The figures of a stage and of a context length that the tables, the report and a comparison show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from remuda.clients.report import units
from remuda.clients.report.kv import cache_bytes
from remuda.clients.report.results import ContextPoint, Distribution, LoadResult, LongContext, ServerSample, Stage

Of = TypeVar("Of")

# Of a stage, in the order of a request's life. Their names in capitals are the short ones.
DISTRIBUTIONS: Final = (
    ("ttft", "Time to first token"),
    ("itl", "Inter-token latency"),
    ("tpot", "Time per output token"),
    ("e2e", "End to end"),
)
SHORT_NAMES: Final = "; ".join(f"{name.upper()}: {title.lower()}" for name, title in DISTRIBUTIONS)


@dataclass(frozen=True)
class Measure(Generic[Of]):
    """One figure: its name, how it is written, where it is found, which way is better (None: neither).

    is_share: its changes are told in points of a percent.
    """

    name: str
    write: units.Format
    get: Callable[[Of], float | None]
    is_lower_better: bool | None = None
    is_share: bool = False


def percentile(distribution: Distribution, percent: str) -> float | None:
    """Of "50" to "99.9"; None without a value."""
    return distribution.percentiles.get(percent)


def failed_share(stage: Stage) -> float | None:
    """Of all requests; None where there was none."""
    return stage.num_failed / stage.num_requests if stage.num_requests else None


def server_bytes(sample: ServerSample) -> float | None:
    """Host memory of all the server's processes, as far as it says."""
    parts = [part for part in (sample.engine_resident_bytes, sample.server_resident_bytes) if part is not None]
    return sum(parts) if parts else None


def quietest(point: ContextPoint) -> float | None:
    """The least median gap in any part of the windows: nearest to what a machine takes that others leave alone."""
    return min(point.itl_parts, default=None)


def states_bytes(context: LongContext) -> int | None:
    """Of the sequences' states together: a constant."""
    return None if context.state_bytes is None else context.state_bytes * context.num_sequences


def point_cache_bytes(result: LoadResult, point: ContextPoint) -> float | None:
    """Of the Transformer's KV cache at this length; None where its shape is not known."""
    return None if result.kv is None else cache_bytes(result.kv, point.context_tokens, point.num_sequences)


def spread(values: Sequence[float | None]) -> float | None:
    """The largest over the smallest, less one; None with less than two values."""
    known = [value for value in values if value is not None]
    return max(known) / min(known) - 1 if len(known) > 1 and min(known) > 0 else None


def growth(values: Sequence[float | None]) -> float | None:
    """The last over the first, less one; None with less than two values."""
    known = [value for value in values if value is not None]
    return known[-1] / known[0] - 1 if len(known) > 1 and known[0] > 0 else None


def quietest_growth(context: LongContext) -> float | None:
    """Of the quietest part, from the first length to the last; None where a window had no parts to choose from."""
    points = context.points
    return growth([quietest(point) for point in points]) if len(points[0].itl_parts) > 1 else None


def best_stage(result: LoadResult) -> Stage | None:
    """The stage of the most output tokens a second: whose figures stand at the top."""
    return max(result.stages, key=lambda stage: stage.output_tokens_per_s, default=None)


def saturated_stage(result: LoadResult) -> Stage | None:
    """The stage that the result's sentence on saturation names first; None where it says that there was none."""
    words = result.saturation or ""
    if words.startswith("not "):
        return None
    named = [stage for stage in result.stages if stage.label and stage.label in words]
    return min(named, key=lambda stage: (words.index(stage.label), -len(stage.label)), default=None)


def _of(name: str, percent: str) -> Callable[[Stage], float | None]:
    def get(stage: Stage) -> float | None:
        distribution: Distribution = getattr(stage, name)
        return percentile(distribution, percent)

    return get


STAGE_MEASURES: Final[Sequence[Measure[Stage]]] = (
    Measure("Requests", units.count, lambda stage: stage.num_requests),
    Measure("Failed", units.share, failed_share, True, True),
    Measure("Requests/s", units.number, lambda stage: stage.requests_per_s, False),
    Measure("Output tokens/s", units.number, lambda stage: stage.output_tokens_per_s, False),
    Measure("All tokens/s", units.number, lambda stage: stage.total_tokens_per_s, False),
    *(
        Measure(f"{name.upper()} p{percent}", units.duration, _of(name, percent), True)
        for name, _ in DISTRIBUTIONS
        for percent in ("50", "99")
    ),
    Measure("Good requests/s", units.number, lambda s: s.goodput.requests_per_s if s.goodput else None, False),
    Measure("Good share", units.share, lambda s: s.goodput.share if s.goodput else None, False, True),
)
# Of one length.
LATENCY_MEASURES: Final[Sequence[Measure[ContextPoint]]] = (
    Measure("ITL p50", units.duration, lambda point: percentile(point.itl, "50"), True),
    Measure("ITL p50, quietest part", units.duration, quietest, True),
    Measure("ITL p99", units.duration, lambda point: percentile(point.itl, "99"), True),
    Measure("Prefill, tokens/s", units.number, lambda point: point.prefill_tokens_per_s, False),
)
MEMORY_MEASURES: Final[Sequence[Measure[ContextPoint]]] = (
    Measure("Engine process", units.size, lambda point: point.sample.engine_resident_bytes, True),
    Measure("Server, all processes", units.size, lambda point: server_bytes(point.sample), True),
    Measure("Device", units.size, lambda point: point.sample.device_bytes, True),
    Measure("State pool", units.size, lambda point: point.sample.pool_bytes, True),
)
CONTEXT_MEASURES: Final = (*LATENCY_MEASURES, *MEMORY_MEASURES)
