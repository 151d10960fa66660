"""The two pictures of long contexts: memory that stays beside the line that grows, and latency that stays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Final

from matplotlib.axes import Axes

from remuda.clients.report import units
from remuda.clients.report.axes import length_ticks, mark_values, name_axes, scale_sizes, scale_times
from remuda.clients.report.canvas import Key, Plot, Stroke, colour, dashes
from remuda.clients.report.kv import cache_bytes, crossing_tokens, grouped_query
from remuda.clients.report.measures import growth, percentile, quietest, quietest_growth, server_bytes, spread
from remuda.clients.report.results import ContextPoint, KvShape, LoadResult, LongContext

# In points, which are pixels of the figure.
_LINE_HEIGHT: Final = 16.0


@dataclass(frozen=True)
class Line:
    """One line of bytes or seconds over the lengths; None where it is not known."""

    label: str
    colour: str
    values: list[float | None]
    stroke: Stroke = "solid"
    is_bold: bool = False


def memory_lines(context: LongContext) -> list[Line]:
    """What was measured, and the states, which are known: those lines of which there is a value."""
    sampled: Sequence[tuple[str, str, Callable[[ContextPoint], float | None], Stroke, bool]] = (
        ("server, all processes (measured)", "c1", lambda point: server_bytes(point.sample), "solid", True),
        ("GPU memory of the engine (measured)", "c4", lambda point: point.sample.device_bytes, "solid", True),
        ("state pool, all slots (measured)", "c3", lambda point: point.sample.pool_bytes, "dashed", False),
    )
    lines = [
        Line(label, name, [get(point) for point in context.points], stroke, is_bold)
        for label, name, get, stroke, is_bold in sampled
    ]
    if context.state_bytes is not None:
        states = [float(context.state_bytes * point.num_sequences) for point in context.points]
        label = f"states of {units.counted(context.num_sequences, 'sequence')}"
        lines.append(Line(label, "c3", list(states), "solid", True))
    return [line for line in lines if any(value is not None for value in line.values)]


def cache_lines(context: LongContext, kv: KvShape) -> list[Line]:
    """Of a Transformer, computed: with all heads' keys and values, and with a quarter of them."""
    shapes: Sequence[tuple[str, KvShape, Stroke, bool]] = (
        ("KV cache of a Transformer of this size (computed)", kv, "solid", True),
        ("the same with grouped-query attention (computed)", grouped_query(kv), "dashed", False),
    )
    return [
        Line(
            label,
            "c2",
            [cache_bytes(shape, p.context_tokens, p.num_sequences) for p in context.points],
            stroke,
            bold,
        )
        for label, shape, stroke, bold in shapes
    ]


def memory_plot(result: LoadResult, context: LongContext) -> Plot | None:
    """Memory against context length; None where nothing of the server's memory is known."""
    measured = memory_lines(context)
    if not measured:
        return None
    lines = measured + (cache_lines(context, result.kv) if result.kv is not None else [])
    lengths = [point.context_tokens for point in context.points]

    def paint(axes: Axes, is_phone: bool) -> None:
        draw_lines(axes, lengths, lines, is_phone)
        scale_sizes(axes, [value for line in lines for value in line.values if value is not None], allows_log=True)
        labels, below = length_ticks(lengths)
        mark_values(axes, lengths, labels, is_phone)
        name_axes(axes, below, "memory")
        if result.kv is not None and len(lengths) > 1:
            _mark_crossing(axes, context, result.kv, is_phone)
        _name_ends(axes, lengths, lines)

    keys = [Key(line.label, line.colour, line.stroke) for line in lines]
    return Plot("Memory against context length", _memory_words(result, context), paint, keys, "full")


def latency_plot(context: LongContext) -> Plot | None:
    """Inter-token latency against context length; None without a value."""
    lines = [
        Line("p50", "c1", [percentile(point.itl, "50") for point in context.points], is_bold=True),
        Line("p99", "c1", [percentile(point.itl, "99") for point in context.points], "dashed"),
    ]
    if any(len(point.itl_parts) > 1 for point in context.points):
        lines.insert(1, Line("p50 of the quietest part", "c3", list(map(quietest, context.points)), is_bold=True))
    seconds = [value for line in lines for value in line.values if value is not None]
    if not seconds:
        return None
    lengths = [point.context_tokens for point in context.points]
    keys = [Key(line.label, line.colour, line.stroke) for line in lines]
    return Plot(
        "Inter-token latency against context length", _latency_words(context), times_painter(lengths, lines), keys
    )


