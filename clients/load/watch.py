"""Watches this process while it loads a server: its share of a core, and how late its loop wakes up."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

_EVERY_S: Final = 0.05
BUSY_SHARE: Final = 0.8
LATE_S: Final = 0.02
CEILING_SHARE: Final = 0.5


@dataclass
class ClientWatch:
    """Between `start` and `stop`. busy_share: CPU seconds per second. lags: of the loop's timers, in seconds."""

    num_events: int = 0
    busy_share: float = 0.0
    wall: float = 0.0
    lags: list[float] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch from now on."""
        self._began = (time.perf_counter(), time.process_time())
        self._task = asyncio.create_task(self._measure_lag())

    async def stop(self) -> None:
        """The figures are there afterwards."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.wall = time.perf_counter() - self._began[0]
        self.busy_share = (time.process_time() - self._began[1]) / max(self.wall, 1e-9)

    def warnings(self, ceiling: float | None) -> list[str]:
        """What makes the client itself a suspect, in words. ceiling: events/s that it can read."""
        found = []
        rate = self.num_events / max(self.wall, 1e-9)
        if ceiling is not None and rate >= CEILING_SHARE * ceiling:
            found.append(
                f"the client read {rate:,.0f} events/s, of {ceiling:,.0f} that it can: it may be the limit"
            )
        if self.busy_share >= BUSY_SHARE:
            found.append(f"the client took {self.busy_share:.0%} of a core: it may be the limit")
        late = sorted(self.lags)[int(len(self.lags) * 0.99)] if self.lags else 0.0
        if late >= LATE_S:
            found.append(f"the client's loop woke up {late * 1e3:.0f} ms late (p99): latencies have that error")
        return found

    async def _measure_lag(self) -> None:
        while True:
            due = time.perf_counter() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self.lags.append(max(time.perf_counter() - due, 0.0))
