"""A real server under test: what its processes hold at rest, and whether it is at rest again."""

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any, Final, Self

import psutil

from benchmarks.faults.probe import EngineProbe
from benchmarks.faults.server_process import ServerProcess

# A request with a fixed seed: whatever has happened before, its answer has the same bytes.
_CANARY: Final = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 1.0, "seed": 7}
_START_S: Final = 300.0
# Among so many connections is one to either of two workers, but for one time in a million.
_ENOUGH_TO_MEET_BOTH: Final = 20
# asyncio's executor grows with need, up to so many.
_MAX_POOL_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)


class Server(ServerProcess):
    """`remuda serve demo` with these arguments; ended with the block."""

    def __init__(self, num_slots: int, *arguments: str) -> None:
        super().__init__("demo", "--num-slots", str(num_slots), *arguments)
        self.num_slots = num_slots
        self.ready_path = "/health" if self.get("/ready") == 404 else "/ready"
        self.canary = self.ask_canary()
        self._at_rest: dict[str, tuple[int, int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def get(self, path: str, timeout_s: float = 10.0) -> int:
        """The status of one GET on a connection of its own; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=timeout_s) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_until_ready(self, within_s: float) -> float:
        """Seconds until every worker tells new connections that it is ready."""
        began = ready = time.monotonic()
        num_good = 0
        while num_good < _ENOUGH_TO_MEET_BOTH:
            assert time.monotonic() - began < within_s, self.log
            if self.get(self.ready_path) != 200:
                num_good = 0
                time.sleep(0.02)
                continue
            if num_good == 0:
                ready = time.monotonic()
            num_good += 1
        return ready - began

    def ask_canary(self) -> bytes:
        """The canary's choices and usage, as bytes."""
        body = json.dumps(_CANARY).encode()
        request = urllib.request.Request(
            f"http://{self.host}:{self.port}/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            value: dict[str, Any] = json.load(answer)
        return json.dumps([value["choices"], value["usage"]]).encode()

    def note_rest(self) -> None:
        """What the processes hold now is what they may hold at rest."""
        # Both of two workers have served a request, and made what they make once.
        for _ in range(_ENOUGH_TO_MEET_BOTH):
            self.ask_canary()
        # Tasks are noted each second.
        time.sleep(2.5)
        self._at_rest = self._held()

    def _held(self) -> dict[str, tuple[int, int, int]]:
        """File descriptors and threads of each process by its role; of API workers tasks, too."""
        tasks = self._tasks()
        roles = {"parent": psutil.Process(self.process.pid), "engine": self.engine}
        roles |= {f"worker {i}": worker for i, worker in enumerate(self.workers)}
        return {
            role: (process.num_fds(), process.num_threads(), tasks.get(process.pid, 0))
            for role, process in roles.items()
        }

    def _tasks(self) -> dict[int, int]:
        """Tasks of the API workers by process id."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            int(pid): int(float(count))
            for pid, count in re.findall(r'^remuda:asyncio_tasks\{pid="(\d+)"\} (\S+)$', text, re.M)
        }

    def unrest(self, within_s: float = 10.0) -> str:
        """What is not as at rest: slots, queues, processes, descriptors, threads, tasks, the canary's bytes."""
        assert self._at_rest
        self.wait_until_ready(_START_S)
        with EngineProbe(self.engine) as probe:
            if probe.until_free(self.num_slots, within_s) is None:
                return f"not free: {probe.stats()}"
        if self.ask_canary() != self.canary:
            return "the canary differs"
        deadline = time.monotonic() + within_s
        while not self._is_as_at_rest(held := self._held()):
            if time.monotonic() > deadline:
                return f"(fds, threads, tasks) {held}, at rest {self._at_rest}"
            # The question itself has a task, which must not stand whenever tasks are noted.
            time.sleep(0.7)
        strangers = len(psutil.Process(self.process.pid).children(recursive=True)) - len(held) + 1
        return f"{strangers} more processes" if strangers else ""

    def _is_as_at_rest(self, held: dict[str, tuple[int, int, int]]) -> bool:
        """No descriptor or task more; of threads the pools may have made all that they ever make."""
        if held.keys() != self._at_rest.keys():
            return False
        return all(
            fds <= self._at_rest[role][0]
            and threads <= self._at_rest[role][1] + _MAX_POOL_THREADS
            and tasks <= self._at_rest[role][2]
            for role, (fds, threads, tasks) in held.items()
        )

    def memory(self) -> int:
        """Bytes of memory that belong to the workers alone (of the engine it is the pool's, allocated before)."""
        return sum(int(worker.memory_full_info().uss) for worker in self.workers)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; returns the exit code. Nothing of it may be left."""
        family = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        code = super().stop(number)
        _, left = psutil.wait_procs(family, timeout=10)
        assert not left, f"processes are left: {left}"
        return code
