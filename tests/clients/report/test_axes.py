"""Ticks: how context lengths are written, and which of them have room."""

import pytest
from matplotlib.figure import Figure

from remuda.clients.report.axes import length_ticks, mark_values


@pytest.mark.parametrize(
    ("lengths", "labels", "thousand"),
    [
        ([1000, 128_000, 1_000_000], ["1k", "128k", "1M"], "1k = 1,000"),
        ([1024, 131_072, 1_048_576], ["1k", "128k", "1M"], "1k = 1,024"),
        ([1000, 1024], ["1,000", "1,024"], ""),
        ([7], ["7"], ""),
    ],
)
def test_lengths_are_short_where_they_can_be(lengths: list[int], labels: list[str], thousand: str) -> None:
    found, below = length_ticks(lengths)
    assert found == labels
    assert thousand in below
    assert ("1k" in below) == bool(thousand)


@pytest.mark.parametrize(
    ("values", "is_phone", "kept"),
    [
        ([1, 2, 4, 8, 16, 32, 96], False, [1, 2, 4, 8, 16, 32, 96]),
        ([1000, 4000, 16_000, 64_000, 128_000], True, [1000, 4000, 16_000, 128_000]),
        ([100, 101, 102, 200], False, [100, 200]),
        ([5], False, [5]),
        ([0, 10], True, [0, 10]),
    ],
)
def test_the_last_value_has_a_label_and_others_have_room(
    values: list[float], is_phone: bool, kept: list[float]
) -> None:
    axes = Figure().add_subplot()
    axes.plot(values, values)
    mark_values(axes, values, [f"{value:g}" for value in values], is_phone)
    assert list(axes.get_xticks()) == kept
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{value:g}" for value in kept]
