"""What a load test writes: one JSON schema, versioned. Times are seconds, sizes bytes, rates per second.

`remuda load` writes it, the report and `--compare` read it; nothing here measures or draws.
"""

from typing import Final

import msgspec

SCHEMA: Final = "remuda.load/1"
# Those of a Distribution, in percent.
PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Of one measure. Without a value (count 0) the numbers are None.

    percentiles: by their names, "50" to "99.9". curve: (share at most, value) at up to 200 points from 0 to 1, of
    which a plot of the distribution is made.
    """

    count: int
    mean: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    percentiles: dict[str, float] = {}
    curve: list[tuple[float, float]] = []


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """objective: bounds by measure (`ttft`, `itl`, `e2e`), in seconds. num_good: requests that kept them all.

    A request's `itl` is the mean of its gaps. share: of all requests, failed ones among them. requests_per_s: of
    those that ended in the stage's duration, as that of the stage.
    """

    objective: dict[str, float]
    num_good: int
    share: float
    requests_per_s: float


class ServerSample(msgspec.Struct, frozen=True, kw_only=True):
    """The server at one time, from its `/metrics`; None where it does not say. t: since the run's start."""

    t: float
    num_running: float | None = None
    num_waiting: float | None = None
    slots_used: float | None = None
    slots_free: float | None = None
    pool_bytes: float | None = None
    engine_resident_bytes: float | None = None
    server_resident_bytes: float | None = None
    device_bytes: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None


class RequestResult(msgspec.Struct, frozen=True, kw_only=True):
    """One request. due, sent: since the run's start; where arrivals are scheduled times count from `due`.

    ttft, e2e: from due (open loop) or sent (closed). itl: mean gap between tokens. error: a short kind
    (`429`, `timeout`, `connection`, `error event`, …), None where it ended well.
    """

    stage: int
    due: float
    sent: float
    prompt_tokens: int
    output_tokens: int
    ttft: float | None = None
    itl: float | None = None
    e2e: float | None = None
    finish_reason: str | None = None
    error: str | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One load that was held for a while: a run has one, a sweep has one for each value.

    concurrency or rate: which was set. lateness: from due to sent. tpot: (e2e − ttft) / (output tokens − 1).
    samples: the server during it. notes: what a reader must know, such as that the client was the bottleneck.
    """

    label: str
    start: float
    duration: float
    concurrency: int | None = None
    rate: float | None = None
    num_requests: int
    num_failed: int
    errors: dict[str, int] = {}
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution
    lateness: Distribution
    goodput: Goodput | None = None
    samples: list[ServerSample] = []
    client_busy_share: float | None = None
    notes: list[str] = []


class ContextPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What `--long-context` found at one length. context_tokens: of each sequence, when it was sampled.

    itl_parts: the median gap in each part of the windows, in order of time, in seconds.
    """

    context_tokens: int
    num_sequences: int
    itl: Distribution
    itl_parts: list[float] = []
    prefill_tokens_per_s: float | None = None
    sample: ServerSample


class LongContext(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences driven through growing contexts, shortest first. state_bytes: of one sequence, constant."""

    num_sequences: int
    points: list[ContextPoint]
    state_bytes: int | None = None


class KvShape(msgspec.Struct, frozen=True, kw_only=True):
    """A Transformer of the served model's size: what its KV cache would hold.

    Bytes for one token of one sequence: 2 · num_layers · kv_width · bytes_per_value. basis: in words, how the
    shape was found (from the server's `/info`, or given).
    """

    num_layers: int
    kv_width: int
    bytes_per_value: int
    basis: str

    def bytes_per_token(self) -> int:
        """Of one sequence: keys and values of all layers."""
        return 2 * self.num_layers * self.kv_width * self.bytes_per_value


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Who was loaded. info: the server's `/info`, where it has one."""

    url: str
    model: str
    info: dict[str, str | int | float | bool | None] | None = None


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What this client could read, measured before the run: events/s from a server that only writes."""

    events_per_s: float


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `remuda load`. created: ISO 8601, UTC. command: its arguments without keys. machine: in words."""

    schema: str = SCHEMA
    version: str
    created: str
    command: list[str]
    machine: str
    target: Target
    settings: dict[str, str | int | float | bool | None]
    stages: list[Stage] = []
    requests: list[RequestResult] = []
    long_context: LongContext | None = None
    kv: KvShape | None = None
    ceiling: Ceiling | None = None
    saturation: str | None = None
    notes: list[str] = []
