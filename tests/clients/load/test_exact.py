"""Figures equal the server's script exactly: client and server share a clock that only the script moves."""

from collections.abc import Callable
from typing import Any

import pytest

from remuda.clients.load.options import LoadOptions
from remuda.clients.report.results import Distribution, Stage
from tests.clients.load.conftest import VirtualServer, run

# Of sums of binary fractions over a thousand seconds.
EXACT = 1e-6

Measure = Callable[..., Stage]


@pytest.fixture
def measure(virtual: VirtualServer) -> Measure:
    """One load by a script, in virtual time."""

    def measured(load: LoadOptions, script: dict[str, Any], tokens: int = 8) -> Stage:
        (stage,) = run(virtual.url, load, script=script, tokens=tokens).result.stages
        return stage

    return measured


def assert_all(found: Distribution, count: int, value: float) -> None:
    assert found.count == count
    for figure in (found.minimum, found.mean, found.maximum, *found.percentiles.values()):
        assert figure == pytest.approx(value, abs=EXACT)


@pytest.mark.parametrize(
    ("script", "first", "gap"),
    [
        ({}, 0.2, 0.05),
        ({"first": 3.5}, 3.5, 0.05),
        ({"first": 0.001, "gap": 0.003}, 0.001, 0.003),
        ({"gap": 4.0}, 0.2, 4.0),
        ({"usage": "none"}, 0.2, 0.05),
        ({"usage": "each"}, 0.2, 0.05),
        ({"role": True}, 0.2, 0.05),
    ],
)
def test_closed_loop(measure: Measure, script: dict[str, Any], first: float, gap: float) -> None:
    stage = measure(LoadOptions(concurrency=4, num_requests=8), script)
    assert_all(stage.ttft, 8, first)
    assert_all(stage.itl, 8 * 7, gap)
    assert_all(stage.tpot, 8, gap)
    assert_all(stage.e2e, 8, first + 7 * gap)
    # Two after each other in each of four places.
    assert stage.duration == pytest.approx(2 * (first + 7 * gap), abs=EXACT)
    assert stage.output_tokens_per_s == pytest.approx(64 / stage.duration)


def test_tokens_that_come_together_share_the_gap_before_them(measure: Measure) -> None:
    stage = measure(LoadOptions(concurrency=1, num_requests=1), {"per_event": 4, "usage": "each"}, tokens=12)
    assert stage.itl.count == 11
    assert stage.itl.minimum == pytest.approx(0.0, abs=EXACT)
    assert stage.itl.maximum == pytest.approx(0.05 / 4, abs=EXACT)
    assert stage.itl.mean == pytest.approx(0.1 / 11, abs=EXACT)


def test_open_loop_counts_from_when_a_request_was_due(measure: Measure) -> None:
    """One place on the server, 1 s a request, 2 a second: request i is due at i/2 and begins at i."""
    load = LoadOptions(rates=(2.0, 2.0), process="constant", num_requests=5)
    stage = measure(load, {"slots": 1, "first": 0.3, "gap": 0.1})
    assert stage.ttft.minimum == pytest.approx(0.3, abs=EXACT)
    assert stage.ttft.maximum == pytest.approx(0.3 + 4 * 0.5, abs=EXACT)
    assert stage.ttft.mean == pytest.approx(0.3 + 2 * 0.5, abs=EXACT)
    assert_all(stage.itl, 5 * 7, 0.1)
    assert_all(stage.lateness, 5, 0.0)


def test_a_stall_is_in_the_latency_of_all_that_were_due(measure: Measure) -> None:
    """Nothing is written from 0.5 to 1.5 s: of requests due every 0.1 s and answered after 0.05 s, ten wait."""
    load = LoadOptions(rates=(10.0, 10.0), process="constant", num_requests=20)
    stage = measure(load, {"stall": [0.5, 1.5], "first": 0.05, "gap": 0.001}, tokens=2)
    assert stage.ttft.minimum == pytest.approx(0.05, abs=EXACT)
    assert stage.ttft.maximum == pytest.approx(1.0, abs=EXACT)
    waits = [0.05] * 10 + [round(1.0 - 0.1 * i, 1) for i in range(10)]
    assert stage.ttft.mean == pytest.approx(sum(waits) / 20, abs=EXACT)
