"""How often a process that keeps ending may be started again, and has been."""

import time
from collections import deque
from typing import Final

import msgspec

# Who ends for this many times within the window is not started again.
MAX_CRASHES: Final = 5
CRASH_WINDOW_S: Final = 60.0


class RestartBudget:
    """Counts the ends of a process within a window of the monotonic clock, which no change of the date moves."""

    def __init__(self) -> None:
        self._crashes: deque[float] = deque()

    def note_crash(self) -> int:
        """Count an end; returns how many there were within the window."""
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - CRASH_WINDOW_S:
            self._crashes.popleft()
        return len(self._crashes)

    @property
    def is_spent(self) -> bool:
        """It must not be started again."""
        return len(self._crashes) >= MAX_CRASHES


class Restarts(msgspec.Struct, frozen=True, tag="restarts"):
    """To the worker, for its metrics: how often the engine, and any API worker, was started again so far."""

    num_engine: int = 0
    num_workers: int = 0
