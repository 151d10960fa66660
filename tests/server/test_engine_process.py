"""The supervisor, over stub processes: start, stop, restart within a budget, failure, environment."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import zmq

from remuda.engine.config import EngineConfig
from remuda.engine.process import EngineServer
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import HELLO, AbortRequest, AddRequest, FromEngine, RequestRejected, pack_ids
from remuda.server import engine_process, restart_budget
from remuda.server.engine_process import MAX_FAILED_STARTS, EngineSupervisor
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.restart_budget import MAX_CRASHES

ROOT = Path(__file__).parents[2]


class Supervised:
    """A supervisor over the stub, with what it reported."""

    def __init__(self, behaviour: str, record: Path) -> None:
        self.link = EngineLink()
        self.record = record
        self.reasons: list[str] = []
        command = (sys.executable, "-m", "tests.server.stub_engine", behaviour, str(record))
        self.supervisor = EngineSupervisor(EngineConfig(), self.link, self.reasons.append, command=command)

    @property
    def starts(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)


def run(behaviour: str, tmp_path: Path, body: Callable[[Supervised], Awaitable[None]]) -> None:
    async def main() -> None:
        supervised = Supervised(behaviour, tmp_path / "record")
        try:
            supervised.supervisor.start()
            await body(supervised)
        finally:
            await supervised.supervisor.stop()
            supervised.link.close()
        for line in supervised.starts:
            with pytest.raises(ProcessLookupError):
                os.kill(int(line.split()[0]), 0)

    previous = Path.cwd()
    os.chdir(ROOT)
    try:
        asyncio.run(main())
    finally:
        os.chdir(previous)


def test_a_second_signal_cuts_the_grace_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_STOP_GRACE_S", 600.0)

    async def body(supervised: Supervised) -> None:
        await supervised.until(lambda: supervised.link.status is EngineStatus.READY)
        hurry = asyncio.Event()
        stopping = asyncio.create_task(supervised.supervisor.stop(hurry))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        hurry.set()
        async with asyncio.timeout(60):
            await stopping

    run("deaf", tmp_path, body)


def test_start_and_stop(tmp_path: Path) -> None:
    async def body(s: Supervised) -> None:
        await s.until(lambda: s.link.status is EngineStatus.READY)
        assert s.supervisor.pid is not None
        assert s.starts[0].split()[2] == "omp"

    run("serve", tmp_path, body)


def test_killed_engine_is_restarted(tmp_path: Path) -> None:
    async def body(s: Supervised) -> None:
        for _ in range(2):
            await s.until(lambda: s.link.status is EngineStatus.READY)
            pid = s.supervisor.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await s.until(lambda pid=pid: s.supervisor.pid != pid)  # type: ignore[misc]
        await s.until(lambda: s.link.status is EngineStatus.READY)
        assert len(s.starts) == 3
        assert s.reasons == []

    run("serve", tmp_path, body)


def test_budget_of_restarts(tmp_path: Path) -> None:
    async def body(s: Supervised) -> None:
        await s.until(lambda: s.reasons != [])
        assert len(s.starts) == MAX_CRASHES
        assert f"{MAX_CRASHES} times" in s.reasons[0]
        assert s.link.status is EngineStatus.DOWN

    run("die", tmp_path, body)


def test_engine_that_dies_while_loading_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each start takes: here every crash is the only one of its window."""
    monkeypatch.setattr(restart_budget, "CRASH_WINDOW_S", 0.0)

    async def body(s: Supervised) -> None:
        await s.until(lambda: s.reasons != [])
        assert len(s.starts) == MAX_FAILED_STARTS
        assert s.reasons == ["the engine ended 3 times in a row while loading, last by exit code 3"]
        assert s.link.status is EngineStatus.DOWN

    run("crash", tmp_path, body)


def test_requests_to_a_loading_engine(tmp_path: Path) -> None:
    """It does not mind an abort that was meant for the engine before it, and refuses what is new."""
    parent_reads, parent_writes = os.pipe()
    address = f"ipc://{tmp_path / 'socket'}"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as worker:
        router.linger = worker.linger = 0
        router.bind(address)
        worker.connect(address)
        server = EngineServer(router, parent_reads)
        worker.send(HELLO)
        for message in (AbortRequest("old"), AddRequest("new", pack_ids([5]), SamplingParams())):
            worker.send(msgspec.msgpack.encode(message))
        thread = threading.Thread(target=server.linger)
        thread.start()
        try:
            for _ in range(2):
                assert worker.poll(10_000)
                answer = msgspec.msgpack.decode(worker.recv(), type=FromEngine)
        finally:
            os.close(parent_writes)
            thread.join()
            os.close(parent_reads)
    assert answer == RequestRejected("new", "EngineDeadError", "the engine has not started")


def test_old_crashes_are_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_budget, "CRASH_WINDOW_S", 0.0)

    async def body(s: Supervised) -> None:
        await s.until(lambda: len(s.starts) > MAX_CRASHES)
        assert s.reasons == []

    run("die", tmp_path, body)


def test_failure_at_the_start_is_final(tmp_path: Path) -> None:
    async def body(s: Supervised) -> None:
        await s.until(lambda: s.reasons != [])
        assert s.reasons == ["no such thing"]
        assert s.link.failure is not None
        assert s.link.failure.kind == "ConfigError"
        assert len(s.starts) == 1

    run("fail", tmp_path, body)


def test_engine_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_STOP_GRACE_S", 0.1)

    async def body(s: Supervised) -> None:
        await s.until(lambda: s.link.status is EngineStatus.READY)

    run("deaf", tmp_path, body)
