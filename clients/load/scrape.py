"""Samples a server's `/metrics` while a load is held: Remuda's names, and vLLM's where they mean the same."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from remuda.clients.report.results import ServerSample

_FIELDS: Final = {
    "num_requests_running": "num_running",
    "num_requests_waiting": "num_waiting",
    "state_slots_used": "slots_used",
    "state_slots_free": "slots_free",
    "state_pool_bytes": "pool_bytes",
    "engine_resident_memory_bytes": "engine_resident_bytes",
    "server_resident_memory_bytes": "server_resident_bytes",
    "engine_device_memory_bytes": "device_bytes",
    "prompt_tokens_total": "prompt_tokens",
    "generation_tokens_total": "output_tokens",
}
# One pattern over the whole page: prometheus_client's parser takes milliseconds, which the streams would wait.
_LINE: Final = re.compile(
    rf"^(?:remuda:|vllm:)({'|'.join(_FIELDS)})(?:\{{.*\}})? ([-+.0-9eE]+)|^(process_resident_memory_bytes) (\S+)",
    re.MULTILINE,
)


def parse_sample(page: str, t: float) -> ServerSample:
    """Values of a name are added up over labels; `process_resident_memory_bytes` where no other memory is."""
    found: dict[str, float] = {}
    process: float | None = None
    for match in _LINE.finditer(page):
        if match[3]:
            process = float(match[4])
        elif match[1]:
            name = _FIELDS[match[1]]
            found[name] = found.get(name, 0.0) + float(match[2])
    if process is not None and "server_resident_bytes" not in found and found:
        found["server_resident_bytes"] = process
    return ServerSample(t=t, **found)


@dataclass
class Scraper:
    """Reads `url` every `interval` seconds between `start` and `stop`. url None: there are no metrics.

    start_time: the run's, by time.perf_counter.
    """

    session: aiohttp.ClientSession
    url: str | None
    start_time: float
    interval: float = 1.0
    samples: list[ServerSample] = field(default_factory=list)
    num_failed: int = 0
    _task: asyncio.Task[None] | None = None

    async def once(self) -> ServerSample:
        """One sample now; one without values where the server does not answer."""
        t = time.perf_counter() - self.start_time
        if self.url is None:
            return ServerSample(t=t)
        try:
            async with self.session.get(self.url, timeout=aiohttp.ClientTimeout(total=10)) as response:
                page = (await response.read()).decode(errors="replace") if response.status == 200 else ""
        except (TimeoutError, aiohttp.ClientError, OSError):
            page = ""
        if not page:
            self.num_failed += 1
        return parse_sample(page, t)

    def start(self) -> None:
        """Sample from now on."""
        self.samples, self.num_failed = [], 0
        if self.url is not None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> list[ServerSample]:
        """End, with a last sample; returns all of them that had values."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self.samples.append(await self.once())
        return [sample for sample in self.samples if sample != ServerSample(t=sample.t)]

    async def _run(self) -> None:
        while True:
            self.samples.append(await self.once())
            await asyncio.sleep(self.interval)
