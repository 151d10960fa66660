"""What `remuda load` prints when a run has ended. The numbers are the result's; nothing is measured here."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console

from remuda.clients.report import units
from remuda.clients.report.measures import (
    DISTRIBUTIONS,
    growth,
    percentile,
    point_cache_bytes,
    quietest,
    quietest_growth,
    saturated_stage,
    server_bytes,
    spread,
    states_bytes,
)
from remuda.clients.report.results import PERCENTILES, Distribution, LoadResult, LongContext, Stage
from remuda.clients.report.terminal import show_line, show_table

_NAMES: Final = tuple(f"{percent:g}" for percent in PERCENTILES)


def print_summary(result: LoadResult, console: Console) -> None:
    """Figures first, then what a reader must know: errors, and notes as warnings."""
    show_line(console, f"{result.target.model} at {result.target.url}, {result.created}")
    if len(result.stages) == 1:
        _print_stage(console, result.stages[0])
    elif result.stages:
        _print_sweep(console, result)
    if result.long_context is not None:
        _print_context(console, result, result.long_context)
    for stage in result.stages:
        for kind, number in stage.errors.items():
            show_line(console, f"failed, {stage.label}: {units.count(number)} × {kind}", "red")
    for note in all_notes(result):
        show_line(console, f"warning: {note}", "yellow")


def all_notes(result: LoadResult) -> list[str]:
    """Of the run, then of its stages, each with the stage's label."""
    return [*result.notes, *(f"{stage.label}: {note}" for stage in result.stages for note in stage.notes)]


def objective_text(objective: dict[str, float]) -> str:
    """ttft ≤ 500 ms, itl ≤ 50 ms."""
    return ", ".join(f"{name} ≤ {units.bound(bound)}" for name, bound in objective.items())


def _print_stage(console: Console, stage: Stage) -> None:
    show_line(
        console,
        f"{stage.label}: {units.counted(stage.num_requests, 'request')} in {units.duration(stage.duration)}, "
        f"{units.count(stage.num_failed)} failed, {units.number(stage.requests_per_s)} requests/s, "
        f"{units.number(stage.output_tokens_per_s)} output tokens/s, "
        f"{units.number(stage.total_tokens_per_s)} tokens/s with prompts",
        "bold",
    )
    if stage.goodput is not None:
        good = stage.goodput
        show_line(
            console,
            f"good ({objective_text(good.objective)}): {units.share(good.share)} of all, "
            f"{units.number(good.requests_per_s)} requests/s",
        )
    rows = [[title, *_distribution_row(getattr(stage, name))] for name, title in DISTRIBUTIONS]
    show_table(console, "Latency, ms", ["", "mean", *(f"p{name}" for name in _NAMES), "max"], rows)


def _distribution_row(values: Distribution) -> list[str]:
    found = [values.mean, *(percentile(values, name) for name in _NAMES), values.maximum]
    return [units.milliseconds(value) for value in found]


def _print_sweep(console: Console, result: LoadResult) -> None:
    has_goodput = any(stage.goodput is not None for stage in result.stages)
    header = ["", "sent", "failed", "req/s", "out tok/s", "TTFT p50", "p99", "ITL p50", "p99", "e2e p50"]
    rows = [_sweep_row(stage, has_goodput) for stage in result.stages]
    show_table(console, "Load, latencies in ms", header + ["good"] * has_goodput, rows)
    if result.saturation is not None:
        show_line(console, result.saturation, "bold")
    at = saturated_stage(result)
    if at is not None:
        show_line(
            console,
            f"there: {units.number(at.output_tokens_per_s)} output tokens/s, TTFT p99 "
            f"{units.duration(percentile(at.ttft, '99'))}, ITL p99 {units.duration(percentile(at.itl, '99'))}",
        )


def _sweep_row(stage: Stage, has_goodput: bool) -> list[str]:
    latencies = [
        percentile(values, name)
        for values, names in ((stage.ttft, ("50", "99")), (stage.itl, ("50", "99")), (stage.e2e, ("50",)))
        for name in names
    ]
    row = [
        stage.label,
        units.count(stage.num_requests),
        units.count(stage.num_failed),
        units.number(stage.requests_per_s),
        units.number(stage.output_tokens_per_s),
        *(units.milliseconds(value) for value in latencies),
    ]
    return [*row, units.share(stage.goodput.share if stage.goodput else None)] if has_goodput else row


def _print_context(console: Console, result: LoadResult, context: LongContext) -> None:
    columns = [
        ("context", [f"{point.context_tokens:,}" for point in context.points]),
        ("ITL p50, ms", [units.milliseconds(percentile(point.itl, "50")) for point in context.points]),
        ("quietest", [units.milliseconds(quietest(point)) for point in context.points]),
        ("p99, ms", [units.milliseconds(percentile(point.itl, "99")) for point in context.points]),
        ("prefill tok/s", [units.number(point.prefill_tokens_per_s) for point in context.points]),
        ("server", [units.size(server_bytes(point.sample)) for point in context.points]),
        ("device", [units.size(point.sample.device_bytes) for point in context.points]),
        ("states", [units.size(states_bytes(context)) for _ in context.points]),
        ("a KV cache", [units.size(point_cache_bytes(result, point)) for point in context.points]),
    ]
    shown = [column for column in columns if set(column[1]) - {units.MISSING}]
    title = f"Long context, {units.counted(context.num_sequences, 'sequence')}"
    if not shown:
        show_line(console, f"{title}: no length was reached", "yellow")
        return
    rows = list(zip(*(cells for _, cells in shown), strict=True))
    show_table(console, title, [name for name, _ in shown], rows)
    for line in context_lines(context):
        show_line(console, line, "bold")


def context_lines(context: LongContext) -> Sequence[str]:
    """What the lengths say of memory and latency, where there are two or more."""
    if len(context.points) < 2:
        return []
    first, last = context.points[0], context.points[-1]
    memory = [server_bytes(point.sample) for point in context.points]
    latency = [percentile(point.itl, "50") for point in context.points]
    way = f"from {first.context_tokens:,} to {last.context_tokens:,} tokens"
    lines = [
        f"server memory {way}: {units.change(growth(memory))}, spread over all {units.share(spread(memory))}",
        f"inter-token latency, p50, {way}: {units.change(growth(latency))}",
    ]
    if (least := quietest_growth(context)) is not None:
        lines[-1] += (
            f"; in the quietest parts {units.change(least)}, "
            f"those at {first.context_tokens:,} differ by {units.share(spread(first.itl_parts))}"
        )
    return lines
