"""Made-up results with every feature of the schema, and with as little as it allows."""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from remuda.clients.report.kv import kv_shape
from remuda.clients.report.results import (
    PERCENTILES,
    Ceiling,
    ContextPoint,
    Distribution,
    Goodput,
    LoadResult,
    LongContext,
    RequestResult,
    ServerSample,
    Stage,
    Target,
)

# As the demo model's server says them.
INFO: dict[str, str | int | float | bool | None] = {
    "version": "0.1.0",
    "model": "demo",
    "model_type": "longhorn",
    "num_parameters": 4_018_432,
    "num_layers": 8,
    "hidden_size": 256,
    "vocab_size": 2048,
    "device": "cpu",
    "backend": "cpu",
    "dtype": "float32",
    "state_dtype": "float32",
    "num_slots": 64,
    "slot_bytes": 311_296,
    "max_queue": 256,
    "max_prompt_tokens": 1_048_576,
    "has_chat_template": True,
}
SLOT_BYTES = 311_296
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m=cmd|' /C calc'!A0"


def distribution(values: list[float]) -> Distribution:
    """Of `values`, with linear interpolation between them."""
    if not values:
        return Distribution(count=0)
    ordered = sorted(values)

    def at(quantile: float) -> float:
        place = quantile * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    num_points = min(200, len(ordered))
    return Distribution(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        minimum=ordered[0],
        maximum=ordered[-1],
        percentiles={f"{percent:g}": at(percent / 100) for percent in PERCENTILES},
        curve=[(i / max(1, num_points - 1), at(i / max(1, num_points - 1))) for i in range(num_points)],
    )


def sample(t: float, *, running: float = 0, waiting: float = 0, resident: float = 406e6) -> ServerSample:
    """What a server without a GPU says of itself."""
    return ServerSample(
        t=t,
        num_running=running,
        num_waiting=waiting,
        slots_used=running,
        slots_free=64 - running,
        pool_bytes=64 * SLOT_BYTES,
        engine_resident_bytes=resident,
        server_resident_bytes=182e6,
        prompt_tokens=t * 1000,
        output_tokens=t * 400,
    )


def requests_of(stage: int, concurrency: int, start: float, num: int, draw: random.Random) -> list[RequestResult]:
    """`num` requests, slower and failing more often the more of them run at a time."""
    found = []
    for i in range(num):
        due = start + 20 * i / num
        error = "429" if concurrency > 32 and draw.random() < 0.06 else None
        error = "timeout" if draw.random() < 0.004 else error
        itl = 0.004 * (1 + concurrency / 24) * draw.lognormvariate(0, 0.12)
        ttft = 0.03 * (1 + (concurrency / 12) ** 1.6) * draw.lognormvariate(0, 0.45)
        answer = draw.randint(24, 64)
        found.append(
            RequestResult(
                stage=stage,
                due=due,
                sent=due + draw.random() * 1e-3,
                prompt_tokens=draw.randint(64, 256),
                output_tokens=0 if error else answer,
                ttft=None if error else ttft,
                itl=None if error else itl,
                e2e=None if error else ttft + itl * (answer - 1),
                finish_reason=None if error else "length",
                error=error,
            )
        )
    return found


def stage_of(index: int, concurrency: int, draw: random.Random) -> tuple[Stage, list[RequestResult]]:
    """20 seconds of `concurrency` requests at a time, and the requests."""
    start, capacity = 22.0 * index, 26 * (1 - math.exp(-concurrency / 9))
    requests = requests_of(index, concurrency, start, round(capacity * 20), draw)
    good = [request for request in requests if request.error is None]
    kept = [r for r in good if (r.ttft or 0) <= 0.5 and (r.itl or 0) <= 0.05]
    output = sum(request.output_tokens for request in requests)
    prompt = sum(request.prompt_tokens for request in requests)
    gaps = [(r.itl or 0) * draw.lognormvariate(0, 0.25) for r in good for _ in range(12)]
    stage = Stage(
        label=f"concurrency {concurrency}",
        start=start,
        duration=20.0,
        concurrency=concurrency,
        num_requests=len(requests),
        num_failed=len(requests) - len(good),
        errors=dict(Counter(request.error for request in requests if request.error is not None)),
        prompt_tokens=prompt,
        output_tokens=output,
        requests_per_s=len(good) / 20,
        output_tokens_per_s=output / 20,
        total_tokens_per_s=(output + prompt) / 20,
        ttft=distribution([r.ttft for r in good if r.ttft is not None]),
        itl=distribution(gaps),
        tpot=distribution([r.itl for r in good if r.itl is not None]),
        e2e=distribution([r.e2e for r in good if r.e2e is not None]),
        lateness=distribution([r.sent - r.due for r in requests]),
        goodput=Goodput(
            objective={"ttft": 0.5, "itl": 0.05},
            num_good=len(kept),
            share=len(kept) / len(requests),
            requests_per_s=len(kept) / 20,
        ),
        samples=[
            sample(
                start + t / 2,
                running=min(concurrency, 64) * (0.9 + 0.1 * draw.random()),
                waiting=max(0, concurrency - 64) * draw.random(),
                resident=406e6 + 2e5 * draw.random(),
            )
            for t in range(40)
        ],
        client_busy_share=min(0.97, 0.03 + concurrency / 120),
        notes=["the client was busy for 97 % of the time"] if concurrency > 64 else [],
    )
    return stage, requests


