"""Lengths and the other values of the command line, good and bad."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from remuda.clients.load.lengths import parse_lengths
from remuda.clients.load.values import (
    Sweep,
    parse_count,
    parse_counts,
    parse_objective,
    parse_rates,
    parse_seconds,
    parse_sweep,
)


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("512", 512, 0),
        ("uniform:100:900", 500, 231.2),
        ("normal:512:100", 512, 100),
        ("lognormal:512:300", 512, 300),
    ],
)
def test_distributions(text: str, mean: float, deviation: float) -> None:
    random = np.random.default_rng(0)
    lengths = [parse_lengths(text).draw(random) for _ in range(20_000)]
    assert np.mean(lengths) == pytest.approx(mean, rel=0.02)
    assert np.std(lengths) == pytest.approx(deviation, rel=0.05)


def test_uniform_reaches_both_ends() -> None:
    random = np.random.default_rng(0)
    assert {parse_lengths("uniform:3:5").draw(random) for _ in range(100)} == {3, 4, 5}


def test_no_length_is_below_1() -> None:
    random = np.random.default_rng(0)
    assert min(parse_lengths("normal:2:10").draw(random) for _ in range(1000)) == 1


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_count, "512", 512),
        (parse_count, "4k", 4000),
        (parse_count, "1M", 1_000_000),
        (parse_count, "1.5k", 1500),
        (parse_counts, "1k,4k", (1000, 4000)),
        (parse_seconds, "10", 10.0),
        (parse_seconds, "500ms", 0.5),
        (parse_seconds, "2m", 120.0),
        (parse_rates, "5", (5.0, 5.0)),
        (parse_rates, "1:20", (1.0, 20.0)),
        (parse_objective, "ttft=500ms,itl=50ms,e2e=10s", {"ttft": 0.5, "itl": 0.05, "e2e": 10.0}),
        (parse_sweep, "concurrency=1,2,4", Sweep("concurrency", (1.0, 2.0, 4.0))),
        (parse_sweep, "rate=0.5,2", Sweep("rate", (0.5, 2.0))),
        (parse_sweep, "rate=auto", Sweep("rate", ())),
    ],
)
def test_values(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *[(parse_count, text) for text in ("0", "-1", "1.5", "1e400", "", "k", "4kk", "nan")],
        *[(parse_counts, text) for text in ("4,1", "1,1", "1,", "")],
        *[(parse_seconds, text) for text in ("0", "-1s", "5 min", "inf", "nan", "", "1e999")],
        *[(parse_rates, text) for text in ("0", "1:2:3", "x", ":", "1:", "inf")],
        *[(parse_objective, text) for text in ("", "ttft", "ttft=1,ttft=2", "speed=3", "itl=-1")],
        *[(parse_sweep, text) for text in ("", "rate", "rate=", "rate=2,1", "concurrency=1.5", "foo=1", "rate=x")],
        *[
            (parse_lengths, text)
            for text in ("", "0", "uniform:1", "uniform:9:1", "gamma:1:2", "normal:1:2:3", "1e9")
        ],
    ],
)
def test_bad_values_say_so_in_a_line(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
