"""What happens when a process is killed, stopped or told to end while it is busy."""

import asyncio
import signal
import time
from dataclasses import dataclass, field

from benchmarks.faults.client import Answer, Connection, Gone, story
from benchmarks.faults.probe import EngineProbe
from benchmarks.faults.server import Server
from benchmarks.faults.table import Row, at_most, at_rest, is_none

_ENDLESS = 1_000_000
# The budget of restarts: so many crashes within a minute end the server.
_MAX_CRASHES = 5


@dataclass
class _Crowd:
    """Streams without end. Each has ended with an answer, or was cut off (None); when, in `ended`."""

    answers: list[Answer | None] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    num_started: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def gather(self, server: Server, size: int) -> None:
        """Start so many and wait until each gets text."""
        self.tasks = [asyncio.create_task(self._one(server)) for _ in range(size)]
        while self.num_started < size:
            await asyncio.sleep(0.01)

    async def _one(self, server: Server) -> None:
        async with Connection(server.host, server.port) as connection:
            answer: Answer | None = None
            try:
                await connection.send(story(_ENDLESS))
                answer = await connection.start()
                async for _ in connection.pieces(answer):
                    self.num_started += len(answer.times) == 1
            except Gone:
                answer = None
            self.answers.append(answer)
            self.ended.append(time.monotonic())

    async def all_ended(self, within_s: float) -> bool:
        """Whether all have ended by then; the rest is called off."""
        _, left = await asyncio.wait(self.tasks, timeout=within_s)
        for task in left:
            task.cancel()
        return not left

    @property
    def num_unexplained(self) -> int:
        """Streams that ended without an error event."""
        return sum(answer is None or not answer.has_error_event for answer in self.answers)


async def _strike(server: Server, size: int, number: int, within_s: float) -> tuple[float, _Crowd]:
    """Send the engine a signal under load; seconds until the last stream had ended."""
    crowd = _Crowd()
    await crowd.gather(server, size)
    began = time.monotonic()
    server.engine.send_signal(number)
    if not await crowd.all_ended(within_s):
        return within_s, crowd
    return max(crowd.ended) - began, crowd


def killed_engine(num_kills: int) -> list[Row]:
    """SIGKILL under full load, at most four times in the life of a server; then one too many."""
    slowest_error, slowest_ready, num_unexplained, unrest, num_left = 0.0, 0.0, 0, "", num_kills
    load_s = 0.0
    while num_left > 0:
        with Server(32, "--api-workers", "2") as server:
            server.note_rest()
            load_s = max(load_s, server.start_s)
            for _ in range(min(num_left, _MAX_CRASHES - 1)):
                num_left -= 1
                seconds, crowd = asyncio.run(_strike(server, 32, signal.SIGKILL, 30))
                slowest_error = max(slowest_error, seconds)
                num_unexplained += crowd.num_unexplained
                slowest_ready = max(slowest_ready, server.wait_until_ready(60))
            unrest = unrest or server.unrest()
    test = f"engine SIGKILL × {num_kills} under load"
    return [
        at_most(f"{test}: error event to all", slowest_error, 1.0, "s"),
        is_none(f"{test}: streams without an error event", num_unexplained, "streams"),
        at_most(f"{test}: serving again (a start takes {load_s:.1f} s)", slowest_ready, 10 + load_s, "s"),
        at_rest(test, unrest),
    ]


def spent_budget() -> list[Row]:
    """Five crashes in a minute."""
    with Server(4) as server:
        for num_crashes in range(1, _MAX_CRASHES + 1):
            server.engine.kill()
            if num_crashes < _MAX_CRASHES:
                while f"crash {num_crashes} of {_MAX_CRASHES}" not in server.log:
                    time.sleep(0.02)
                server.wait_until_ready(60)
        code = server.process.wait(30)
        alive = server.get("/health", 1.0)
    figure = f"exit {code}, {'an answer' if alive else 'no answer'}"
    return [Row("five crashes in a minute", figure, "exit ≠ 0, no answer", code != 0 and not alive)]


def hung_engine() -> list[Row]:
    """SIGSTOP under load."""
    with Server(32, "--api-workers", "2") as server:
        server.note_rest()
        seconds, crowd = asyncio.run(_strike(server, 32, signal.SIGSTOP, 30))
        ready = server.wait_until_ready(60)
        return [
            at_most("engine SIGSTOP: heartbeat trips, error event to all", seconds, 5.0 + 1.0, "s"),
            is_none("engine SIGSTOP: streams without an error event", crowd.num_unexplained, "streams"),
            at_most("engine SIGSTOP: serving again after that", ready, 10 + server.start_s, "s"),
            at_rest("engine SIGSTOP", server.unrest()),
        ]


