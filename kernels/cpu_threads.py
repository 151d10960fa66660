"""How many threads a small, often repeated piece of work should use, by what it takes on the machine as it is now.

A decode step of a small model is some fifty kernels of a few microseconds, each with a barrier. On free cores all
threads are ahead; where another process wants a core, each barrier waits for a thread that is not running,
and one thread is ahead by ten times. No knob fits both, and neighbours come and go: so it is measured.
"""

from typing import Final

# Pairs of runs, one with each choice. The mean decides: where a core is shared, all threads are mostly ahead and
# now and then ten times behind. Few pairs do where most of them agree with it, or where all stays as it was. A
# mean that one slow run has made needs many: one in a hundred is not to turn what is right for the others.
_FEW_PAIRS, _MANY_PAIRS = 8, 32
_MOST: Final = 7 / 8
# The other choice must be this much faster.
_WORTH_A_CHANGE: Final = 0.95
# Runs between two comparisons. Doubles with each one that confirms the choice.
_FIRST_PAUSE: Final = 64
_LAST_PAUSE: Final = 2048
# A pause ends early where the running mean, in which the newest time has this weight, has grown so much.
_NEWEST: Final = 1 / 32
_GREW: Final = 1.5
_SHORTEST_PAUSE: Final = 16


class ThreadChooser:
    """Keeps to the faster of one thread and `max_threads`, and compares them now and then.

    Call `choose`, run with that many threads, then `record` what it took.
    """

    def __init__(self, max_threads: int) -> None:
        self._best, self._other = max_threads, 1
        self._pause = _FIRST_PAUSE
        # Runs since the last comparison, the best's mean in it, and the running mean since.
        self._num_runs, self._usual, self._mean = 0, 0.0, 0.0
        # Of a comparison: what the best took, and the other.
        self._pairs: tuple[list[float], list[float]] | None = ([], [])

    def choose(self) -> int:
        """The number of threads for the next run."""
        if self._pairs is None:
            return self._best
        of_best, of_other = self._pairs
        return self._best if len(of_best) == len(of_other) else self._other

    def record(self, seconds: float) -> None:
        """Note what the run took whose threads were chosen last."""
        if self._best == self._other:
            return
        if self._pairs is not None:
            self._compare(*self._pairs, seconds)
            return
        self._num_runs += 1
        self._mean += _NEWEST * (seconds - self._mean)
        has_grown = self._mean > _GREW * self._usual and self._num_runs >= _SHORTEST_PAUSE
        if has_grown or self._num_runs >= self._pause:
            self._pairs = ([], [])

    def _compare(self, of_best: list[float], of_other: list[float], seconds: float) -> None:
        if len(of_best) == len(of_other):
            of_best.append(seconds)
            return
        of_other.append(seconds)
        best, other, num_pairs = sum(of_best) / len(of_best), sum(of_other) / len(of_other), len(of_other)
        is_hopeless = sum(of_other) >= _FEW_PAIRS * 2 * best
        is_better = other < _WORTH_A_CHANGE * best
        if num_pairs < _FEW_PAIRS and not is_hopeless:
            return
        num_won = sum(b < a for a, b in zip(of_best, of_other, strict=True))
        if is_better and num_won < _MOST * num_pairs and num_pairs < _MANY_PAIRS:
            return
        self._pairs, self._num_runs = None, 0
        if is_better:
            self._best, self._other = self._other, self._best
            self._pause = _FIRST_PAUSE
        else:
            self._pause = min(2 * self._pause, _LAST_PAUSE)
        self._usual = self._mean = min(best, other)
