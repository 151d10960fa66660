"""Clients that are slow on purpose: they never read, or never finish asking."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

from benchmarks.faults.client import Connection, story
from benchmarks.faults.probe import EngineProbe
from benchmarks.faults.server import Server
from benchmarks.faults.table import Row, at_most, at_rest, is_none

_STARTS = (
    b"",
    b"GET /health HTT",
    b"GET /health HTTP/1.1\r\nhost: x\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
)


async def _connect(server: Server, receive_buffer: int = 0) -> socket.socket:
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (server.host, server.port))
    return raw


@contextlib.asynccontextmanager
async def _zero_rate(server: Server, count: int) -> AsyncIterator[list[Connection]]:
    """So many streams that nobody reads."""
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(count):
        connection = Connection(server.host, server.port)
        raw = await _connect(server, 4096)
        # A reader whose buffer is full: asyncio reads no more than twice this limit.
        reader = asyncio.StreamReader(limit=1, loop=loop)
        transport, protocol = await loop.create_connection(
            lambda reader=reader: asyncio.StreamReaderProtocol(reader, loop=loop), sock=raw
        )
        connection.take_over(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        await connection.send(story(1_000_000))
        transport.pause_reading()
        connections.append(connection)
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


async def _measure_gaps(server: Server, count: int, seconds: float) -> float:
    """The 99th percentile of the time between two pieces of `count` streams that are read, in ms."""
    gaps: list[float] = []

    async def one() -> None:
        async with Connection(server.host, server.port) as connection:
            await connection.send(story(1_000_000))
            answer = await connection.start()
            until = time.monotonic() + seconds
            async for _ in connection.pieces(answer):
                if time.monotonic() > until:
                    break
            gaps.extend(b - a for a, b in zip(answer.times[20:], answer.times[21:], strict=False))

    await asyncio.gather(*(one() for _ in range(count)))
    return 1000 * sorted(gaps)[int(0.99 * len(gaps))]


async def _read_all(server: Server, count: int) -> None:
    async def one() -> None:
        async with Connection(server.host, server.port) as connection:
            await connection.send(story(1_000_000))
            async for _ in connection.pieces(await connection.start()):
                pass

    await asyncio.gather(*(one() for _ in range(count)))


def zero_rate_readers(count: int) -> list[Row]:
    """Beside eight who read. For comparison, the same number of streams that are read, so that the engine's
    steps are as large: what is left is what the slowness costs."""
    test = f"{count} readers at 0 B/s"

    async def main(server: Server) -> tuple[float, float, float, float]:
        crowd = asyncio.create_task(_read_all(server, count))
        await asyncio.sleep(1)
        beside_readers = await _measure_gaps(server, 8, 6)
        crowd.cancel()
        await asyncio.wait([crowd])
        loop = asyncio.get_running_loop()
        with EngineProbe(server.engine) as probe:
            await loop.run_in_executor(None, probe.until_free, server.num_slots, 30)
            before, peak = server.memory(), 0
            async with _zero_rate(server, count):
                began = time.monotonic()
                await asyncio.sleep(1)
                gaps = asyncio.create_task(_measure_gaps(server, 8, 6))
                aborted_s = 60.0
                while time.monotonic() - began < aborted_s:
                    peak = max(peak, await loop.run_in_executor(None, server.memory))
                    stats = await loop.run_in_executor(None, probe.stats)
                    if gaps.done() and stats is not None and stats.num_running == 0:
                        aborted_s = time.monotonic() - began
                    await asyncio.sleep(0.5)
            return beside_readers, await gaps, (peak - before) / 1e6, aborted_s

    # One thread for the engine: the worker and the clients have the other core.
    with Server(count + 16, "--num-threads", "1") as server:
        asyncio.run(_measure_gaps(server, 8, 2))
        time.sleep(1)
        server.note_rest()
        beside_readers, beside, grown, aborted_s = asyncio.run(main(server))
        growth = 100 * (beside / beside_readers - 1)
        figure = f"{beside:.1f} ms beside {beside_readers:.1f} ms: {growth:+.0f} %"
        return [
            at_most(f"{test}: memory of the worker", grown, 50, "MB"),
            at_most(f"{test}: all aborted", aborted_s, 31, "s"),
            Row(f"{test}: others' p99 gap, beside the same with readers", figure, "< +10 %", growth < 10),
            at_rest(test, server.unrest()),
        ]


def slowloris(count: int, within_s: float = 15.0) -> list[Row]:
    """Connections that say nothing, half a head or half a body."""
    test = f"{count} half-open sockets"

    async def main(server: Server) -> tuple[int, list[float]]:
        loop = asyncio.get_running_loop()
        sockets = []
        for i in range(count):
            sockets.append(await _connect(server))
            await loop.sock_sendall(sockets[-1], _STARTS[i % len(_STARTS)])
        began, times = time.monotonic(), []
        closed: set[socket.socket] = set()
        while len(closed) < count and time.monotonic() - began < within_s:
            asked = time.monotonic()
            assert await loop.run_in_executor(None, server.get, "/health") == 200
            times.append(1000 * (time.monotonic() - asked))
            for found in set(sockets) - closed:
                with contextlib.suppress(BlockingIOError):
                    try:
                        if found.recv(65536) == b"":
                            closed.add(found)
                    except ConnectionError:
                        closed.add(found)
            await asyncio.sleep(0.05)
        for found in sockets:
            found.close()
        return count - len(closed), times

    with Server(4) as server:
        time.sleep(1)
        server.note_rest()
        num_open, times = asyncio.run(main(server))
        return [
            is_none(f"{test}: open after {within_s:g} s", num_open, "sockets"),
            at_most(f"{test}: p99 of /health", sorted(times)[int(0.99 * len(times))], 100, "ms"),
            at_rest(test, server.unrest()),
        ]