def killed_worker() -> list[Row]:
    """SIGKILL to one of two API workers under load."""

    async def main(server: Server) -> tuple[float, int, int]:
        crowd = _Crowd()
        await crowd.gather(server, 24)
        victim, other = server.workers
        num_other = sum(found.status == "ESTABLISHED" for found in other.net_connections("tcp"))
        with EngineProbe(server.engine) as probe:
            began = time.monotonic()
            victim.kill()
            while (stats := probe.stats()) is not None and stats.num_running > num_other:
                assert time.monotonic() - began < 30
                await asyncio.sleep(0.005)
            seconds = time.monotonic() - began
            await asyncio.sleep(1)
            num_ended = len(crowd.ended)
        await crowd.all_ended(0)
        return seconds, num_other, num_ended - (24 - num_other)

    with Server(32, "--api-workers", "2") as server:
        server.note_rest()
        seconds, num_other, num_hurt = asyncio.run(main(server))
        while len(server.workers) < 2:
            time.sleep(0.02)
        server.wait_until_ready(30)
        return [
            at_most("API worker SIGKILL: its requests aborted in the engine", seconds, 1.0, "s"),
            is_none(f"API worker SIGKILL: the other worker's {num_other} streams hurt", num_hurt, "streams"),
            at_rest("API worker SIGKILL", server.unrest()),
        ]


def hung_worker() -> list[Row]:
    """SIGSTOP to one of two API workers at rest: new connections that the kernel gives to it wait for its end."""
    with Server(32, "--api-workers", "2") as server:
        server.note_rest()
        victim, _ = server.workers
        victim.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        while victim in server.workers or len(server.workers) < 2:
            assert time.monotonic() - began < 60
            time.sleep(0.02)
        server.wait_until_ready(30)
        seconds = time.monotonic() - began
        statuses = [server.get(server.ready_path, 1.0) for _ in range(16)]
        return [
            at_most("API worker SIGSTOP: replaced and ready", seconds, 10.0, "s"),
            is_none("API worker SIGSTOP: refused after that", sum(s != 200 for s in statuses), "of 16"),
            at_rest("API worker SIGSTOP", server.unrest()),
        ]


def drained() -> list[Row]:
    """SIGTERM under load: some requests end by themselves, one would go on for ever. Then SIGTERM twice."""

    async def main(server: Server) -> tuple[float, Answer, int, int, _Crowd]:
        crowd = _Crowd()
        await crowd.gather(server, 1)
        connections = [Connection(server.host, server.port) for _ in range(8)]
        for connection in connections:
            await connection.send(story(500))
        answers = [await connection.start() for connection in connections]
        loop = asyncio.get_running_loop()
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while await loop.run_in_executor(None, server.get, server.ready_path) != 503:
            assert time.monotonic() - began < 5
        seconds = time.monotonic() - began
        async with Connection(server.host, server.port) as newcomer:
            refused = await newcomer.ask(story(1))
        for connection, answer in zip(connections, answers, strict=True):
            async for _ in connection.pieces(answer):
                pass
            connection.close()
        await crowd.all_ended(30)
        return seconds, refused, sum(answer.is_whole for answer in answers), len(answers), crowd

    with Server(32, "--api-workers", "2", "--drain-timeout", "6") as server:
        seconds, refused, num_whole, num_all, crowd = asyncio.run(main(server))
        code = server.process.wait(30)
    retry = refused.headers.get("retry-after")
    rows = [
        at_most("SIGTERM under load: not ready", 1000 * seconds, 200, "ms"),
        Row(
            "SIGTERM: new request",
            f"{refused.status}, retry-after {retry}",
            "503",
            refused.status == 503 and bool(retry),
        ),
        Row("SIGTERM: running requests finish", f"{num_whole} of {num_all}", "all", num_whole == num_all),
        is_none("SIGTERM: endless stream without an error event at the timeout", crowd.num_unexplained, "streams"),
        Row("SIGTERM: exit code", str(code), "0", code == 0),
    ]
    with Server(32, "--api-workers", "2", "--drain-timeout", "600") as server:
        crowd = _Crowd()

        async def twice() -> float:
            await crowd.gather(server, 16)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await crowd.all_ended(30)
            await asyncio.get_running_loop().run_in_executor(None, server.process.wait, 30)
            return time.monotonic() - began

        rows.append(at_most("second SIGTERM: exit", asyncio.run(twice()), 4.0, "s"))
    return rows
