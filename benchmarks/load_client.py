"""How many events a second can `remuda load` read from one process? A server in another process only writes.

Beside it: the same bytes read by aiohttp and thrown away. Usage: python benchmarks/load_client.py [--rounds 5]
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time

import uvloop

from remuda.clients.load.ceiling import NUM_STREAMS, measure_ceiling
from remuda.clients.load.exchange import Wire
from report import report

TARGET = 20_000


async def read_nothing(num_events: int) -> float:
    """Events/s where bytes are read and not looked at."""
    command = [sys.executable, "-m", "remuda.clients.load.ceiling_server", str(num_events)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        wire = Wire(f"http://127.0.0.1:{int(process.stdout.readline())}/", timeout=300)
        async with wire.session() as session:

            async def drain() -> None:
                async with session.post(wire.url, data=b"{}") as response:
                    while await response.content.readany():
                        pass

            began = time.perf_counter()
            await asyncio.gather(*(drain() for _ in range(NUM_STREAMS)))
            wall = time.perf_counter() - began
        process.kill()
    return NUM_STREAMS * num_events / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=4000, help="of each stream")
    arguments = parser.parse_args()
    ours, floors, shares = [], [], []
    for _ in range(arguments.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        ceiling, num_read = uvloop.run(measure_ceiling(arguments.events))
        shares.append((time.process_time() - cpu) / (time.perf_counter() - wall))
        assert num_read == NUM_STREAMS * arguments.events
        ours.append(ceiling.events_per_s)
        floors.append(uvloop.run(read_nothing(arguments.events)))
    rows = [
        {"reader": "remuda load", "events/s": statistics.median(ours), "least": min(ours), "most": max(ours)},
        {
            "reader": "aiohttp alone",
            "events/s": statistics.median(floors),
            "least": min(floors),
            "most": max(floors),
        },
    ]
    verdict = "reached" if min(ours) >= TARGET else "MISSED"
    notes = [
        f"{NUM_STREAMS} streams of {arguments.events} events, all counted; medians of {arguments.rounds} rounds",
        f"target: {TARGET:,} events/s from one process, in every round: {verdict}",
        f"the client took {statistics.median(shares):.0%} of a core, and waited for the server otherwise",
    ]
    report("events read by one load-test process", rows, notes)
    sys.exit(min(ours) < TARGET)


if __name__ == "__main__":
    main()
