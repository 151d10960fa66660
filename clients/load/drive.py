"""Holds one load: a closed loop of so many requests at a time, or an open loop in which requests are due."""

import asyncio
import math
import time
from collections.abc import Awaitable
from dataclasses import dataclass

import aiohttp

from remuda.clients.load.arrivals import Arrivals
from remuda.clients.load.bodies import BodyForm
from remuda.clients.load.exchange import exchange
from remuda.clients.load.prompts import Prompt, PromptSource
from remuda.clients.load.record import Record
from remuda.clients.load.tally import Held


@dataclass(frozen=True)
class Load:
    """Either concurrency or arrivals. It ends after num_requests or duration seconds, whichever is first; requests
    that run then are waited for. ramp: seconds over which a closed loop starts. max_in_flight: of an open loop.
    """

    label: str
    concurrency: int | None = None
    arrivals: Arrivals | None = None
    num_requests: int | None = None
    duration: float | None = None
    ramp: float = 0.0
    max_in_flight: int | None = None


@dataclass(frozen=True)
class Sender:
    """What is sent, and where to."""

    session: aiohttp.ClientSession
    url: str
    form: BodyForm
    source: PromptSource

    def draw(self) -> tuple[Prompt, bytes]:
        """The next prompt and its body."""
        prompt = self.source.draw()
        return prompt, self.form.encode(prompt)


class Driver:
    """Runs one Load; its counts may be read meanwhile."""

    def __init__(self, sender: Sender, load: Load) -> None:
        self.load = load
        self.num_started = self.num_failed = self.in_flight = 0
        self.num_reads = self.num_tokens = 0
        self._sender = sender
        self.held = Held(load.label, time.perf_counter(), load.concurrency)
        if load.arrivals is not None:
            self.held.rate = load.arrivals.end
        self._until = self.held.start + (load.duration or math.inf)
        self._last_end = self.held.start

    async def run(self, stop: asyncio.Event) -> Held:
        """To its end, or until `stop` is set: what runs then is cut off."""
        await unless_stopped(self._closed() if self.load.arrivals is None else self._open(), stop)
        ended = time.perf_counter() if stop.is_set() or not self._has_all() else self._last_end
        self.held.window = min(ended, self._until) - self.held.start
        return self.held

    async def _closed(self) -> None:
        assert self.load.concurrency is not None
        async with asyncio.TaskGroup() as group:
            for i in range(self.load.concurrency):
                group.create_task(self._repeat(self.load.ramp * i / self.load.concurrency))

    async def _repeat(self, delay: float) -> None:
        await asyncio.sleep(delay)
        while not self._is_over(time.perf_counter()):
            self.num_started += 1
            prompt, body = self._sender.draw()
            await self._one(Record(time.perf_counter(), prompt.prompt_tokens), body)

    async def _open(self) -> None:
        assert self.load.arrivals is not None
        free = asyncio.Semaphore(self.load.max_in_flight or 2**31)
        async with asyncio.TaskGroup() as group:
            for offset in self.load.arrivals.times():
                due = self.held.start + offset
                if self._is_over(due):
                    # The load lasts as long as was asked, even if nothing more is due.
                    await _sleep_until(0.0 if self._has_all() else self._until)
                    break
                # Made before it is due, so that this does not make it late.
                prompt, body = self._sender.draw()
                await _sleep_until(due)
                await free.acquire()
                self.num_started += 1
                record = Record(due, prompt.prompt_tokens, origin=due)
                group.create_task(self._one(record, body)).add_done_callback(lambda _: free.release())

    async def _one(self, record: Record, body: bytes) -> None:
        self.in_flight += 1
        try:
            await exchange(self._sender.session, self._sender.url, body, record, self._count)
        except asyncio.CancelledError:
            self.held.num_cut += 1
            raise
        finally:
            self.in_flight -= 1
        self._last_end = time.perf_counter()
        self.num_failed += not record.is_ok
        self.held.records.append(record)

    def _count(self, record: Record, num_tokens: int, now: float) -> None:
        self.num_reads += 1
        self.num_tokens += num_tokens
        if now <= self._until:
            self.held.num_window_tokens += num_tokens

    def _is_over(self, now: float) -> bool:
        return now >= self._until or self._has_all()

    def _has_all(self) -> bool:
        return self.load.num_requests is not None and self.num_started >= self.load.num_requests


async def unless_stopped(work: Awaitable[None], stop: asyncio.Event) -> None:
    """Wait for `work`, and cancel it when `stop` is set before. Raises what it raises."""
    task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        await task
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _sleep_until(due: float) -> None:
    # The loop's timers count whole milliseconds, and may fire a little early.
    while (left := due - time.perf_counter()) > 0:
        await asyncio.sleep(left)
