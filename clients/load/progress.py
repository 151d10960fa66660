"""Shows on stderr how a run goes: one line that changes on a terminal, a line every few seconds elsewhere."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from remuda.clients.load.drive import Driver
from remuda.clients.report.units import plain

_TERMINAL_S: Final = 0.25
_PIPE_S: Final = 5.0


class Progress:
    """Any number of things are shown after one another."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, line: str) -> None:
        """A line that stays; a part of it may be of the server's making."""
        self.console.print(Text(plain(line)), soft_wrap=True)

    @contextlib.asynccontextmanager
    async def shown(self, line: Callable[[], str]) -> AsyncIterator[None]:
        """What `line` returns, again and again for the length of a block."""
        task = asyncio.create_task(self._on_terminal(line) if self.console.is_terminal else self._in_pipe(line))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _on_terminal(self, line: Callable[[], str]) -> None:
        # Drawn by this loop: rich's own thread would hold up the streams.
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(Text(line(), no_wrap=True, overflow="ellipsis"), refresh=True)
                await asyncio.sleep(_TERMINAL_S)

    async def _in_pipe(self, line: Callable[[], str]) -> None:
        said = ""
        while True:
            await asyncio.sleep(_PIPE_S)
            if (now := line()) != said:
                self.say(now)
                said = now


def line_of(driver: Driver) -> Callable[[], str]:
    """Of one load that is held, with the tokens per second since the last call."""
    before = (time.perf_counter(), 0)

    def line() -> str:
        nonlocal before
        now, tokens = time.perf_counter(), driver.num_tokens
        rate = (tokens - before[1]) / max(now - before[0], 1e-9)
        before = (now, tokens)
        load, held = driver.load, driver.held
        of = f"/{load.num_requests}" if load.num_requests else ""
        until = f"/{load.duration:g}" if load.duration else ""
        failed = f", {driver.num_failed} failed" if driver.num_failed else ""
        return (
            f"{load.label}: {now - held.start:.0f}{until} s, {len(held.records)}{of} requests ended{failed}, "
            f"{driver.in_flight} in flight, {rate:,.0f} tokens/s"
        )

    return line
