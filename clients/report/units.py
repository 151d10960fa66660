"""Numbers as people read them: durations, sizes, rates, shares. A number that is not there is a dash."""

from collections.abc import Callable
from typing import Final

MISSING: Final = "–"
_TIMES: Final = ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s"))
_SIZES: Final = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COUNTS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
# An axis up to so many microseconds or seconds is in the smaller unit.
_AXIS_LIMITS: Final = ((2e-3, 1e6, "µs"), (10.0, 1e3, "ms"), (float("inf"), 1.0, "s"))
_MAX_TEXT: Final = 300

Format = Callable[[float | None], str]


def digits(value: float) -> str:
    """Three digits that count, or all before the point: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    if abs(value) >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """12.3 ms for 0.0123."""
    if seconds is None:
        return MISSING
    if seconds == 0:
        return "0 ms"
    factor, unit = next((factor, unit) for limit, factor, unit in _TIMES if abs(seconds) < limit)
    return f"{digits(seconds * factor)} {unit}"


def bound(seconds: float) -> str:
    """50 ms for 0.05: a number that somebody chose, as it was chosen."""
    return f"{seconds * 1e3:g} ms" if seconds < 1 else f"{seconds:g} s"


def milliseconds(seconds: float | None) -> str:
    """12.3 for 0.0123, for a column whose head says ms."""
    return MISSING if seconds is None else digits(seconds * 1e3)


def size(num_bytes: float | None) -> str:
    """406 MB for 406,000,000: powers of ten, as the server's own start says them."""
    if num_bytes is None:
        return MISSING
    for limit, unit in _SIZES:
        if abs(num_bytes) >= limit:
            return f"{_short(num_bytes / limit)} {unit}"
    return f"{num_bytes:.0f} B"


def exact_size(num_bytes: float | None) -> str:
    """406,123,456 B."""
    return MISSING if num_bytes is None else f"{num_bytes:,.0f} B"


def number(value: float | None) -> str:
    """A rate or another plain number."""
    return MISSING if value is None else digits(value)


def count(value: float | None) -> str:
    """A whole number: 12,345."""
    return MISSING if value is None else f"{value:,.0f}"


def counted(value: int, thing: str) -> str:
    """1 request, 12 requests."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def short_count(value: float) -> str:
    """For an axis: 131k, 1.2M."""
    for limit, unit in _COUNTS:
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def share(value: float | None) -> str:
    """98.7 % for 0.987. What is not quite none or all never reads so."""
    if value is None:
        return MISSING
    percent = value * 100
    if 0 < percent < 0.01:
        return "under 0.01 %"
    if 99.99 < percent < 100:
        return "over 99.99 %"
    if percent < 1:
        return f"{percent:.2g} %"
    return f"{percent:.3g} %" if percent < 99 else f"{percent:.4g} %"


def change(value: float | None) -> str:
    """+1.3 % for 0.013: with its sign, of a ratio less one."""
    if value is None:
        return MISSING
    percent = value * 100
    if abs(percent) < 0.05:
        return "±0.0 %"
    return f"{percent:+,.1f} %" if abs(percent) < 1000 else f"{percent:+,.0f} %"


def times(value: float) -> str:
    """1,700 ×, 2.4 ×."""
    return f"{_short(value) if value < 1000 else format(float(f'{value:.3g}'), ',.0f')} ×"


def time_axis(largest: float) -> tuple[float, str]:
    """By what to multiply seconds on an axis up to `largest`, and the unit's name."""
    return next((factor, unit) for limit, factor, unit in _AXIS_LIMITS if largest < limit)


def printable(text: str) -> str:
    """All of a text, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def plain(text: str) -> str:
    """Text that others wrote, fit for one line of a terminal: no control characters, no endless length."""
    line = printable(text[: _MAX_TEXT + 1])
    return line if len(line) <= _MAX_TEXT else line[:_MAX_TEXT] + "…"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
