"""Times at which requests are due: their rate, their spread, their ramp."""

from itertools import islice, pairwise

import numpy as np
import pytest

from remuda.clients.load.arrivals import Arrivals


def first(arrivals: Arrivals, count: int) -> list[float]:
    return list(islice(arrivals.times(), count))


def test_constant() -> None:
    assert first(Arrivals("constant", 4.0, 4.0), 5) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(first(Arrivals("poisson", 5.0, 5.0, seed=1), 20_001))
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    # Of an exponential distribution the deviation is the mean, and a share of 1/e lies above it.
    assert gaps.std() == pytest.approx(0.2, rel=0.03)
    assert (gaps > 0.2).mean() == pytest.approx(np.exp(-1), abs=0.01)


def test_seeds() -> None:
    times = first(Arrivals("poisson", 5.0, 5.0, seed=1), 50)
    assert times == first(Arrivals("poisson", 5.0, 5.0, seed=1), 50)
    assert times != first(Arrivals("poisson", 5.0, 5.0, seed=2), 50)


@pytest.mark.parametrize(("start", "end"), [(0.0, 20.0), (1.0, 20.0), (20.0, 1.0), (3.0, 3.0)])
@pytest.mark.parametrize("process", ["constant", "poisson"])
def test_a_ramp_has_the_rate_of_its_time(process: str, start: float, end: float) -> None:
    arrivals = Arrivals(process, start, end, ramp=200.0, seed=3)  # type: ignore[arg-type]
    times = np.array([t for t in first(arrivals, 5000) if t < 300])
    assert all(a <= b for a, b in pairwise(times))
    for low, high in ((0, 100), (100, 200), (200, 300)):
        middle = min((low + high) / 2, 200) if low < 200 else 200
        expected = (start + (end - start) * middle / 200) * 100
        counted = ((times >= low) & (times < high)).sum()
        # Four deviations of a Poisson count.
        assert counted == pytest.approx(expected, abs=4 * expected**0.5 + 1)
