"""When an engine counts as hung: the verdict, and what a process does."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from remuda.server import heartbeat
from remuda.server.heartbeat import (
    MAX_BUSY_TICKS,
    MAX_BUSY_WORKER_TICKS,
    MAX_IDLE_TICKS,
    TICK_S,
    ActivityMeter,
    Pulse,
    WorkerPulse,
)
from tests.server.fakes import eventually


def ticks(pulse: Pulse, count: int, *, has_answered: bool = False, is_busy: bool = False) -> list[bool]:
    return [pulse.tick(has_answered=has_answered, is_busy=is_busy) for _ in range(count)]


def test_silent_and_idle_is_hung_within_five_seconds() -> None:
    assert ticks(Pulse(), MAX_IDLE_TICKS) == [False] * (MAX_IDLE_TICKS - 1) + [True]
    # Those, the tick in which it stopped, and the one that finds what it had computed before.
    assert (MAX_IDLE_TICKS + 2) * TICK_S < 5


@pytest.mark.parametrize("sign", ["has_answered", "is_busy"])
def test_any_sign_of_life_begins_anew(sign: str) -> None:
    pulse = Pulse()
    for _ in range(3):
        assert not any(ticks(pulse, MAX_IDLE_TICKS - 1))
        assert not any(ticks(pulse, 1, **{sign: True}))


def test_long_step_is_no_hang() -> None:
    assert not any(ticks(Pulse(), MAX_BUSY_TICKS - 1, is_busy=True))


def test_endless_loop_is_a_hang() -> None:
    assert ticks(Pulse(), MAX_BUSY_TICKS, is_busy=True)[-1]
    assert ticks(Pulse(MAX_BUSY_WORKER_TICKS), MAX_BUSY_WORKER_TICKS, is_busy=True)[-1]


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", f"import time\n{request.param}"]
    with subprocess.Popen(command) as found:
        yield found
        found.kill()


@pytest.mark.parametrize("process", ["time.sleep(600)"], indirect=True)
def test_sleeper_and_stopped_process_are_idle(process: subprocess.Popen[bytes]) -> None:
    meter = ActivityMeter(process.pid)
    assert eventually(lambda: not any(readings_of(meter, 3)))
    process.send_signal(19)
    assert not any(readings_of(meter, 3))


@pytest.mark.parametrize(
    "process",
    ["while True: pass", "import subprocess; subprocess.run(['sleep', '20'])"],
    indirect=True,
)
def test_who_computes_or_waits_for_a_child_is_busy(process: subprocess.Popen[bytes]) -> None:
    meter = ActivityMeter(process.pid)
    assert eventually(lambda: all(readings_of(meter, 3)))
    assert all(readings_of(meter, 3))


def test_process_that_has_ended_is_left_to_its_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        meter = ActivityMeter(process.pid)
        process.kill()
        process.wait()
    assert meter.is_busy()


STOPPED_WITH_A_CHILD = """
import os, signal, subprocess
with subprocess.Popen(["sleep", "20"]) as child:
    os.kill(os.getpid(), signal.SIGSTOP)
"""


async def watched_until_hung(pulse: WorkerPulse) -> bool:
    """Whether the worker was found to hang, at a fast tick."""
    verdict = asyncio.Event()
    watch = asyncio.create_task(pulse.watch(verdict.set))
    await asyncio.wait([watch], timeout=3)
    watch.cancel()
    return verdict.is_set()


@pytest.mark.parametrize("process", [STOPPED_WITH_A_CHILD, "while True: pass"], indirect=True)
def test_worker_that_answers_no_more_is_hung(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "TICK_S", 0.02)
    pulse = WorkerPulse(process.pid, lambda: None)
    pulse.note_pong()
    assert asyncio.run(watched_until_hung(pulse))


@pytest.mark.parametrize("process", ["time.sleep(600)"], indirect=True)
@pytest.mark.parametrize("ping", [lambda pulse: pulse.note_pong(), lambda pulse: None], ids=["answers", "loads"])
def test_worker_that_answers_or_has_not_begun_to_is_well(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, ping: Callable[[WorkerPulse], None]
) -> None:
    monkeypatch.setattr(heartbeat, "TICK_S", 0.02)
    pulse = WorkerPulse(process.pid, lambda: ping(pulse))
    assert not asyncio.run(watched_until_hung(pulse))


def readings_of(meter: ActivityMeter, count: int) -> list[bool]:
    """The meter's readings, as far apart as a clock tick of the kernel and some."""
    readings = []
    for _ in range(count):
        time.sleep(0.05)
        readings.append(meter.is_busy())
    return readings
