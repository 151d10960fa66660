"""The report's parts on stages: the sweep, the distributions, the server over time, failures."""

from collections.abc import Sequence

from remuda.clients.report import units
from remuda.clients.report.canvas import figure
from remuda.clients.report.markup import NOTHING, Markup, folded, section, table, tag
from remuda.clients.report.measures import (
    DISTRIBUTIONS,
    SHORT_NAMES,
    STAGE_MEASURES,
    best_stage,
    failed_share,
    percentile,
    saturated_stage,
)
from remuda.clients.report.plots import chosen, distribution_plot, ordered_colours, sweep_plots
from remuda.clients.report.report_context import Card
from remuda.clients.report.results import PERCENTILES, Distribution, LoadResult, Stage
from remuda.clients.report.summary import objective_text
from remuda.clients.report.time_plots import requests_plot, server_plots

_NAMES = tuple(f"{percent:g}" for percent in PERCENTILES)


def stage_cards(result: LoadResult) -> list[Card]:
    """Of the stage with the most output, or of the saturated one where the result names it."""
    stage = saturated_stage(result) or best_stage(result)
    if stage is None:
        return []
    num_requests = sum(one.num_requests for one in result.stages)
    num_failed = sum(one.num_failed for one in result.stages)
    cards = [
        ("Output tokens/s", units.number(stage.output_tokens_per_s), f"at {stage.label}"),
        (
            "Time to first token",
            units.duration(percentile(stage.ttft, "50")),
            f"p50; p99 {units.duration(percentile(stage.ttft, '99'))}",
        ),
        (
            "Inter-token latency",
            units.duration(percentile(stage.itl, "50")),
            f"p50; p99 {units.duration(percentile(stage.itl, '99'))}",
        ),
        ("Failed", units.count(num_failed), f"of {units.counted(num_requests, 'request')}"),
    ]
    if stage.goodput is not None:
        cards.append(
            ("Kept the objective", units.share(stage.goodput.share), objective_text(stage.goodput.objective))
        )
    return cards


def stage_sections(result: LoadResult) -> list[Markup]:
    """None for a result without stages."""
    if not result.stages:
        return []
    return [_load(result), _latencies(result), _server(result.stages), _requests(result)]


def _pairs(figures: Sequence[Markup]) -> Markup:
    return tag("div", *figures, class_="pair") if figures else NOTHING


def _load(result: LoadResult) -> Markup:
    at = saturated_stage(result)
    figures = [figure(plot) for plot in sweep_plots(result.stages, at)]
    words = [tag("p", f"{result.saturation[:1].upper()}{result.saturation[1:]}.")] if result.saturation else []
    objectives = {objective_text(stage.goodput.objective) for stage in result.stages if stage.goodput is not None}
    words += [tag("p", f"Objective: {one}.", class_="note") for one in sorted(objectives)]
    return section("Load", *words, _pairs(figures), _stage_table(result.stages))


def _stage_table(stages: Sequence[Stage]) -> Markup:
    """One row a stage, of all measures that some stage has: how much, then how long."""
    shown = [one for one in STAGE_MEASURES if any(one.get(stage) is not None for stage in stages)]
    tables = []
    for name, is_time in (("Throughput", False), ("Latency", True)):
        columns = [one for one in shown if (one.write is units.duration) == is_time]
        rows = [(stage.label, *(one.write(one.get(stage)) for one in columns)) for stage in stages]
        if columns:
            tables.append(table(name, ["", *(one.name for one in columns)], rows))
    words = f"{SHORT_NAMES}. p50: half took at most so long; p99: 99 % did."
    return tag("div", *tables, tag("p", words, class_="note"), class_="panel")


def _latencies(result: LoadResult) -> Markup:
    stages = chosen(result.stages, saturated_stage(result))
    colours = ordered_colours(len(stages))
    figures = []
    for name, title in DISTRIBUTIONS:
        lines = [
            (stage.label, colour, getattr(stage, name)) for stage, colour in zip(stages, colours, strict=True)
        ]
        plot = distribution_plot(title, lines)
        if plot is not None:
            figures.append(figure(plot, folded("Percentiles", _percentile_table(title, name, result.stages))))
    if not figures:
        return section("Latencies", tag("p", "No request ended well, so there is nothing to show."))
    return section("Latencies", _pairs(figures))


def _percentile_table(title: str, name: str, stages: Sequence[Stage]) -> Markup:
    rows = []
    for stage in stages:
        values: Distribution = getattr(stage, name)
        found = [values.mean, *(percentile(values, percent) for percent in _NAMES), values.maximum]
        rows.append((stage.label, units.count(values.count), *(units.milliseconds(value) for value in found)))
    return table(f"{title}, ms", ["", "count", "mean", *(f"p{name}" for name in _NAMES), "max"], rows)


def _server(stages: Sequence[Stage]) -> Markup:
    figures = [figure(plot) for plot in server_plots(stages)]
    if not figures:
        return section("The server meanwhile", tag("p", "The server has no metrics, or they were not read."))
    return section("The server meanwhile", _pairs(figures), folded("Numbers", _sample_table(stages)))


def _sample_table(stages: Sequence[Stage]) -> Markup:
    """The last word of each stage: what the pictures end a stage with."""
    rows = []
    for stage in stages:
        if stage.samples:
            last = stage.samples[-1]
            counts = (last.num_running, last.num_waiting, last.slots_used, last.slots_free)
            sizes = (last.engine_resident_bytes, last.server_resident_bytes, last.device_bytes, last.pool_bytes)
            rows.append((stage.label, *(units.count(one) for one in counts), *(units.size(one) for one in sizes)))
    header = ["", "running", "waiting", "slots used", "free", "engine", "other processes", "device", "pool"]
    return table("At the end of each stage", header, rows)


def _requests(result: LoadResult) -> Markup:
    plot = requests_plot(result)
    failures = [
        (kind, stage.label, units.count(number), units.share(number / max(1, stage.num_requests)))
        for stage in result.stages
        for kind, number in stage.errors.items()
    ]
    parts = [figure(plot)] if plot is not None else []
    if failures:
        made = table("Failures by kind", ("kind", "stage", "requests", "of the stage"), failures)
        parts.append(tag("div", made, class_="panel"))
    else:
        failed = [share for stage in result.stages if (share := failed_share(stage))]
        parts.append(tag("p", "No request failed." if not failed else "The kinds of failures are not known."))
    return section("Requests", *parts)
