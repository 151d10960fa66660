"""Makes a Stage of the records of its requests: counts, rates, distributions, goodput. It measures nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from remuda.clients.load.record import Record
from remuda.clients.load.samples import Samples
from remuda.clients.report.results import Goodput, ServerSample, Stage


@dataclass
class Held:
    """What a load that was held for a while left behind, times by the clock of the records.

    window: seconds over which rates count, from `start`. num_window_tokens: tokens that came in it, whether their
    request had ended or not. num_cut: requests that were stopped by an interrupt, which stand nowhere else.
    """

    label: str
    start: float
    concurrency: int | None = None
    rate: float | None = None
    records: list[Record] = field(default_factory=list)
    window: float = 0.0
    num_window_tokens: int = 0
    num_cut: int = 0
    samples: list[ServerSample] = field(default_factory=list)
    busy_share: float | None = None
    notes: list[str] = field(default_factory=list)


def tally(held: Held, run_start: float, objective: dict[str, float] | None) -> Stage:
    """Latencies are of requests that ended well, `lateness` of all."""
    ok = [record for record in held.records if record.is_ok]
    ended = [record for record in ok if _ended_by(record, held.start + held.window)]
    window = max(held.window, 1e-9)
    prompt_tokens = sum(record.prompt_tokens for record in ended)
    # Where an event brings several tokens, those in the window were counted by events.
    seen, output_tokens = sum(r.seen_tokens for r in ok), sum(r.output_tokens for r in ok)
    window_tokens = held.num_window_tokens * (output_tokens / seen if seen else 1.0)
    return Stage(
        label=held.label,
        start=held.start - run_start,
        duration=held.window,
        concurrency=held.concurrency,
        rate=held.rate,
        num_requests=len(held.records),
        num_failed=len(held.records) - len(ok),
        errors=dict(Counter(record.error for record in held.records if record.error is not None)),
        prompt_tokens=sum(record.prompt_tokens for record in ok),
        output_tokens=output_tokens,
        requests_per_s=len(ended) / window,
        output_tokens_per_s=window_tokens / window,
        total_tokens_per_s=(prompt_tokens + window_tokens) / window,
        ttft=_of([record.ttft for record in ok]).distribution(),
        itl=_gaps(ok).distribution(),
        tpot=_of([record.tpot for record in ok]).distribution(),
        e2e=_of([record.e2e for record in ok]).distribution(),
        lateness=_of([record.sent - record.due for record in held.records]).distribution(),
        goodput=None if objective is None else goodput(held, objective),
        samples=held.samples,
        client_busy_share=held.busy_share,
        notes=[*held.notes, *_notes(held, ok)],
    )


def goodput(held: Held, objective: dict[str, float]) -> Goodput:
    """Requests that ended well and kept every bound; a measure that one has not (one token has no gap) is kept.

    Their rate is of those that ended in the window.
    """
    good = [record for record in held.records if record.is_ok and _keeps(record, objective)]
    num_ended = sum(_ended_by(record, held.start + held.window) for record in good)
    return Goodput(
        objective=objective,
        num_good=len(good),
        share=len(good) / len(held.records) if held.records else 0.0,
        requests_per_s=num_ended / max(held.window, 1e-9),
    )


def _ended_by(record: Record, time: float) -> bool:
    return record.end is not None and record.end <= time


def _keeps(record: Record, objective: dict[str, float]) -> bool:
    values = {"ttft": record.ttft, "itl": record.itl, "e2e": record.e2e}
    return all(value is None or value <= objective[name] for name, value in values.items() if name in objective)


def _of(values: list[float | None]) -> Samples:
    samples = Samples()
    for value in values:
        if value is not None:
            samples.add(max(value, 0.0))
    return samples


def _gaps(records: Sequence[Record]) -> Samples:
    samples = Samples()
    for record in records:
        samples.extend(record.gaps)
    return samples


def _notes(held: Held, ok: Sequence[Record]) -> list[str]:
    notes = []
    failed = [record for record in held.records if not record.is_ok]
    for kind in sorted({record.error or "" for record in failed}):
        first = next(record for record in failed if (record.error or "") == kind)
        notes.append(f"first failure of kind {kind}: {first.message}")
    if failed:
        notes.append(f"{len(failed)} of {len(held.records)} requests failed; no latency counts them")
    if held.num_cut:
        notes.append(f"interrupted: {held.num_cut} requests in flight were cut off and count nowhere")
    if any(record.usage_tokens is None for record in ok):
        notes.append("the server sent no usage: output tokens are counted by events")
    num_merged = sum((record.usage_tokens or 0) > record.seen_tokens for record in ok)
    if num_merged:
        notes.append(
            f"{num_merged} requests had fewer events than tokens: their gaps are between events; tpot is by token"
        )
    if any(record.prompt_tokens == 0 for record in ok):
        notes.append("prompt tokens are not known: the server sent no usage and prompts are text")
    return notes
