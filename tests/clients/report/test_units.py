"""Numbers as people read them."""

import pytest

from remuda.clients.report import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.0000123, "12.3 µs"),
        (0.0123, "12.3 ms"),
        (0.0999, "99.9 ms"),
        (0.1234, "123 ms"),
        (1.234, "1.23 s"),
        (123.4, "123 s"),
        (12345.6, "12,346 s"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (4096, "4.1 kB"),
        (406_400_000, "406 MB"),
        (8_589_934_592, "8.59 GB"),
        (2e18, "2,000 PB"),
    ],
)
def test_size(num_bytes: float | None, text: str) -> None:
    assert units.size(num_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (9.996, "10.0"), (99.96, "100"), (1234.5, "1,234")],
)
def test_three_digits_count(value: float, text: str) -> None:
    assert units.digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50 %"),
        (0.123, "12.3 %"),
        (0.9987, "99.87 %"),
        (0.99999, "over 99.99 %"),
        (0.00001, "under 0.01 %"),
    ],
)
def test_share_never_rounds_to_all_or_none(value: float | None, text: str) -> None:
    assert units.share(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "±0.0 %"), (0.0004, "±0.0 %"), (0.013, "+1.3 %"), (-0.5, "-50.0 %"), (20, "+2,000 %")],
)
def test_change_has_a_sign(value: float | None, text: str) -> None:
    assert units.change(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.41, "2.41 ×"), (1726.3, "1,730 ×"), (20.2, "20.2 ×")])
def test_times(value: float, text: str) -> None:
    assert units.times(value) == text


@pytest.mark.parametrize(
    ("largest", "axis"), [(0.0005, (1e6, "µs")), (0.05, (1e3, "ms")), (9, (1e3, "ms")), (60, (1.0, "s"))]
)
def test_time_axis(largest: float, axis: tuple[float, str]) -> None:
    assert units.time_axis(largest) == axis


def test_plain_text_has_no_way_to_move_a_cursor() -> None:
    assert units.plain("a\x1b[31mb\nc") == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}c"
    assert len(units.plain("x" * 10_000)) == 301
