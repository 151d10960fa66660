"""The supervisor, over stub processes: start, stop, restart within a budget, failure, environment."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from remuda.engine.config import EngineConfig
from remuda.server import engine_process
from remuda.server.engine_process import MAX_CRASHES, EngineSupervisor
from remuda.server.link import EngineLink, EngineStatus

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


@pytest.mark.parametrize("behaviour", ["crash", "die"])
def test_budget_of_restarts(tmp_path: Path, behaviour: str) -> None:
    async def body(s: Supervised) -> None:
        await s.until(lambda: s.reasons != [])
        assert len(s.starts) == MAX_CRASHES
        assert f"{MAX_CRASHES} times" in s.reasons[0]
        assert s.link.status is EngineStatus.DOWN

    run(behaviour, tmp_path, body)


def test_old_crashes_are_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "CRASH_WINDOW_S", 0.0)

    async def body(s: Supervised) -> None:
        await s.until(lambda: len(s.starts) > MAX_CRASHES)
        assert s.reasons == []

    run("crash", tmp_path, body)


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
