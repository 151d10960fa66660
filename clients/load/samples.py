"""Many values of one measure: exact up to a million, then counted in buckets of 1 %, and their Distribution."""

import math
from array import array
from typing import Final

import numpy as np

from remuda.clients.report.results import PERCENTILES, Distribution

MAX_EXACT: Final = 1_000_000
# The middle of a bucket is within 0.5 % of every value in it.
_GROWTH: Final = 1.01
_LEAST: Final = 1e-9
_CURVE_POINTS: Final = 200


class Samples:
    """Values of at least 0, in seconds. In buckets (as in DDSketch, arXiv 1908.10693) ranks are exact and values
    within 0.5 %; count, mean, least and greatest are exact always.
    """

    def __init__(self, max_exact: int = MAX_EXACT) -> None:
        self._max_exact = max_exact
        self._exact = array("d")
        self._buckets: dict[int, int] = {}
        self._count, self._total = 0, 0.0
        self._least, self._greatest = math.inf, -math.inf

    def __len__(self) -> int:
        return self._count

    def add(self, value: float, times: int = 1) -> None:
        """A value, that came up so many times."""
        self._exact.extend([value] * times)
        self._note(value * times, value, value, times)

    def extend(self, values: "array[float]") -> None:
        """Many values at once."""
        if values:
            self._exact.extend(values)
            self._note(math.fsum(values), min(values), max(values), len(values))

    def distribution(self) -> Distribution:
        """Percentiles by linear interpolation between ranks, as numpy's default."""
        if self._count == 0:
            return Distribution(count=0)
        shares = np.linspace(0, 1, min(_CURVE_POINTS, max(self._count, 2)))
        found = self._at(np.array([*(p / 100 for p in PERCENTILES), *shares]))
        return Distribution(
            count=self._count,
            mean=self._total / self._count,
            minimum=self._least,
            maximum=self._greatest,
            percentiles={f"{p:g}": float(v) for p, v in zip(PERCENTILES, found, strict=False)},
            curve=[(float(s), float(v)) for s, v in zip(shares, found[len(PERCENTILES) :], strict=True)],
        )

    def _note(self, total: float, least: float, greatest: float, count: int) -> None:
        self._total += total
        self._count += count
        self._least, self._greatest = min(self._least, least), max(self._greatest, greatest)
        if len(self._exact) > self._max_exact or (self._buckets and len(self._exact) > 10_000):
            self._to_buckets()

    def _to_buckets(self) -> None:
        values = np.maximum(np.frombuffer(self._exact, dtype=np.float64), _LEAST)
        found, counts = np.unique(np.ceil(np.log(values) / math.log(_GROWTH)).astype(int), return_counts=True)
        for bucket, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        del values
        self._exact = array("d")

    def _at(self, shares: np.ndarray) -> np.ndarray:
        if not self._buckets:
            return np.asarray(np.quantile(np.frombuffer(self._exact, dtype=np.float64), shares))
        if self._exact:
            self._to_buckets()
        buckets = np.array(sorted(self._buckets))
        until = np.cumsum([self._buckets[bucket] for bucket in buckets.tolist()])
        middles = 2 * _GROWTH ** buckets.astype(float) / (1 + _GROWTH)
        ranks = np.searchsorted(until, shares * (self._count - 1), side="right")
        found = np.clip(middles[np.minimum(ranks, len(buckets) - 1)], self._least, self._greatest)
        found[shares >= 1], found[shares <= 0] = self._greatest, self._least
        return np.asarray(found)
