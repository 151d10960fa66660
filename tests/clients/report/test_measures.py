"""What the sentence on saturation names, and how growth is told."""

import pytest

from remuda.clients.report.measures import best_stage, growth, saturated_stage, server_bytes, spread
from remuda.clients.report.results import ServerSample
from tests.clients.report.sample_results import empty, result, sweep


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("saturated at concurrency 8: at concurrency 16 growth below 5%", "concurrency 8"),
        ("saturated at concurrency 16: at concurrency 32 2 of 9 requests fail", "concurrency 16"),
        ("beyond saturation at concurrency 1 already: at concurrency 1 3 of 9 fail", "concurrency 1"),
        ("not saturated at concurrency 96: 1,067 output tokens/s", None),
        ("concurrency 32", "concurrency 32"),
        ("somewhere else", None),
        (None, None),
    ],
)
def test_the_stage_that_is_named_first(sentence: str | None, label: str | None) -> None:
    found = saturated_stage(result(sweep().stages, saturation=sentence))
    assert (found.label if found else None) == label


def test_the_best_stage_makes_the_most_tokens() -> None:
    found = best_stage(sweep())
    assert found is not None
    assert found.label == "concurrency 32"
    assert best_stage(empty()) is None


def test_spread_and_growth() -> None:
    assert spread([100.0, None, 101.0, 99.0]) == pytest.approx(101 / 99 - 1)
    assert growth([100.0, 200.0, None, 101.0]) == pytest.approx(0.01)
    assert spread([1.0]) is None
    assert growth([0.0, 1.0]) is None


def test_the_server_is_all_its_processes() -> None:
    assert server_bytes(ServerSample(t=0, engine_resident_bytes=2.0, server_resident_bytes=3.0)) == 5
    assert server_bytes(ServerSample(t=0, engine_resident_bytes=2.0)) == 2
    assert server_bytes(ServerSample(t=0)) is None