def long_context(num_sequences: int = 16) -> LongContext:
    """Flat in memory and latency from 1,024 to 131,072 tokens."""
    draw = random.Random(7)
    lengths = (1024, 4096, 16_384, 65_536, 131_072)
    return LongContext(
        num_sequences=num_sequences,
        state_bytes=SLOT_BYTES,
        points=[
            ContextPoint(
                context_tokens=tokens,
                num_sequences=num_sequences,
                itl=distribution([0.0112 * draw.lognormvariate(0, 0.08) for _ in range(800)]),
                itl_parts=[0.0112 * draw.lognormvariate(0, 0.02) for _ in range(8)],
                prefill_tokens_per_s=9100 + 300 * draw.random(),
                sample=sample(10.0 * i, running=num_sequences, resident=406e6 + 4e5 * draw.random()),
            )
            for i, tokens in enumerate(lengths)
        ],
    )


def result(
    stages: list[Stage] | None = None,
    requests: list[RequestResult] | None = None,
    context: LongContext | None = None,
    **changes: Any,
) -> LoadResult:
    """A result around what was measured."""
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "created": "2026-11-24T14:40:00Z",
        "command": ["--url", "http://127.0.0.1:8000", "--concurrency", "16"],
        "machine": "Linux 6.1, 2 × AMD EPYC 9B14, 8 GB, Python 3.11.2",
        "target": Target(url="http://127.0.0.1:8000", model="demo", info=INFO),
        "settings": {
            "prompt_tokens": "uniform:64,256",
            "output_tokens": 64,
            "seed": 0,
            "warmup": 2.5,
            "rate": None,
        },
        "stages": stages or [],
        "requests": requests or [],
        "long_context": context,
        "kv": kv_shape(INFO),
    }
    return LoadResult(**(fields | changes))


def single(seed: int = 1, concurrency: int = 16, **changes: Any) -> LoadResult:
    """One closed-loop stage."""
    stage, requests = stage_of(0, concurrency, random.Random(seed))
    return result([stage], requests, **changes)


def sweep(seed: int = 1) -> LoadResult:
    """Seven stages beyond saturation, with errors, notes and a slow client."""
    draw = random.Random(seed)
    pairs = [stage_of(i, concurrency, draw) for i, concurrency in enumerate((1, 2, 4, 8, 16, 32, 96))]
    return result(
        [stage for stage, _ in pairs],
        [request for _, requests in pairs for request in requests],
        settings={"sweep": "concurrency=1,2,4,8,16,32,96", "slo": "ttft=500ms,itl=50ms", "seed": 0},
        saturation="saturated at concurrency 32: at concurrency 96 9% of requests keep the objective",
        ceiling=Ceiling(events_per_s=41_200.0),
        notes=["one request of the warm-up failed: timeout"],
    )


def full(seed: int = 1) -> LoadResult:
    """A sweep and the long contexts in one result."""
    swept = sweep(seed)
    return result(swept.stages, swept.requests, long_context(), saturation=swept.saturation, ceiling=swept.ceiling)


def failed() -> LoadResult:
    """No request succeeded."""
    none = Distribution(count=0)
    requests = [
        RequestResult(stage=0, due=i / 4, sent=i / 4, prompt_tokens=10, output_tokens=0, error="connection")
        for i in range(20)
    ]
    stage = Stage(
        label="concurrency 4",
        start=0.0,
        duration=5.0,
        concurrency=4,
        num_requests=20,
        num_failed=20,
        errors={"connection": 20},
        prompt_tokens=0,
        output_tokens=0,
        requests_per_s=0.0,
        output_tokens_per_s=0.0,
        total_tokens_per_s=0.0,
        ttft=none,
        itl=none,
        tpot=none,
        e2e=none,
        lateness=distribution([0.0]),
        goodput=Goodput(objective={"ttft": 0.5}, num_good=0, share=0.0, requests_per_s=0.0),
    )
    return result([stage], requests, target=Target(url="http://127.0.0.1:9", model="demo"), kv=None)


