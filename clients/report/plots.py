"""The pictures of stages: distributions, and figures against the load."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes

from remuda.clients.report import units
from remuda.clients.report.axes import mark_values, name_axes, scale_numbers, scale_times
from remuda.clients.report.canvas import Key, Plot, Stroke, colour, dashes
from remuda.clients.report.measures import percentile
from remuda.clients.report.results import Distribution, Stage

# Of stages in their order, from little load to much.
_ORDERED: Final = ("r1", "r2", "r3", "r4", "r5", "r6")
_LATENCIES: Final[Sequence[tuple[str, Callable[[Stage], Distribution]]]] = (
    ("Time to first token", lambda stage: stage.ttft),
    ("Inter-token latency", lambda stage: stage.itl),
)


def chosen(stages: Sequence[Stage], at: Stage | None) -> list[Stage]:
    """As many stages as there are colours: the first, the last, the saturated one, and others evenly between."""
    if len(stages) <= len(_ORDERED):
        return list(stages)
    last, room = len(stages) - 1, len(_ORDERED) - 1
    picked = {round(i * last / room) for i in range(len(_ORDERED))}
    if at is not None and (place := stages.index(at)) not in picked:
        picked.remove(min(picked - {0, last}, key=lambda other: abs(other - place)))
        picked.add(place)
    return [stages[i] for i in sorted(picked)]


def ordered_colours(num_lines: int) -> list[str]:
    """Names of colours for up to six lines in an order, spread over the scale."""
    if num_lines == 1:
        return ["c1"]
    return [_ORDERED[round(i * (len(_ORDERED) - 1) / (num_lines - 1))] for i in range(num_lines)]


def distribution_plot(title: str, lines: Sequence[tuple[str, str, Distribution]]) -> Plot | None:
    """Shares that took at most so long. lines: label, colour, values. None without a value."""
    known = [line for line in lines if line[2].curve]
    if not known:
        return None

    def paint(axes: Axes, is_phone: bool) -> None:
        seconds = [value for _, _, values in known for _, value in values.curve]
        factor, unit = scale_times(axes, seconds, allows_log=True, axis="x")
        for _, name, values in known:
            # A single value is an upright line.
            curve = (
                values.curve if len(values.curve) > 1 else [(0.0, values.curve[0][1]), (1.0, values.curve[0][1])]
            )
            axes.plot(
                [value * factor for _, value in curve], [share * 100 for share, _ in curve], color=colour(name)
            )
        axes.set_ylim(0, 103)
        axes.set_yticks([0, 25, 50, 75, 100], labels=["0 %", "25 %", "50 %", "75 %", "100 %"])
        name_axes(axes, f"{title.lower()}, {unit}", "share that took at most so long")

    keys = [Key(label, name) for label, name, _ in known] if len(known) > 1 else []
    return Plot(title, _distribution_words(known), paint, keys)


def _distribution_words(known: Sequence[tuple[str, str, Distribution]]) -> str:
    label, _, values = known[-1]
    half, most = percentile(values, "50"), percentile(values, "99")
    where = f"At {label}, half" if len(known) > 1 else "Half"
    return f"{where} took at most {units.duration(half)}, and 99 % at most {units.duration(most)}."


@dataclass(frozen=True)
class _Line:
    label: str
    colour: str
    values: list[float | None]
    stroke: Stroke = "solid"


def load_of(stage: Stage) -> float | None:
    """Requests at a time, or a second."""
    return stage.concurrency if stage.concurrency is not None else stage.rate


def sweep_plots(stages: Sequence[Stage], at: Stage | None) -> list[Plot]:
    """Throughput and latencies against the load; none where stages have no load, or all the same."""
    loads = [load for stage in stages if (load := load_of(stage)) is not None]
    if len(loads) < len(stages) or len(set(loads)) < 2:
        return []
    ordered = sorted(stages, key=lambda stage: load_of(stage) or 0.0)
    tokens = [_Line("output tokens/s", "c1", [stage.output_tokens_per_s for stage in ordered])]
    requests = [_Line("ended well", "c1", [stage.requests_per_s for stage in ordered])]
    if any(stage.goodput is not None for stage in ordered):
        good = [stage.goodput.requests_per_s if stage.goodput else None for stage in ordered]
        requests.append(_Line("kept the objective", "c3", list(good), "dashed"))
    return [
        _against_load("Throughput", "output tokens/s", ordered, at, tokens, is_time=False),
        _against_load("Requests", "requests/s", ordered, at, requests, is_time=False),
        *(
            _against_load(title, "", ordered, at, _percentile_lines(ordered, get), is_time=True)
            for title, get in _LATENCIES
            if any(get(stage).count for stage in ordered)
        ),
    ]


def _percentile_lines(stages: Sequence[Stage], get: Callable[[Stage], Distribution]) -> list[_Line]:
    return [
        _Line("p50", "c1", [percentile(get(stage), "50") for stage in stages]),
        _Line("p99", "c1", [percentile(get(stage), "99") for stage in stages], "dashed"),
    ]


def _against_load(
    title: str, unit: str, stages: Sequence[Stage], at: Stage | None, lines: Sequence[_Line], *, is_time: bool
) -> Plot:
    loads = [load_of(stage) or 0.0 for stage in stages]
    is_closed = stages[0].concurrency is not None
    known = [value for line in lines for value in line.values if value is not None]

    def paint(axes: Axes, is_phone: bool) -> None:
        factor, name = scale_times(axes, known, allows_log=True) if is_time else (1.0, unit)
        if not is_time:
            scale_numbers(axes, known)
        for line in lines:
            found = [(x, y * factor) for x, y in zip(loads, line.values, strict=True) if y is not None]
            axes.plot(
                *zip(*found, strict=True), color=colour(line.colour), ls=dashes(line.stroke), marker="o", ms=4.5
            )
        mark_values(axes, loads, [f"{load:g}" for load in loads], is_phone)
        if at is not None:
            mark_saturation(axes, load_of(at) or 0.0)
        name_axes(axes, "requests at a time" if is_closed else "requests a second, as asked", name)

    keys = [Key(line.label, line.colour, line.stroke) for line in lines] if len(lines) > 1 else []
    return Plot(f"{title} against load", _load_words(stages, at, lines, unit, is_time=is_time), paint, keys)


def mark_saturation(axes: Axes, load: float) -> None:
    """An upright line with its name beside it, on the side where there is room."""
    axes.axvline(load, color=colour("muted"), lw=1, ls=(0, (2, 2)), zorder=0)
    is_right = axes.transAxes.inverted().transform(axes.transData.transform((load, 0)))[0] > 0.5
    axes.annotate(
        "saturated",
        (load, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if is_right else 5, -2),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        color=colour("muted"),
    )


def _load_words(
    stages: Sequence[Stage], at: Stage | None, lines: Sequence[_Line], unit: str, *, is_time: bool
) -> str:
    def write(value: float | None) -> str:
        return units.duration(value) if is_time else f"{units.number(value)} {unit}"

    first = lines[-1] if is_time else lines[0]
    which = f"{first.label}: " if is_time else ""
    words = (
        f"{which}{write(first.values[0])} at {stages[0].label}, {write(first.values[-1])} at {stages[-1].label}"
    )
    if at is not None and at not in (stages[0], stages[-1]):
        words += f", {write(first.values[stages.index(at)])} at saturation ({at.label})"
    return f"{words}."
