"""When requests are due in an open loop: a Poisson or constant process whose rate may rise along a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Process = Literal["poisson", "constant"]


@dataclass(frozen=True)
class Arrivals:
    """Rates in requests per second: `start` at time 0, `end` after `ramp` seconds and from then on.

    A time is due where the integral of the rate reaches the next point of a process of rate 1 (time rescaling), so
    that a ramp stays a Poisson process. seed: the same times again.
    """

    process: Process
    start: float
    end: float
    ramp: float = 0.0
    seed: int = 0

    def times(self) -> Iterator[float]:
        """Seconds since the start, without end; the first of a constant process is 0."""
        random = np.random.default_rng(self.seed)
        total = 0.0
        while True:
            if self.process == "constant":
                yield self.time_of(total)
                total += 1.0
            else:
                total += float(random.exponential())
                yield self.time_of(total)

    def time_of(self, num_due: float) -> float:
        """When so many requests were due, on average: the inverse of the rate's integral."""
        during = self.ramp * (self.start + self.end) / 2
        if num_due >= during:
            return self.ramp + (num_due - during) / self.end
        # start·t + slope·t²/2 = num_due, in the form that is stable at small slopes.
        slope = (self.end - self.start) / self.ramp
        root = (self.start**2 + 2 * slope * num_due) ** 0.5
        return 2 * num_due / (self.start + root) if num_due else 0.0