def times_painter(lengths: Sequence[int], lines: Sequence[Line]) -> Callable[[Axes, bool], None]:
    def paint(axes: Axes, is_phone: bool) -> None:
        factor, unit = scale_times(axes, [value for line in lines for value in line.values if value is not None])
        draw_lines(axes, lengths, lines, is_phone, factor)
        labels, below = length_ticks(lengths)
        mark_values(axes, lengths, labels, is_phone)
        name_axes(axes, below, f"time between two tokens, {unit}")

    return paint


def draw_lines(
    axes: Axes, lengths: Sequence[int], lines: Sequence[Line], is_phone: bool, factor: float = 1.0
) -> None:
    for line in lines:
        known = [(x, y * factor) for x, y in zip(lengths, line.values, strict=True) if y is not None]
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=colour(line.colour),
            linestyle=dashes(line.stroke),
            linewidth=2.5 if line.is_bold else 1.5,
            marker="o" if line.is_bold else None,
            markersize=4 if is_phone else 5,
        )


def _mark_crossing(axes: Axes, context: LongContext, kv: KvShape, is_phone: bool) -> None:
    """Where the cache alone passes all that the server holds, if that is within the lengths measured."""
    held = held_bytes(context)
    lengths = [point.context_tokens for point in context.points]
    if held is None or not lengths[0] < (tokens := crossing_tokens(kv, context.num_sequences, held)) < lengths[-1]:
        return
    beyond = [tokens, *(length for length in lengths if length > tokens)]
    cache = [cache_bytes(kv, length, context.num_sequences) for length in beyond]
    axes.fill_between(beyond, [held] * len(beyond), cache, color=colour("c2"), alpha=0.08, lw=0)
    axes.plot([tokens], [held], "o", ms=10, mfc=colour("card"), mec=colour("ink"), mew=1.5)
    words = "" if is_phone else ",\nthe cache alone is larger\nthan the whole server"
    is_left = log(tokens / lengths[0]) < (0.6 if is_phone else 0.4) * log(lengths[-1] / lengths[0])
    axes.annotate(
        f"from {tokens:,.0f} tokens on{words}",
        (tokens, held),
        xytext=(0.03, 0.95) if is_left else (-14, 16),
        textcoords="axes fraction" if is_left else "offset points",
        ha="left" if is_left else "right",
        va="top" if is_left else "bottom",
        linespacing=1.35,
        arrowprops={"arrowstyle": "-", "color": colour("axis"), "shrinkB": 7} if is_left else None,
    )


def _name_ends(axes: Axes, lengths: Sequence[int], lines: Sequence[Line]) -> None:
    """Beside the last point of each bold line what it amounts to; names that would touch are moved apart."""
    ends = [(last, line.colour) for line in lines if line.is_bold and (last := line.values[-1]) is not None]
    above = float("-inf")
    for last, name in sorted(ends):
        place = axes.transData.transform((lengths[-1], last))[1]
        above = max(place, above + _LINE_HEIGHT)
        axes.annotate(
            units.size(last),
            (lengths[-1], last),
            xytext=(9, above - place),
            textcoords="offset points",
            va="center",
            color=colour(name),
            annotation_clip=False,
        )


def held_bytes(context: LongContext) -> float | None:
    """The most that the server held at any length: of its GPU where it has one, else of its processes."""
    device = [point.sample.device_bytes for point in context.points if point.sample.device_bytes is not None]
    host = [size for point in context.points if (size := server_bytes(point.sample)) is not None]
    return max(device or host, default=None)


def _memory_words(result: LoadResult, context: LongContext) -> str:
    first, last = context.points[0], context.points[-1]
    held = [server_bytes(point.sample) for point in context.points]
    words = []
    if held[0] is not None and (apart := spread(held)) is not None:
        words.append(
            f"From {first.context_tokens:,} to {last.context_tokens:,} tokens the server's memory stays within "
            f"{units.share(apart)} of {units.size(held[0])}."
        )
    if result.kv is not None:
        cache = cache_bytes(result.kv, last.context_tokens, last.num_sequences)
        words.append(
            f"At {last.context_tokens:,} tokens a Transformer's KV cache alone would hold {units.size(cache)}."
        )
    return " ".join(words)


def _latency_words(context: LongContext) -> str:
    medians = [percentile(point.itl, "50") for point in context.points]
    first, last = context.points[0], context.points[-1]
    change = growth(medians)
    if change is None:
        return f"The median gap between two tokens is {units.duration(medians[0])}."
    words = (
        f"The median gap between two tokens is {units.duration(medians[-1])} at {last.context_tokens:,} tokens, "
        f"{units.change(change)} against {units.duration(medians[0])} at {first.context_tokens:,}."
    )
    if (least := quietest_growth(context)) is None:
        return words
    return (
        f"{words} Medians of the parts of one length, at {first.context_tokens:,} tokens, differ by "
        f"{units.share(spread(first.itl_parts))}: so much does the machine itself. "
        f"In the quietest part of each length it is {units.change(least)}."
    )
