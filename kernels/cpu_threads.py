"""How many threads a small, often repeated piece of work should use, by what it takes on the machine as it is now.

A decode step of a small model is some fifty kernels of a few microseconds, each with a barrier. On free cores all
threads are ahead; where another process wants a core, each barrier waits for a thread that is not running,
and one thread is ahead by ten times. No knob fits both, and neighbours come and go: so it is measured.
"""

from typing import Final

# Weight of the newest time in the running mean: a few steps decide.
_NEWEST: Final = 0.25
# Runs between two trials of the other choice. Doubles with each trial that confirms the choice.
_FIRST_TRIAL_AFTER: Final = 16
_LAST_TRIAL_AFTER: Final = 1024


class ThreadChooser:
    """Alternates between one thread and `max_threads`, and keeps to the faster while it stays so.

    Call `choose`, run with that many threads, then `record` what it took.
    """

    def __init__(self, max_threads: int) -> None:
        self._options = (max_threads, 1) if max_threads > 1 else (1,)
        self._means: dict[int, float] = {}
        self._best = max_threads
        self._trial_after = _FIRST_TRIAL_AFTER
        self._num_runs = 0

    def choose(self) -> int:
        """The number of threads for the next run."""
        unknown = [option for option in self._options if option not in self._means]
        if unknown:
            return unknown[0]
        self._num_runs += 1
        if self._num_runs >= self._trial_after and len(self._options) > 1:
            self._num_runs = 0
            return next(option for option in self._options if option != self._best)
        return self._best

    def record(self, num_threads: int, seconds: float) -> None:
        """Note what a run with `num_threads` took."""
        mean = self._means.get(num_threads)
        is_trial = num_threads != self._best
        # A trial stands for itself: what the other choice took long ago tells nothing of now.
        self._means[num_threads] = (
            seconds if mean is None or is_trial else (1 - _NEWEST) * mean + _NEWEST * seconds
        )
        best = min(self._means, key=self._means.__getitem__)
        if best != self._best:
            self._best, self._trial_after = best, _FIRST_TRIAL_AFTER
        elif is_trial:
            self._trial_after = min(2 * self._trial_after, _LAST_TRIAL_AFTER)
