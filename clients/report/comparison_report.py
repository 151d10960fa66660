"""The report's part that lays runs side by side: what differs, pictures of all, tables with differences."""

from collections.abc import Sequence

from remuda.clients.report import units
from remuda.clients.report.canvas import Plot, figure
from remuda.clients.report.compare import (
    SAME,
    Cell,
    Group,
    compare_lengths,
    compare_stages,
    differences,
    run_names,
)
from remuda.clients.report.compared_plots import COLOURS, compared_latency, compared_memory, compared_throughput
from remuda.clients.report.markup import NOTHING, Markup, folded, section, table, tag
from remuda.clients.report.measures import DISTRIBUTIONS, SHORT_NAMES, best_stage, saturated_stage
from remuda.clients.report.plots import distribution_plot
from remuda.clients.report.results import LoadResult, Stage


def comparison(results: Sequence[LoadResult]) -> Markup:
    """All of it, for two runs or more."""
    names = run_names(results)
    plots = [plot for plot in _plots(results, names) if plot is not None]
    figures = tag("div", *(figure(plot) for plot in plots), class_="pair") if plots else NOTHING
    groups = [*compare_stages(results), *compare_lengths(results)]
    tables = [_folded(group, names, _is_first_seen(group, results)) for group in groups]
    words = (
        f"Differences are against {names[0]}. Less than {units.share(SAME)} apart counts as the same; runs of one "
        f"load differ by chance too, so repeat a run before you believe a small difference. {SHORT_NAMES}."
    )
    return section(
        "Side by side", _who(results, names), _differences(results, names), figures, tag("p", words), *tables
    )


def _who(results: Sequence[LoadResult], names: Sequence[str]) -> Markup:
    rows = [
        (name, f"{result.target.model} at {result.target.url}", result.created, " ".join(result.command))
        for name, result in zip(names, results, strict=True)
    ]
    return tag(
        "div", table("The runs", ("run", "target", "started", "command"), rows, is_text=True), class_="panel"
    )


def _differences(results: Sequence[LoadResult], names: Sequence[str]) -> Markup:
    rows = [(name, *values) for name, values in differences(results)]
    if not rows:
        return tag("p", "Settings, target and machine are the same in all runs.")
    made = table("The runs differ before they begin", ("", *names), rows, is_text=True)
    return tag("div", tag("h2", "Read this first"), made, class_="warnings", role="note")


def _plots(results: Sequence[LoadResult], names: Sequence[str]) -> list[Plot | None]:
    pairs = list(zip(names, results, strict=True))
    contexts = [(name, result.long_context) for name, result in pairs if result.long_context is not None]
    shown = [(name, stage) for name, result in pairs if (stage := _shown_stage(result, results)) is not None]
    distributions = [
        distribution_plot(
            title,
            [
                (f"{name}, {stage.label}", run_colour, getattr(stage, field))
                for (name, stage), run_colour in zip(shown, COLOURS, strict=False)
            ],
        )
        for field, title in DISTRIBUTIONS
        if field != "tpot"
    ]
    throughput = compared_throughput([(name, result.stages) for name, result in pairs])
    return [compared_latency(contexts), compared_memory(contexts), throughput, *distributions]


def _shown_stage(result: LoadResult, results: Sequence[LoadResult]) -> Stage | None:
    """Of one label in all runs where that can be, so that the same load is compared."""
    base = saturated_stage(results[0]) or best_stage(results[0])
    same = [stage for stage in result.stages if base is not None and stage.label == base.label]
    return same[0] if same else saturated_stage(result) or best_stage(result)


def _table(group: Group, names: Sequence[str]) -> Markup:
    header = ["", *names[:1], *(part for name in names[1:] for part in (name, f"{name} against {names[0]}"))]
    rows = [
        [name, cells[0].text, *(part for cell in cells[1:] for part in (cell.text, _difference(cell)))]
        for name, cells in group.rows
    ]
    return table(f"{group.title}, differences against {names[0]}", header, rows)


def _folded(group: Group, names: Sequence[str], is_open: bool) -> Markup:
    made = folded(group.title, _table(group, names), is_open=is_open)
    return tag("div", made, class_="panel")


def _is_first_seen(group: Group, results: Sequence[LoadResult]) -> bool:
    """The load of which the distributions are drawn, and the longest context, are unfolded."""
    base = saturated_stage(results[0]) or best_stage(results[0])
    longest = compare_lengths(results)[-1:]
    return len(results[0].stages) == 1 or group in longest or (base is not None and group.title == base.label)


def _difference(cell: Cell) -> Markup:
    """In words as well as in colour."""
    words = " ".join(part for part in (cell.change, cell.verdict) if part)
    return tag("span", words, class_=cell.verdict) if cell.verdict in ("better", "worse") else tag("span", words)
