"""How many events a second this client can read, by its own code, from a server that only writes."""

import asyncio
import sys
import time
from typing import Final

from remuda.clients.load.errors import LoadError
from remuda.clients.load.exchange import Wire, exchange
from remuda.clients.load.record import Record
from remuda.clients.report.results import Ceiling

NUM_STREAMS: Final = 64
_EVENTS_PER_STREAM: Final = 1000
_START_S: Final = 60.0


async def measure_ceiling(num_events: int = _EVENTS_PER_STREAM) -> tuple[Ceiling, int]:
    """From NUM_STREAMS streams at a time; the server is a process on this machine. Also how many events came.

    Raises LoadError where that process does not start.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remuda.clients.load.ceiling_server", str(num_events)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
        if not line.strip().isdigit():
            raise LoadError("the server that measures this client's ceiling did not start")
        return await _read_all(int(line))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _read_all(port: int) -> tuple[Ceiling, int]:
    wire = Wire(f"http://127.0.0.1:{port}/", timeout=300)
    records = [Record(0.0) for _ in range(NUM_STREAMS)]
    async with wire.session() as session:
        began = time.perf_counter()
        await asyncio.gather(*(exchange(session, wire.url, b"{}", r, lambda *_: None) for r in records))
        wall = time.perf_counter() - began
    failed = next((record for record in records if not record.is_ok), None)
    if failed is not None:
        raise LoadError(f"this client's ceiling could not be measured: {failed.error}: {failed.message}")
    num_read = sum(record.seen_tokens for record in records)
    return Ceiling(events_per_s=num_read / wall), num_read
