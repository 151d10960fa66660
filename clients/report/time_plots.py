"""The pictures that run along the time of a run: what the server held, and every request."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from matplotlib.axes import Axes

from remuda.clients.report import units
from remuda.clients.report.axes import name_axes, scale_numbers, scale_sizes, scale_times
from remuda.clients.report.canvas import Key, Plot, Stroke, colour, dashes
from remuda.clients.report.measures import server_bytes, spread
from remuda.clients.report.results import LoadResult, RequestResult, ServerSample, Stage

# More are neither seen nor needed, and a page of them would be slow.
MAX_POINTS: Final = 2000

# Up to so many are drawn large.
_FEW_POINTS: Final = 300

_Row = TypeVar("_Row")
_Sampled = Callable[[ServerSample], float | None]
_Series = tuple[str, str, Stroke, _Sampled]
_WORK: Final[Sequence[_Series]] = (
    ("running", "c1", "solid", lambda sample: sample.num_running),
    ("slots in use", "c3", "dashed", lambda sample: sample.slots_used),
    ("waiting", "c2", "solid", lambda sample: sample.num_waiting),
)
_MEMORY: Final[Sequence[_Series]] = (
    ("all processes", "c1", "solid", server_bytes),
    ("engine process", "c1", "dashed", lambda sample: sample.engine_resident_bytes),
    ("GPU memory of the engine", "c4", "solid", lambda sample: sample.device_bytes),
    ("state pool", "c3", "dashed", lambda sample: sample.pool_bytes),
)


def server_plots(stages: Sequence[Stage]) -> list[Plot]:
    """Requests and slots, and memory, over the run; those of which the server says anything."""
    samples = sorted((sample for stage in stages for sample in stage.samples), key=lambda sample: sample.t)
    work, memory = _known(_WORK, samples), _known(_MEMORY, samples)
    plots = []
    if work:
        plots.append(
            _over_time("Requests in the server", _work_words(samples), stages, samples, work, is_size=False)
        )
    if memory:
        plots.append(
            _over_time("Memory of the server", _memory_words(samples), stages, samples, memory, is_size=True)
        )
    return plots


def _known(series: Sequence[_Series], samples: Sequence[ServerSample]) -> list[_Series]:
    return [one for one in series if any(one[3](sample) is not None for sample in samples)]


def _over_time(
    title: str,
    says: str,
    stages: Sequence[Stage],
    samples: Sequence[ServerSample],
    series: Sequence[_Series],
    *,
    is_size: bool,
) -> Plot:
    kept = thinned(samples)

    def paint(axes: Axes, is_phone: bool) -> None:
        values = [value for _, _, _, get in series for sample in samples if (value := get(sample)) is not None]
        for _, name, stroke, get in series:
            found = [(sample.t, value) for sample in kept if (value := get(sample)) is not None]
            axes.plot(
                [t for t, _ in found],
                [value for _, value in found],
                color=colour(name),
                ls=dashes(stroke),
                lw=1.75,
                marker="o" if len(found) == 1 else None,
            )
        if is_size:
            scale_sizes(axes, values, allows_log=False)
        else:
            scale_numbers(axes, values, is_whole=True)
        _mark_stages(axes, stages)
        name_axes(axes, "time since the start, s", "memory" if is_size else "requests")

    return Plot(title, says, paint, [Key(label, name, stroke) for label, name, stroke, _ in series])


def _work_words(samples: Sequence[ServerSample]) -> str:
    running = max((sample.num_running or 0 for sample in samples), default=0)
    waiting = max((sample.num_waiting or 0 for sample in samples), default=0)
    return f"At most {units.count(running)} ran at a time, and at most {units.count(waiting)} waited."


def _memory_words(samples: Sequence[ServerSample]) -> str:
    held = [size for sample in samples if (size := server_bytes(sample)) is not None]
    apart = spread(held)
    if not held or apart is None:
        return "What the server says that it holds."
    return f"All processes held {units.size(max(held))} at most, {units.share(apart)} more than at least."


def _mark_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    for stage in stages[1:]:
        axes.axvline(stage.start, color=colour("axis"), lw=1, ls=(0, (1, 3)), zorder=0)


def requests_plot(result: LoadResult) -> Plot | None:
    """Time to first token of every request at the time when it was due; failures as crosses below."""
    well = [request for request in result.requests if request.error is None and request.ttft is not None]
    failed = [request for request in result.requests if request.error is not None]
    num_answered = len(result.requests) - len(failed)
    if not well and not failed:
        return None

    def paint(axes: Axes, is_phone: bool) -> None:
        factor, unit = scale_times(axes, [request.ttft or 0.0 for request in well], allows_log=True)
        shown = thinned(well)
        axes.plot(
            [request.due for request in shown],
            [(request.ttft or 0.0) * factor for request in shown],
            "o",
            ms=3.5 if len(shown) > _FEW_POINTS else 6,
            color=colour("c1"),
            alpha=0.55,
            mew=0,
        )
        if not well:
            axes.set_yticks([])
        _mark_failures(axes, failed)
        _mark_stages(axes, result.stages)
        name_axes(axes, "time when the request was due, s", f"time to first token, {unit}")

    keys = [Key("answered", "c1", "dot"), *([Key("failed", "c5", "cross")] if failed else [])]
    return Plot("Every request", _requests_words(num_answered, len(well), len(failed)), paint, keys, "full")


def _mark_failures(axes: Axes, failed: Sequence[RequestResult]) -> None:
    shown = thinned(failed)
    axes.plot(
        [request.due for request in shown],
        [0.03] * len(shown),
        "x",
        ms=6,
        mew=1.5,
        color=colour("c5"),
        transform=axes.get_xaxis_transform(),
    )


def _requests_words(num_answered: int, num_timed: int, num_failed: int) -> str:
    """num_timed: of the answered, those that have a first token."""
    words = f"{units.counted(num_answered, 'request')} answered, {units.counted(num_failed, 'failure')}."
    if num_timed > MAX_POINTS:
        words += f" {MAX_POINTS:,} of the answered are drawn, evenly over the run."
    return words


def thinned(rows: Sequence[_Row]) -> list[_Row]:
    """At most MAX_POINTS of them, evenly."""
    if len(rows) <= MAX_POINTS:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]
