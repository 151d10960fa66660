"""Comparison: which stages are paired, what is better, and what is said of runs that differ."""

import io

import pytest
from rich.console import Console

from remuda.clients.report.compare import (
    Cell,
    compare_lengths,
    compare_stages,
    differences,
    print_comparison,
    warnings,
)
from remuda.clients.report.results import LoadResult
from tests.clients.report.sample_results import ALL, empty, full, long_context, result, single, sweep


def printed(*results: LoadResult, is_terminal: bool = False) -> str:
    """What a pipe or a terminal gets."""
    stream = io.StringIO()
    print_comparison(results, Console(file=stream, force_terminal=is_terminal, width=120, color_system=None))
    return stream.getvalue()


def cells(*results: LoadResult) -> dict[str, list[Cell]]:
    """Of the first stage."""
    return dict(compare_stages(results)[0].rows)


def faster(factor: float) -> LoadResult:
    """The same run with other throughput, shares and latencies."""
    made = single()
    stage = made.stages[0]
    fields = {name: getattr(stage, name) for name in stage.__struct_fields__}
    ttft = type(stage.ttft)(count=1, percentiles={"50": stage.ttft.percentiles["50"] / factor})
    changes = {"output_tokens_per_s": stage.output_tokens_per_s * factor, "ttft": ttft, "num_failed": 0}
    return result([type(stage)(**(fields | changes))], made.requests)


@pytest.mark.parametrize(
    ("factor", "throughput", "latency"),
    [(1.1, ("+10.0 %", "better"), ("-9.1 %", "better")), (0.5, ("-50.0 %", "worse"), ("+100.0 %", "worse"))],
)
def test_more_tokens_and_less_time_are_better(
    factor: float, throughput: tuple[str, str], latency: tuple[str, str]
) -> None:
    found = cells(single(), faster(factor))
    assert (found["Output tokens/s"][1].change, found["Output tokens/s"][1].verdict) == throughput
    assert (found["TTFT p50"][1].change, found["TTFT p50"][1].verdict) == latency
    assert found["Output tokens/s"][0] == Cell(found["Output tokens/s"][0].text)


def test_less_than_a_percent_is_the_same() -> None:
    assert cells(single(), faster(1.009))["Output tokens/s"][1].verdict == "same"
    assert cells(single(), faster(1.011))["Output tokens/s"][1].verdict == "better"


def test_shares_differ_by_points() -> None:
    base = single()
    found = cells(base, faster(1.0))["Failed"]
    share = base.stages[0].num_failed / base.stages[0].num_requests
    assert found[1].change == f"-{share * 100:.1f} points"
    assert cells(faster(1.0), faster(1.0))["Failed"][1].change == "±0.0 points"


def test_a_number_of_requests_is_neither_better_nor_worse() -> None:
    found = cells(single(), single(2))["Requests"]
    assert found[1].verdict == ""


def test_what_one_run_lacks_is_a_dash() -> None:
    found = cells(single(), faster(1.0))["TTFT p99"]
    assert found[1] == Cell("–")


def test_stages_are_paired_by_label() -> None:
    groups = compare_stages([sweep(), single(concurrency=8)])
    assert [group.title for group in groups] == [f"concurrency {n}" for n in (1, 2, 4, 8, 16, 32, 96)]
    at_8, at_16 = dict(groups[3].rows), dict(groups[4].rows)
    assert at_8["Requests/s"][1].text != "–"
    assert at_16["Requests/s"][1].text == "–"


def test_single_stages_are_paired_whatever_their_labels() -> None:
    groups = compare_stages([single(concurrency=8), single(concurrency=16)])
    assert [group.title for group in groups] == ["concurrency 8 / concurrency 16"]


def test_lengths_are_paired() -> None:
    groups = compare_lengths([full(), result(context=long_context(4))])
    assert [group.title.split()[0] for group in groups] == ["1,024", "4,096", "16,384", "65,536", "131,072"]
    rows = dict(groups[0].rows)
    assert rows["Server, all processes"][1].verdict == "same"


def test_settings_that_differ_are_named() -> None:
    base, other = single(), single(settings={"prompt_tokens": 128, "seed": 0, "warmup": 2.5}, machine="another")
    assert differences([base, base]) == []
    assert differences([base, other]) == [
        ("prompt_tokens", ["uniform:64,256", "128"]),
        ("output_tokens", ["64", "–"]),
        ("machine", [base.machine, "another"]),
    ]
    assert "warning: prompt_tokens differs: A uniform:64,256, B 128" in printed(base, other)


def test_runs_without_anything_in_common_are_warned_of() -> None:
    assert "the runs have no stage and no context length in common" in warnings([single(), empty()])
    assert warnings([single(), single()]) == []


def test_the_table_has_both_runs_and_the_difference() -> None:
    lines = printed(single(), faster(1.1)).splitlines()
    row = next(line for line in lines if line.strip().startswith("Output tokens/s"))
    assert row.split()[-3:] == ["+10.0", "%", "better"]


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("name", list(ALL))
def test_any_two_results_can_be_compared(name: str, is_terminal: bool) -> None:
    made = ALL[name]()
    assert printed(single(), made, is_terminal=is_terminal)
    assert printed(made, sweep(), full(), is_terminal=is_terminal)
    assert printed(made, is_terminal=is_terminal)
