"""Tells a hung engine or API worker (stopped, deadlocked) from one that is busy.

Twice a second the engine's loop is asked for its stats, which it answers between two steps. That proves that
the loop goes round, which a thread of its own would not. No answer proves nothing yet: the longest legal step
has no bound that is known here (a whole batch of prompt tokens of a large model on a few cores takes a minute, a
kernel that is compiled late as long), so a limit on silence alone would be either slower than the five seconds
that are wanted, or a killer of healthy engines. The lower layer decides: whoever computes or compiles uses up
CPU time (a thread that waits for a GPU spins), or waits for the disk or for a compiler that it has started.
Silent and idle for MAX_IDLE_TICKS ticks on end is hung. Silent and busy for MAX_BUSY_TICKS is an
endless loop. While the engine loads it is not watched: it may wait for a download.

An API worker is asked by Ping over its channel, once it has answered for the first time. It has no long step, so
that MAX_BUSY_WORKER_TICKS is short, and a child of it (which checks grammars) is no excuse for it.

Ticks are counted, not time: where this process itself was frozen or starved, that is one tick, not many.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import psutil

from remuda.server.link import EngineLink, EngineStatus

TICK_S: Final = 0.5
# 3.5 s: with the tick that was under way, the first one of silence, and the kill, below five seconds.
MAX_IDLE_TICKS: Final = 7
# 20 minutes: far above the longest legal step.
MAX_BUSY_TICKS: Final = 2400
# 15 s: what a request makes a worker's own loop do takes a fraction of a second.
MAX_BUSY_WORKER_TICKS: Final = 30
# The kernel counts in such steps; answering the socket's own traffic costs a hundredth of it in a tick.
_LEAST_CPU_S: Final = 0.01
_BUSY_STATES: Final = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)


class Pulse:
    """The verdict, from tick to tick."""

    def __init__(self, max_busy_ticks: int = MAX_BUSY_TICKS) -> None:
        self._max_busy_ticks = max_busy_ticks
        self._num_idle = 0
        self._num_silent = 0

    def tick(self, *, has_answered: bool, is_busy: bool) -> bool:
        """Note how the process was since the last tick; True once it is hung."""
        self._num_silent = 0 if has_answered else self._num_silent + 1
        self._num_idle = 0 if has_answered or is_busy else self._num_idle + 1
        return self._num_idle >= MAX_IDLE_TICKS or self._num_silent >= self._max_busy_ticks


class ActivityMeter:
    """Whether a process does anything, by what the kernel counts.

    may_wait_for_child: while it has a child, it may be waiting for that.
    """

    def __init__(self, pid: int, *, may_wait_for_child: bool = True) -> None:
        self._pid = pid
        self._process: psutil.Process | None = None
        self._may_wait_for_child = may_wait_for_child
        self._cpu_s = 0.0

    def is_busy(self) -> bool:
        """It has computed since the last call, or is about to, or waits for the disk or for a child."""
        try:
            process = self._process = self._process or psutil.Process(self._pid)
            times, status = process.cpu_times(), process.status()
            has_child = self._may_wait_for_child and bool(process.children())
        except psutil.Error:
            # It has just ended, which its supervisor learns from the kernel.
            return True
        used = times.user + times.system
        has_computed, self._cpu_s = used - self._cpu_s >= _LEAST_CPU_S, used
        return has_computed or status in _BUSY_STATES or has_child


async def watch_heartbeat(link: EngineLink, pid: int, on_hung: Callable[[], None]) -> None:
    """Watch the engine process that `link` speaks to; call `on_hung`, once, where it hangs. Ends with that."""
    loop = asyncio.get_running_loop()
    pulse, meter, last = Pulse(), ActivityMeter(pid), None
    while True:
        began = loop.time()
        # Where it is silent, this is its last word once more.
        stats = await link.ask_stats(TICK_S)
        await asyncio.sleep(began + TICK_S - loop.time())
        if link.status is not EngineStatus.READY:
            pulse, last = Pulse(), None
            continue
        has_answered, last = stats is not last, stats
        if pulse.tick(has_answered=has_answered, is_busy=not has_answered and meter.is_busy()):
            on_hung()
            return


class WorkerPulse:
    """Watches one API worker, from its first answer on. `ping` asks it; its answers go to `note_pong`."""

    def __init__(self, pid: int, ping: Callable[[], None]) -> None:
        self._ping = ping
        self._meter = ActivityMeter(pid, may_wait_for_child=False)
        self._pulse: Pulse | None = None
        self._has_answered = False

    def note_pong(self) -> None:
        """It has answered."""
        self._has_answered = True
        if self._pulse is None:
            self._pulse = Pulse(MAX_BUSY_WORKER_TICKS)

    async def watch(self, on_hung: Callable[[], None]) -> None:
        """Ask at every tick; call `on_hung`, once, where the worker hangs. Ends with that."""
        while True:
            self._ping()
            await asyncio.sleep(TICK_S)
            has_answered, self._has_answered = self._has_answered, False
            is_busy = not has_answered and self._meter.is_busy()
            if self._pulse is not None and self._pulse.tick(has_answered=has_answered, is_busy=is_busy):
                on_hung()
                return
