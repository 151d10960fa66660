"""Runs side by side: figures, differences in percent, and what makes the runs differ before they begin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from rich.console import Console

from remuda.clients.report import units
from remuda.clients.report.measures import CONTEXT_MEASURES, SHORT_NAMES, STAGE_MEASURES, Measure
from remuda.clients.report.results import LoadResult
from remuda.clients.report.terminal import show_line, show_table

# What differs by less is called the same: two runs of one load differ by so much.
SAME: Final = 0.01
# A setting that is another one in each run on purpose.
_DRAWN: Final = "seed"
# Of `/info`, what makes another server of it.
_INFO: Final = (
    *("version", "model_type", "num_parameters", "device", "backend", "dtype", "state_dtype", "num_slots"),
    *("slot_bytes", "max_queue"),
)

Verdict = Literal["better", "worse", "same", ""]
_Of = TypeVar("_Of")


@dataclass(frozen=True)
class Cell:
    """One run's figure, and what it is against the first run's."""

    text: str
    change: str = ""
    verdict: Verdict = ""


@dataclass(frozen=True)
class Group:
    """The same stage or length in all runs: rows of a name and a cell for each run."""

    title: str
    rows: list[tuple[str, list[Cell]]]


def run_names(results: Sequence[LoadResult]) -> list[str]:
    """A, B, C …; beyond Z by number."""
    return [chr(ord("A") + i) if i < 26 else f"run {i + 1}" for i in range(len(results))]


def compare_stages(results: Sequence[LoadResult]) -> list[Group]:
    """Stages of equal labels; where every run has a single one, those, whatever their labels."""
    if results and all(len(result.stages) == 1 for result in results):
        labels = list(dict.fromkeys(result.stages[0].label for result in results))
        return [_group(" / ".join(labels), STAGE_MEASURES, [result.stages[0] for result in results])]
    labels = list(dict.fromkeys(stage.label for result in results for stage in result.stages))
    return [
        _group(
            label, STAGE_MEASURES, [_first(result.stages, label, lambda stage: stage.label) for result in results]
        )
        for label in labels
    ]


def compare_lengths(results: Sequence[LoadResult]) -> list[Group]:
    """Context lengths, shortest first."""
    points = [result.long_context.points if result.long_context else [] for result in results]
    lengths = sorted({point.context_tokens for run in points for point in run})
    return [
        _group(
            f"{length:,} tokens of context",
            CONTEXT_MEASURES,
            [_first(run, length, lambda point: point.context_tokens) for run in points],
        )
        for length in lengths
    ]


def differences(results: Sequence[LoadResult]) -> list[tuple[str, list[str]]]:
    """What is not the same in all runs: settings, target, machine, version. Each with its value in each run."""
    facts = [_facts(result) for result in results]
    names = list(dict.fromkeys(name for run in facts for name in run))
    found = [(name, [run.get(name, units.MISSING) for run in facts]) for name in names]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def print_comparison(results: Sequence[LoadResult], console: Console) -> None:
    """Tables of figures with their differences against the first run, then warnings. Refuses nothing."""
    names = run_names(results)
    for name, result in zip(names, results, strict=True):
        show_line(console, f"{name}: {result.target.model} at {result.target.url}, {result.created}", "bold")
    header = ["", *(names[:1]), *(part for name in names[1:] for part in (name, f"{name} against {names[0]}", ""))]
    groups = [*compare_stages(results), *compare_lengths(results)]
    for group in groups:
        rows = [
            [name, cells[0].text, *(part for cell in cells[1:] for part in (cell.text, cell.change, cell.verdict))]
            for name, cells in group.rows
        ]
        show_table(console, group.title, header, rows)
    if groups:
        show_line(console, f"{SHORT_NAMES}. Less than {units.share(SAME)} apart counts as the same.")
    for warning in warnings(results):
        show_line(console, f"warning: {warning}", "yellow")


def warnings(results: Sequence[LoadResult]) -> list[str]:
    """What stands in the way of comparing these runs."""
    names = run_names(results)
    found = []
    for name, values in differences(results):
        told = ", ".join(f"{run} {value}" for run, value in zip(names, values, strict=True))
        found.append(f"{name} differs: {told}")
    groups = [*compare_stages(results), *compare_lengths(results)]
    if len(results) > 1 and not any(_is_shared(group) for group in groups):
        found.append("the runs have no stage and no context length in common")
    for name, result in zip(names, results, strict=True):
        found += [f"{name}: {note}" for note in result.notes]
        found += [f"{name}, {stage.label}: {note}" for stage in result.stages for note in stage.notes]
    return found


def _is_shared(group: Group) -> bool:
    return any(all(cell.text != units.MISSING for cell in cells) for _, cells in group.rows)


def _first(rows: Sequence[_Of], key: str | int, get: Callable[[_Of], str | int]) -> _Of | None:
    return next((row for row in rows if get(row) == key), None)


def _group(title: str, measures: Sequence[Measure[_Of]], runs: Sequence[_Of | None]) -> Group:
    rows = [(measure.name, _cells(measure, runs)) for measure in measures]
    return Group(title, [row for row in rows if any(cell.text != units.MISSING for cell in row[1])])


def _cells(measure: Measure[_Of], runs: Sequence[_Of | None]) -> list[Cell]:
    values = [None if run is None else measure.get(run) for run in runs]
    return [_cell(measure, values[0] if i else None, value) for i, value in enumerate(values)]


def _cell(measure: Measure[_Of], base: float | None, value: float | None) -> Cell:
    text = measure.write(value)
    if base is None or value is None:
        return Cell(text)
    if measure.is_share:
        change, written = value - base, _points(value - base)
    elif base == 0:
        return Cell(text, "", "same" if value == 0 else "")
    else:
        change, written = value / base - 1, units.change(value / base - 1)
    return Cell(text, written, _verdict(change, measure.is_lower_better))


def _points(change: float) -> str:
    return "±0.0 points" if abs(change) < 0.0005 else f"{change * 100:+.1f} points"


def _verdict(change: float, is_lower_better: bool | None) -> Verdict:
    if is_lower_better is None:
        return ""
    if abs(change) < SAME:
        return "same"
    return "better" if (change < 0) == is_lower_better else "worse"


def _facts(result: LoadResult) -> dict[str, str]:
    info = result.target.info or {}
    return {
        **{name: str(value) for name, value in result.settings.items() if value is not None and name != _DRAWN},
        "url": result.target.url,
        "model": result.target.model,
        "machine": result.machine,
        "remuda load": result.version,
        **{f"server's {name}": str(info[name]) for name in _INFO if name in info},
    }
