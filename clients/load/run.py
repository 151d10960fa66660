"""One run of the load test, from asking the server to the result; command.py makes files and a summary of it."""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

import aiohttp
import numpy as np
import uvloop
from rich.console import Console

from remuda.clients.load.ceiling import measure_ceiling
from remuda.clients.load.drive import Sender, unless_stopped
from remuda.clients.load.errors import LoadError
from remuda.clients.load.exchange import Wire
from remuda.clients.load.lengths import Lengths
from remuda.clients.load.long_context import LongContextRun, Plan
from remuda.clients.load.machine import allow_many_files, describe_machine
from remuda.clients.load.options import LongContextOptions, RunOptions
from remuda.clients.load.progress import Progress
from remuda.clients.load.prompts import PromptSource
from remuda.clients.load.scrape import Scraper
from remuda.clients.load.sources import LONG_CONTEXT_OUTPUT, body_form, prompt_source, random_source
from remuda.clients.load.stages import StageRun
from remuda.clients.load.target import Found, base_url, discover, is_same_server
from remuda.clients.report.results import Ceiling, LoadResult, LongContext

_TIMEOUT_S: Final = 600.0
_LONG_TIMEOUT_S: Final = 86_400.0
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """is_failed: nothing was measured, or not all that was asked for."""

    result: LoadResult
    is_interrupted: bool
    is_failed: bool


def run_load(options: RunOptions, errors: Console) -> Ended:
    """Blocks until the run has ended. Raises LoadError, UsageError, KeyboardInterrupt before there is a result."""
    allow_many_files()
    # What is here now lives on; the collector need not look at it while streams wait.
    gc.collect()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Run(options, Progress(errors)).go())
    finally:
        gc.unfreeze()


@dataclass
class _Run:
    options: RunOptions
    progress: Progress
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    notes: list[str] = field(default_factory=list)
    is_failed: bool = False

    async def go(self) -> Ended:
        options, url = self.options, base_url(self.options.server.url)
        path = "/v1/chat/completions" if options.server.endpoint == "chat" else "/v1/completions"
        timeout = options.server.timeout or (_LONG_TIMEOUT_S if options.long_context else _TIMEOUT_S)
        wire = Wire(url + path, timeout, options.server.key)
        async with wire.session() as session, _bare_session() as bare:
            server, prompts = options.server, options.prompts
            metrics_url = server.metrics_url or f"{url}/metrics"
            # A key is for the server alone: metrics may be elsewhere.
            metrics_session = session if is_same_server(url, metrics_url) else bare
            vocab_size = prompts.vocab_size
            found = await discover(session, url, server.model, vocab_size, metrics_session, metrics_url)
            self.notes += found.notes
            sender = Sender(session, wire.url, body_form(options, found), _source(options, found))
            self.progress.say(f"load test of {found.target.model} at {url}")
            ceiling = await self._ceiling()
            scraper = Scraper(metrics_session, found.metrics_url, time.perf_counter())
            with _stopped_by_interrupt(self.stop):
                return await self._measure(found, sender, scraper, ceiling)

    async def _ceiling(self) -> Ceiling | None:
        if not self.options.load.has_ceiling:
            return None
        ceiling, _ = await measure_ceiling()
        self.progress.say(f"this client can read {ceiling.events_per_s:,.0f} events/s")
        return ceiling

    async def _measure(self, found: Found, sender: Sender, scraper: Scraper, ceiling: Ceiling | None) -> Ended:
        options = self.options
        run = StageRun(options.load, options.prompts.seed, sender, scraper, self.progress, ceiling)
        long_context = None
        created = datetime.now(UTC).isoformat(timespec="seconds")
        if options.long_context is not None:
            long_context = await self._long_context(options.long_context, found, sender, scraper)
            self.is_failed |= not long_context.points
        else:
            await run.run(self.stop)
            self.is_failed |= all(stage.num_failed == stage.num_requests for stage in run.stages)
        if self.stop.is_set():
            self.notes.append("interrupted: the run was ended before its time")
        result = LoadResult(
            version=version("remuda"),
            created=created,
            command=list(options.command),
            machine=describe_machine(),
            target=found.target,
            settings=options.settings,
            stages=run.stages,
            requests=run.requests,
            long_context=long_context,
            ceiling=ceiling,
            saturation=run.saturation(),
            notes=self.notes,
        )
        return Ended(result, self.stop.is_set(), self.is_failed)

    async def _long_context(
        self, asked: LongContextOptions, found: Found, sender: Sender, scraper: Scraper
    ) -> LongContext:
        prompts, is_chat = self.options.prompts, self.options.server.endpoint == "chat"
        random = np.random.default_rng(prompts.seed)
        output = prompts.output_tokens or LONG_CONTEXT_OUTPUT

        def sender_of(length: int) -> Sender:
            source = random_source(
                prompts, found, random, Lengths("fixed", length, length), output, is_chat=is_chat
            )
            return Sender(sender.session, sender.url, sender.form, source)

        plan = Plan(
            *(asked.lengths, asked.num_sequences, asked.settle, asked.window, asked.rounds),
            num_warmups=max(self.options.load.warmup, 1),
        )
        run = LongContextRun(plan, sender_of, scraper)
        async with self.progress.shown(lambda: run.status):
            try:
                await unless_stopped(run.run(), self.stop)
            except LoadError as error:
                self.is_failed = True
                self.notes.append(str(error))
                self.progress.say(str(error))
        state_bytes = (found.target.info or {}).get("slot_bytes")
        return run.result(int(state_bytes) if isinstance(state_bytes, int) else None)


def _source(options: RunOptions, found: Found) -> PromptSource:
    random = np.random.default_rng(options.prompts.seed)
    return prompt_source(options.prompts, found, random, is_chat=options.server.endpoint == "chat")


@contextlib.asynccontextmanager
async def _bare_session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.contextmanager
def _stopped_by_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets `stop`, the second ends the process."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        stop.set()
        for number in _INTERRUPTS:
            loop.remove_signal_handler(number)

    for number in _INTERRUPTS:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in _INTERRUPTS:
            loop.remove_signal_handler(number)
