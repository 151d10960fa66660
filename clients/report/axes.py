"""Axes of what a load test measures: lengths, loads, times and sizes, with ticks that do not overlap."""

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from remuda.clients.report import units
from remuda.clients.report.canvas import colour

# The least share of an axis between two labels: on a page, and on a phone.
_GAPS: Final = (0.075, 0.16)
# From this ratio of the largest to the smallest on, an axis is logarithmic.
_LOG_RATIO: Final = 8.0


def name_axes(axes: Axes, below: str, above: str) -> None:
    """What runs along the axes: one name below, and one above the upright axis, where it is read first."""
    axes.set_xlabel(below, labelpad=6)
    axes.set_title(above, loc="left", fontsize=12, color=colour("muted"), pad=10)


def length_ticks(lengths: Sequence[int]) -> tuple[list[str], str]:
    """Labels of context lengths, and what the axis is to say: 4k where all are multiples of 1,000 or of 1,024."""
    for thousand in (1000, 1024):
        if all(length % thousand == 0 for length in lengths):
            below = f"context of each sequence, tokens (1k = {thousand:,})"
            return [_short_length(length, thousand) for length in lengths], below
    return [f"{length:,}" for length in lengths], "context of each sequence, tokens"


def _short_length(length: int, thousand: int) -> str:
    million = thousand * thousand
    return f"{length // million}M" if length % million == 0 else f"{length // thousand}k"


def mark_values(axes: Axes, values: Sequence[float], labels: Sequence[str], is_phone: bool) -> None:
    """Ticks of the horizontal axis at the values that were measured, as many as there is room for."""
    is_log = values[0] > 0 and values[-1] / values[0] >= _LOG_RATIO
    if is_log:
        axes.set_xscale("log")
    places = [math.log(value) if is_log else float(value) for value in values]
    kept = _spaced(places, _GAPS[is_phone] * (places[-1] - places[0]))
    axes.xaxis.set_major_locator(FixedLocator([values[i] for i in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([labels[i] for i in kept])
    if len(values) == 1:
        axes.set_xlim(values[0] / 2 - 1e-9, values[0] * 2 + 1e-9)


def _spaced(places: Sequence[float], gap: float) -> list[int]:
    """Which of the places can have labels: the last, and of the others those that leave `gap` between them."""
    last = len(places) - 1
    kept: list[int] = []
    for i, place in enumerate(places[:-1]):
        if places[last] - place >= gap and (not kept or place - places[kept[-1]] >= gap):
            kept.append(i)
    return [*kept, last]


def scale_times(
    axes: Axes, seconds: Sequence[float], *, allows_log: bool = False, axis: str = "y"
) -> tuple[float, str]:
    """Prepares an axis for times: by what to multiply seconds, and the unit. It begins at 0, or is logarithmic."""
    largest, smallest = max(seconds, default=0.0), min(seconds, default=0.0)
    factor, unit = units.time_axis(largest)
    of: Axis = axes.yaxis if axis == "y" else axes.xaxis
    limit = axes.set_ylim if axis == "y" else axes.set_xlim
    if allows_log and smallest > 0 and largest / smallest >= _LOG_RATIO:
        (axes.set_yscale if axis == "y" else axes.set_xscale)("log")
        of.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if largest / smallest < 200 else (1.0,)))
        limit(smallest * factor / 1.2, largest * factor * 1.2)
    else:
        of.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        limit(0, largest * factor * 1.08 or 1.0)
    of.set_major_formatter(FuncFormatter(_tick))
    of.set_minor_locator(NullLocator())
    return factor, unit


def scale_numbers(axes: Axes, values: Sequence[float], *, is_whole: bool = False) -> None:
    """An upright axis of plain numbers from 0."""
    axes.set_ylim(0, max(values, default=0.0) * 1.08 or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=is_whole, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))


def scale_sizes(axes: Axes, sizes: Sequence[float], *, allows_log: bool) -> None:
    """An upright axis of bytes: from 0, or logarithmic where small and large are to be seen at once."""
    known = [size for size in sizes if size > 0]
    if allows_log and known and max(known) / min(known) >= _LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1.0,) if max(known) / min(known) >= 100 else (1.0, 2.0, 5.0))
        )
        axes.set_ylim(min(known) / 2, max(known) * 1.6)
    else:
        axes.set_ylim(0, max(known, default=1.0) * 1.12)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.size(value)))


def _tick(value: float, _: int | None) -> str:
    return units.short_count(value) if abs(value) >= 10_000 else f"{value:,.6g}"
