"""Reads counts, durations, objectives and sweeps as people write them. All raise ValueError in one line."""

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

_NUMBER: Final = r"[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?"
_COUNT: Final = re.compile(rf"({_NUMBER})([kKmM]?)")
_SECONDS: Final = re.compile(rf"({_NUMBER})(us|ms|s|m|h)?")
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_THOUSANDS: Final = {"": 1, "k": 1_000, "m": 1_000_000}
MEASURES: Final = ("ttft", "itl", "e2e")


def parse_count(text: str) -> int:
    """A whole number of at least 1: `512`, `4k` (4000), `1M`."""
    match = _COUNT.fullmatch(text.strip())
    number = float(match[1]) * _THOUSANDS[match[2].lower()] if match else 0.0
    if not math.isfinite(number) or number < 1 or number != int(number):
        raise ValueError(f"{text[:40]!r} is not a count of at least 1, such as 512, 4k or 1M")
    return int(number)


def parse_seconds(text: str) -> float:
    """Seconds, more than 0: `10`, `1.5s`, `500ms`, `2m`, `1h`."""
    match = _SECONDS.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"{text[:40]!r} is not a time above 0, such as 30, 500ms or 2m")
    return seconds


def parse_rate(text: str) -> float:
    """Requests per second, more than 0."""
    match = re.fullmatch(_NUMBER, text.strip())
    rate = float(text) if match else 0.0
    if not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"{text[:40]!r} is not a rate above 0, in requests per second")
    return rate


def parse_rates(text: str) -> tuple[float, float]:
    """Rate at the start and at the end of a run: `5`, or `1:20`, which rises (or falls) in a straight line."""
    parts = text.split(":")
    if len(parts) > 2:
        raise ValueError(f"{text[:40]!r} is neither a rate nor START:END")
    return parse_rate(parts[0]), parse_rate(parts[-1])


def parse_counts(text: str) -> tuple[int, ...]:
    """Counts with commas between them, each larger than the one before."""
    counts = tuple(parse_count(part) for part in text.split(","))
    if list(counts) != sorted(set(counts)):
        raise ValueError(f"{text[:40]!r} does not grow from each value to the next")
    return counts


def parse_objective(text: str) -> dict[str, float]:
    """Bounds in seconds by measure: `ttft=500ms,itl=50ms,e2e=10s`."""
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in MEASURES or name in bounds:
            raise ValueError(f"{part[:40]!r}: an objective is MEASURE=TIME, each of {', '.join(MEASURES)} once")
        bounds[name] = parse_seconds(value)
    return bounds


@dataclass(frozen=True)
class Sweep:
    """Values that a run steps through, smallest first. Without any it doubles from 1 until the server is full."""

    of: Literal["concurrency", "rate"]
    values: tuple[float, ...]


def parse_sweep(text: str) -> Sweep:
    """`concurrency=1,2,4`, `rate=1,2.5,5`, or either with `=auto`."""
    name, _, values = text.partition("=")
    if name == "concurrency" and values:
        return Sweep("concurrency", () if values == "auto" else tuple(map(float, parse_counts(values))))
    if name != "rate" or not values:
        raise ValueError(f"{text[:40]!r} is not concurrency=1,2,4 or rate=1,2,5 or one of them with =auto")
    rates = () if values == "auto" else tuple(parse_rate(value) for value in values.split(","))
    if list(rates) != sorted(set(rates)):
        raise ValueError(f"{text[:40]!r} does not grow from each value to the next")
    return Sweep("rate", rates)