def empty() -> LoadResult:
    """A run that was stopped before its first stage ended."""
    return result(kv=None, settings={}, command=[], target=Target(url="http://127.0.0.1:8000", model="demo"))


def instant() -> LoadResult:
    """One request of one token in no time, of a server without metrics."""
    one = distribution([0.0])
    request = RequestResult(stage=0, due=0.0, sent=0.0, prompt_tokens=1, output_tokens=1, ttft=0.0, e2e=0.0)
    stage = Stage(
        label="1 request",
        start=0.0,
        duration=0.0,
        num_requests=1,
        num_failed=0,
        prompt_tokens=1,
        output_tokens=1,
        requests_per_s=0.0,
        output_tokens_per_s=0.0,
        total_tokens_per_s=0.0,
        ttft=one,
        itl=Distribution(count=0),
        tpot=Distribution(count=0),
        e2e=one,
        lateness=one,
        samples=[ServerSample(t=0.0)],
    )
    return result([stage], [request], target=Target(url="http://127.0.0.1:8000", model="demo"), kv=None)


def one_length(*, has_metrics: bool) -> LoadResult:
    """Long context at one length only, with a server that says what it holds or one that does not."""
    point = ContextPoint(
        context_tokens=1024,
        num_sequences=1,
        itl=distribution([0.01]),
        sample=sample(0.0) if has_metrics else ServerSample(t=0.0),
    )
    context = LongContext(num_sequences=1, points=[point], state_bytes=SLOT_BYTES if has_metrics else None)
    return result(context=context, kv=kv_shape(INFO) if has_metrics else None)


def no_lengths() -> LoadResult:
    """Long context of which the first length was never reached."""
    return result(context=LongContext(num_sequences=4, points=[]))


def hostile() -> LoadResult:
    """Whatever a server, a user or a file may put into a text."""
    made = failed()
    request = RequestResult(stage=0, due=0.0, sent=0.0, prompt_tokens=1, output_tokens=0, error=HOSTILE)
    stage = Stage(
        label=HOSTILE,
        start=0.0,
        duration=1.0,
        concurrency=1,
        num_requests=1,
        num_failed=1,
        errors={HOSTILE: 1},
        prompt_tokens=1,
        output_tokens=0,
        requests_per_s=0.0,
        output_tokens_per_s=0.0,
        total_tokens_per_s=0.0,
        ttft=distribution([0.1, 0.2]),
        itl=distribution([0.1, 0.2]),
        tpot=distribution([0.1]),
        e2e=distribution([0.1]),
        lateness=made.stages[0].lateness,
        notes=[HOSTILE],
    )
    return result(
        [stage, made.stages[0]],
        [request],
        version=HOSTILE,
        created=HOSTILE,
        command=[HOSTILE],
        machine=HOSTILE,
        target=Target(url=HOSTILE, model=HOSTILE, info={HOSTILE: HOSTILE}),
        settings={HOSTILE: HOSTILE},
        saturation=HOSTILE,
        notes=[HOSTILE],
        kv=kv_shape(None, layers=2, width=8),
    )


def rate_sweep() -> LoadResult:
    """An open loop at growing rates."""
    swept = sweep(3)
    stages = []
    for i, stage in enumerate(swept.stages[:4]):
        fields = {name: getattr(stage, name) for name in stage.__struct_fields__}
        rate = 2.0 * 2**i
        stages.append(Stage(**(fields | {"label": f"rate {rate:g}/s", "concurrency": None, "rate": rate})))
    return result(stages, [r for r in swept.requests if r.stage < 4], saturation=None)


DEGENERATE: dict[str, Callable[[], LoadResult]] = {
    "failed": failed,
    "empty": empty,
    "instant": instant,
    "one length": lambda: one_length(has_metrics=True),
    "one length without metrics": lambda: one_length(has_metrics=False),
    "no lengths": no_lengths,
    "hostile": hostile,
}
ALL: dict[str, Callable[[], LoadResult]] = {
    "single": single,
    "sweep": sweep,
    "rate sweep": rate_sweep,
    "full": full,
    "other full": lambda: full(2),
    **DEGENERATE,
}
