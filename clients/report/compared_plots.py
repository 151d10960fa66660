"""The pictures of several runs: one line a run, in the colours of the runs' order."""

from collections.abc import Callable, Sequence
from typing import Final

from matplotlib.axes import Axes

from remuda.clients.report.axes import length_ticks, mark_values, name_axes, scale_numbers, scale_sizes
from remuda.clients.report.canvas import Key, Plot, colour
from remuda.clients.report.context_plots import Line, draw_lines, times_painter
from remuda.clients.report.measures import percentile, server_bytes
from remuda.clients.report.plots import load_of
from remuda.clients.report.results import ContextPoint, LongContext, Stage

# More runs than these are in the tables only.
COLOURS: Final = ("c1", "c2", "c3", "c4", "c5", "c6")


def compared_throughput(runs: Sequence[tuple[str, Sequence[Stage]]]) -> Plot | None:
    """Output tokens a second against the load; None where no run has two loads, or kinds of load differ."""
    loads = sorted({load for _, stages in runs for stage in stages if (load := load_of(stage)) is not None})
    kinds = {stage.concurrency is not None for _, stages in runs for stage in stages}
    if len(loads) < 2 or len(kinds) != 1:
        return None

    def paint(axes: Axes, is_phone: bool) -> None:
        scale_numbers(axes, [stage.output_tokens_per_s for _, stages in runs for stage in stages])
        for (_, stages), name in zip(runs, COLOURS, strict=False):
            found = sorted(
                (load, stage.output_tokens_per_s) for stage in stages if (load := load_of(stage)) is not None
            )
            axes.plot([x for x, _ in found], [y for _, y in found], color=colour(name), marker="o", ms=4.5)
        mark_values(axes, loads, [f"{load:g}" for load in loads], is_phone)
        name_axes(
            axes, "requests at a time" if kinds == {True} else "requests a second, as asked", "output tokens/s"
        )

    says = "Output tokens a second at each load, one line a run."
    return Plot("Throughput against load", says, paint, _keys([name for name, _ in runs]))


def compared_latency(runs: Sequence[tuple[str, LongContext]]) -> Plot | None:
    """Medians of the gaps at each length; None without any."""
    lengths, lines = _lines(runs, lambda point: percentile(point.itl, "50"))
    if not lines:
        return None
    says = "The median gap between two tokens at each length, one line a run."
    keys = [Key(line.label, line.colour) for line in lines]
    return Plot("Inter-token latency against context length", says, times_painter(lengths, lines), keys)


def compared_memory(runs: Sequence[tuple[str, LongContext]]) -> Plot | None:
    """Memory of all the server's processes at each length; None where no server says it."""
    lengths, lines = _lines(runs, lambda point: server_bytes(point.sample))
    if not lines:
        return None

    def paint(axes: Axes, is_phone: bool) -> None:
        draw_lines(axes, lengths, lines, is_phone)
        scale_sizes(
            axes, [value for line in lines for value in line.values if value is not None], allows_log=False
        )
        labels, below = length_ticks(lengths)
        mark_values(axes, lengths, labels, is_phone)
        name_axes(axes, below, "memory of all processes")

    keys = [Key(line.label, line.colour) for line in lines]
    return Plot("Server memory against context length", "Host memory at each length, one line a run.", paint, keys)


def _keys(names: Sequence[str]) -> list[Key]:
    return [Key(name, run_colour) for name, run_colour in zip(names, COLOURS, strict=False)]


def _lines(
    runs: Sequence[tuple[str, LongContext]], get: Callable[[ContextPoint], float | None]
) -> tuple[list[int], list[Line]]:
    """All lengths of all runs, and of each run with a value its line over them."""
    lengths = sorted({point.context_tokens for _, context in runs for point in context.points})
    lines = []
    for (name, context), run_colour in zip(runs, COLOURS, strict=False):
        found = {point.context_tokens: get(point) for point in context.points}
        values = [found.get(length) for length in lengths]
        if any(value is not None for value in values):
            lines.append(Line(name, run_colour, values, is_bold=True))
    return lengths, lines
