"""Drives sequences to growing contexts. At each length all decode at a time while gaps and memory are sampled.

No prompt is read meanwhile: a window opens when the last sequence decodes, and the sequences go on past its end.
"""

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from remuda.clients.load.drive import Sender
from remuda.clients.load.errors import LoadError
from remuda.clients.load.exchange import exchange
from remuda.clients.load.record import Record
from remuda.clients.load.samples import Samples
from remuda.clients.load.scrape import Scraper
from remuda.clients.report.results import ContextPoint, LongContext, ServerSample

_TAKEN_S: Final = 5.0
# Tokens of each sequence that make a part of a window.
PART: Final = 256


@dataclass(frozen=True)
class Plan:
    """lengths: of prompts in tokens, shortest first. settle: tokens of each sequence from the moment when the last
    one decodes to the window; window: those of each that are sampled. rounds: through all lengths, in turns up and
    down, so that a machine that drifts hurts no length more than another. num_warmups: times that the shortest
    length comes before, without being measured.
    """

    lengths: tuple[int, ...]
    num_sequences: int
    settle: int = 8
    window: int = 64
    rounds: int = 1
    num_warmups: int = 1


@dataclass
class _Flight:
    """Sequences of one length in one round. seen: tokens of each since all decode, and how many gaps are taken."""

    plan: Plan
    is_decoding: dict[int, bool] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    last_first: float = 0.0
    full: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, record: Record, num_tokens: int, now: float) -> None:
        """Called with every read of any sequence."""
        plan, key = self.plan, id(record)
        if len(self.is_decoding) < plan.num_sequences:
            self.is_decoding[key] = True
            self.last_first = now
            return
        self.seen[key] = self.seen.get(key, 0) + num_tokens
        is_settled = len(self.seen) == plan.num_sequences and min(self.seen.values()) > plan.settle
        if not is_settled and not self.taken:
            return
        wanted = min(plan.window - self.taken.setdefault(key, 0), num_tokens)
        if wanted > 0:
            self.gaps.extend(record.gaps[len(record.gaps) - wanted :])
            self.taken[key] += wanted
            if len(self.taken) == plan.num_sequences and min(self.taken.values()) >= plan.window:
                self.full.set()


@dataclass
class _Point:
    """What the rounds found at one length. sample: of the first round, before any longer context was held."""

    itl: Samples = field(default_factory=Samples)
    itl_parts: list[float] = field(default_factory=list)
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    sample: ServerSample | None = None


class LongContextRun:
    """The whole measurement; `points` are there whenever it is interrupted."""

    def __init__(self, plan: Plan, sender_of: Callable[[int], Sender], scraper: Scraper) -> None:
        self.plan = plan
        self.status = ""
        self.samples: list[ServerSample] = []
        self._sender_of, self._scraper = sender_of, scraper
        self._points = {length: _Point() for length in plan.lengths}

    async def run(self) -> None:
        """All rounds. Raises LoadError where a sequence ends before its window: the length cannot be measured."""
        for _ in range(self.plan.num_warmups):
            await self._fly(self.plan.lengths[0], 0, _Point())
        for number in range(1, self.plan.rounds + 1):
            lengths = self.plan.lengths if number % 2 else self.plan.lengths[::-1]
            for length in lengths:
                await self._fly(length, number, self._points[length])

    def result(self, state_bytes: int | None) -> LongContext:
        """Of the lengths that were measured so far."""
        points = [
            ContextPoint(
                context_tokens=length,
                num_sequences=self.plan.num_sequences,
                itl=point.itl.distribution(),
                itl_parts=point.itl_parts,
                prefill_tokens_per_s=point.prefill_tokens / point.prefill_s,
                sample=point.sample,
            )
            for length, point in self._points.items()
            if point.sample is not None
        ]
        return LongContext(num_sequences=self.plan.num_sequences, points=points, state_bytes=state_bytes)

    async def _fly(self, length: int, number: int, point: _Point) -> None:
        flight, sender = _Flight(self.plan), self._sender_of(length)
        name = f"round {number}" if number else "warm-up"
        drawn = [sender.draw() for _ in range(self.plan.num_sequences)]
        records = [Record(0.0, prompt.prompt_tokens) for prompt, _ in drawn]
        began = time.perf_counter()
        tasks: list[asyncio.Task[None]] = []
        try:
            for record, (_, body) in zip(records, drawn, strict=True):
                tasks.append(asyncio.create_task(exchange(sender.session, sender.url, body, record, flight.take)))
                self.status = f"{name}: {length:,} tokens, {len(tasks)} of {len(records)} sent"
                await _until_taken(record, tasks[-1])
            await self._until_full(flight, tasks, records, f"{name}: {length:,} tokens")
            sample = await self._scraper.once()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        point.itl.extend(flight.gaps)
        point.itl_parts += medians(flight.gaps, PART * self.plan.num_sequences)
        point.prefill_tokens += length * self.plan.num_sequences
        point.prefill_s += flight.last_first - began
        point.sample = point.sample or sample
        self.samples.append(sample)
        await self._until_idle()

    async def _until_full(
        self, flight: _Flight, tasks: list[asyncio.Task[None]], records: list[Record], name: str
    ) -> None:
        full = asyncio.create_task(flight.full.wait())
        try:
            while not full.done():
                await asyncio.wait({full, *tasks}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                self.status = f"{name}, {len(flight.is_decoding)} of {len(tasks)} decode, {len(flight.gaps)} gaps"
                ended = [record for task, record in zip(tasks, records, strict=True) if task.done()]
                if ended and not full.done():
                    raise LoadError(f"{name}: a sequence ended before all could be sampled: {_why(ended[0])}")
        finally:
            full.cancel()

    async def _until_idle(self) -> None:
        """The next length begins when the server has given up these sequences, or does not say for 10 s."""
        for _ in range(100):
            if not (await self._scraper.once()).num_running:
                return
            await asyncio.sleep(0.1)


def medians(gaps: "array[float]", size: int) -> list[float]:
    """Of each `size` gaps, as they came; what is left over is a part too if it is at least half of one, or all."""
    starts = range(0, max(len(gaps) - size // 2, 1), size)
    return [float(np.median(gaps[start : start + size])) for start in starts] if gaps else []


async def _until_taken(record: Record, task: asyncio.Task[None]) -> None:
    """The server has answered, or is not going to soon: not more than one prompt is on its way to it."""
    patience = time.perf_counter() + _TAKEN_S
    while record.taken is None and not task.done() and time.perf_counter() < patience:
        await asyncio.sleep(0.005)


def _why(record: Record) -> str:
    if record.error is not None:
        return f"{record.error}: {record.message}"
    return f"finish reason {record.finish_reason} after {record.output_tokens} tokens; raise --output-tokens"
