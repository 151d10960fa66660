"""Percentiles: numpy's to the last bit while exact, within 1 % in buckets, whatever the values."""

from array import array

import numpy as np
import pytest

from remuda.clients.load.samples import Samples
from remuda.clients.report.results import PERCENTILES


def values_of(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "constant":
        return np.full(5000, 0.02)
    if kind == "two":
        return np.repeat([0.01, 5.0], [4990, 10])
    return random.lognormal(-4, 2, 5000)


@pytest.mark.parametrize("kind", ["lognormal", "constant", "two"])
def test_exact(kind: str) -> None:
    values, samples = values_of(kind), Samples()
    samples.extend(array("d", values))
    found = samples.distribution()
    assert list(found.percentiles) == ["50", "75", "90", "95", "99", "99.9"]
    for percent in PERCENTILES:
        assert found.percentiles[f"{percent:g}"] == np.percentile(values, percent)
    assert (found.count, found.minimum, found.maximum) == (5000, values.min(), values.max())
    assert found.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("kind", ["lognormal", "constant", "two"])
@pytest.mark.parametrize("chunk", [1, 700, 5000])
def test_buckets(kind: str, chunk: int) -> None:
    values, samples = values_of(kind), Samples(max_exact=100)
    for i in range(0, 5000, chunk):
        samples.extend(array("d", values[i : i + chunk]))
    found = samples.distribution()
    for percent in PERCENTILES:
        # Ranks are whole numbers in buckets, so that the true value lies between the two next to it.
        low, high = (np.percentile(values, percent, method=method) for method in ("lower", "higher"))
        assert low * 0.99 <= found.percentiles[f"{percent:g}"] <= high * 1.01
    assert (found.count, found.minimum, found.maximum) == (5000, values.min(), values.max())
    assert found.mean == pytest.approx(values.mean())


def test_curve_rises_from_least_to_greatest() -> None:
    samples = Samples()
    samples.extend(array("d", values_of("lognormal")))
    curve = samples.distribution().curve
    assert len(curve) == 200
    assert curve == sorted(curve)
    assert (curve[0][0], curve[-1][0]) == (0.0, 1.0)
    assert (curve[0][1], curve[-1][1]) == (samples.distribution().minimum, samples.distribution().maximum)


def test_none_and_one() -> None:
    samples = Samples()
    assert samples.distribution().count == 0
    assert samples.distribution().mean is None
    samples.add(0.0)
    assert samples.distribution().percentiles["99.9"] == 0.0


def test_zeros_in_buckets() -> None:
    samples = Samples(max_exact=10)
    samples.add(0.0, times=100)
    assert samples.distribution().percentiles["50"] == 0.0
