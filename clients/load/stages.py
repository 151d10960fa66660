"""Holds the loads of a run one after another: one, those of a sweep, or ever more until the server is full."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from remuda.clients.load.arrivals import Arrivals
from remuda.clients.load.drive import Driver, Load, Sender
from remuda.clients.load.options import LoadOptions
from remuda.clients.load.progress import Progress, line_of
from remuda.clients.load.saturation import find_saturation, is_full
from remuda.clients.load.scrape import Scraper
from remuda.clients.load.tally import tally
from remuda.clients.load.watch import ClientWatch
from remuda.clients.report.results import Ceiling, RequestResult, Stage

DEFAULT_CONCURRENCY: Final = 8
DEFAULT_DURATION_S: Final = 30.0
MOST_CONCURRENCY: Final = 4096


@dataclass
class StageRun:
    """stages, requests: of the loads that were held so far; those of an interrupted one are among them."""

    options: LoadOptions
    seed: int
    sender: Sender
    scraper: Scraper
    progress: Progress
    ceiling: Ceiling | None
    stages: list[Stage] = field(default_factory=list)
    requests: list[RequestResult] = field(default_factory=list)

    async def run(self, stop: asyncio.Event) -> None:
        """All of them, or until `stop`."""
        await self._warm_up(stop)
        for load in self._loads():
            if stop.is_set():
                return
            await self._hold(load, stop)
            if self.options.sweep is not None and not self.options.sweep.values and self._is_full():
                return

    def saturation(self) -> str | None:
        """Of a sweep, where the server was full."""
        return find_saturation(self.stages) if self.options.sweep is not None else None

    async def _warm_up(self, stop: asyncio.Event) -> None:
        """Requests that count nowhere."""
        if self.options.warmup:
            load = Load("warm-up", concurrency=min(self.options.warmup, 8), num_requests=self.options.warmup)
            driver = Driver(self.sender, load)
            async with self.progress.shown(line_of(driver)):
                await driver.run(stop)

    def _loads(self) -> Iterator[Load]:
        options, sweep = self.options, self.options.sweep
        if sweep is None:
            if options.rates is not None:
                yield self._open(*options.rates)
            else:
                yield self._closed(options.concurrency or DEFAULT_CONCURRENCY)
            return
        values = sweep.values or [2.0**power for power in range(MOST_CONCURRENCY.bit_length())]
        for value in values:
            yield self._closed(int(value)) if sweep.of == "concurrency" else self._open(value, value)

    def _closed(self, concurrency: int) -> Load:
        return replace(self._ends(), label=f"concurrency={concurrency}", concurrency=concurrency)

    def _open(self, start: float, end: float) -> Load:
        options = self.options
        seed = self.seed + len(self.stages)
        if start != end:
            assert options.duration is not None
            arrivals = Arrivals(options.process, start, end, options.duration, seed)
        else:
            # A ramp rises from nothing.
            arrivals = Arrivals(options.process, 0.0 if options.ramp else end, end, options.ramp, seed)
        label = f"rate={end:g}/s" if start == end else f"rate={start:g} to {end:g}/s"
        return replace(self._ends(), label=label, arrivals=arrivals, max_in_flight=options.max_in_flight)

    def _ends(self) -> Load:
        options = self.options
        has_end = options.num_requests is not None or options.duration is not None
        duration = options.duration if has_end else DEFAULT_DURATION_S
        return Load("", num_requests=options.num_requests, duration=duration, ramp=options.ramp)

    async def _hold(self, load: Load, stop: asyncio.Event) -> None:
        watch = ClientWatch()
        driver = Driver(self.sender, load)
        self.scraper.start()
        watch.start()
        async with self.progress.shown(line_of(driver)):
            held = await driver.run(stop)
        watch.num_events = driver.num_tokens
        await watch.stop()
        held.samples = await self.scraper.stop()
        held.busy_share = watch.busy_share
        held.notes += watch.warnings(self.ceiling.events_per_s if self.ceiling else None)
        stage = tally(held, self.scraper.start_time, self.options.objective)
        self.requests += [record.result(len(self.stages), self.scraper.start_time) for record in held.records]
        self.stages.append(stage)
        for note in stage.notes:
            self.progress.say(f"{load.label}: {note}")
        self.progress.say(
            f"{load.label}: {stage.num_requests} requests, {stage.num_failed} failed, "
            f"{stage.output_tokens_per_s:,.1f} output tokens/s"
        )

    def _is_full(self) -> bool:
        before = self.stages[-2] if len(self.stages) > 1 else None
        return is_full(before, self.stages[-1]) is not None
