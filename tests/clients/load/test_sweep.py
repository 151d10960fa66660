"""Sweeps: one stage a value, and where the server is full."""

import pytest

from remuda.clients.load.options import LoadOptions
from remuda.clients.load.saturation import find_saturation
from remuda.clients.load.values import Sweep
from remuda.clients.report.results import Distribution, Goodput, Stage
from tests.clients.load.conftest import VirtualServer, run

SCRIPT = {"first": 0.05, "gap": 0.01, "slots": 4}


def stage(label: str, tokens: float, *, failed: int = 0, good: float | None = None) -> Stage:
    none = Distribution(count=0)
    return Stage(
        label=label,
        start=0.0,
        duration=1.0,
        num_requests=100,
        num_failed=failed,
        prompt_tokens=0,
        output_tokens=0,
        requests_per_s=0.0,
        output_tokens_per_s=tokens,
        total_tokens_per_s=tokens,
        ttft=none,
        itl=none,
        tpot=none,
        e2e=none,
        lateness=none,
        goodput=None if good is None else Goodput(objective={}, num_good=0, share=good, requests_per_s=0.0),
    )


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([stage("c=1", 100), stage("c=2", 200)], "not saturated at c=2"),
        (
            [stage("c=1", 100), stage("c=2", 200), stage("c=4", 209)],
            "saturated at c=2: at c=4 209 output tokens/s",
        ),
        ([stage("c=1", 100), stage("c=2", 211, failed=6)], "saturated at c=1: at c=2 6 of 100 requests fail"),
        ([stage("c=1", 9, good=1.0), stage("c=2", 18, good=0.9)], "saturated at c=1: at c=2 90% of requests keep"),
        ([stage("c=1", 9, good=0.5), stage("c=2", 18, good=0.5)], "beyond saturation at c=1 already"),
    ],
)
def test_saturation(stages: list[Stage], words: str) -> None:
    found = find_saturation(stages)
    assert found is not None
    assert found.startswith(words)


def test_one_stage_says_nothing() -> None:
    assert find_saturation([stage("c=1", 1)]) is None


def test_concurrency(virtual: VirtualServer) -> None:
    load = LoadOptions(sweep=Sweep("concurrency", (1.0, 2.0)), num_requests=4)
    result = run(virtual.url, load, script=SCRIPT).result
    assert [(s.label, s.concurrency, s.num_requests) for s in result.stages] == [
        ("concurrency=1", 1, 4),
        ("concurrency=2", 2, 4),
    ]
    assert [row.stage for row in result.requests] == [0] * 4 + [1] * 4
    assert result.saturation == f"not saturated at concurrency=2: {result.stages[1].output_tokens_per_s:,.0f}" + (
        " output tokens/s"
    )
    # No prompt comes up twice.
    prompts = [tuple(body["prompt"]) for body in virtual.log()["bodies"]]
    assert len(set(prompts)) == 8


def test_rate(virtual: VirtualServer) -> None:
    load = LoadOptions(sweep=Sweep("rate", (10.0, 20.0)), num_requests=4, process="constant")
    result = run(virtual.url, load, script=SCRIPT).result
    assert [(s.label, s.rate) for s in result.stages] == [("rate=10/s", 10.0), ("rate=20/s", 20.0)]


def test_the_search_ends_where_the_server_is_full(virtual: VirtualServer) -> None:
    """Four slots: doubling from 1 finds that 8 at a time bring no more than 4."""
    load = LoadOptions(sweep=Sweep("concurrency", ()), num_requests=16)
    result = run(virtual.url, load, script=SCRIPT).result
    tried = [s.concurrency for s in result.stages]
    assert tried == [1, 2, 4, 8]
    assert result.saturation is not None
    assert result.saturation.startswith("saturated at concurrency=4: at concurrency=8 ")


def test_the_search_ends_where_the_objective_breaks(virtual: VirtualServer) -> None:
    load = LoadOptions(sweep=Sweep("concurrency", ()), num_requests=4, objective={"ttft": 0.001})
    result = run(virtual.url, load, script=SCRIPT).result
    assert len(result.stages) == 1


def test_goodput(virtual: VirtualServer) -> None:
    """Every other request waits for the one slot and breaks its bound."""
    script = {"first": 0.1, "gap": 0.01, "slots": 1}
    load = LoadOptions(rates=(1000.0, 1000.0), process="constant", num_requests=2, objective={"ttft": 0.15})
    (stage,) = run(virtual.url, load, script=script).result.stages
    assert stage.goodput is not None
    assert (stage.goodput.num_good, stage.goodput.share) == (1, 0.5)
    assert stage.goodput.requests_per_s == pytest.approx(1 / stage.duration)


def test_the_rate_of_goodput_is_of_the_window(virtual: VirtualServer) -> None:
    """Every request takes 0.75 s and is good; of the two at a time two end in 1 s and two after it."""
    load = LoadOptions(concurrency=2, duration=1.0, objective={"ttft": 1.0})
    (stage,) = run(virtual.url, load, script={"first": 0.05, "gap": 0.1}).result.stages
    assert stage.goodput is not None
    assert (stage.goodput.num_good, stage.goodput.share) == (4, 1.0)
    assert stage.goodput.requests_per_s == stage.requests_per_s == pytest.approx(2.0)
