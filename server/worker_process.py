"""Keeps the API workers alive: spawns each with its socket, notices its end, restarts it within a budget."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from remuda.engine.wire import WorkerGone
from remuda.server.control import (
    Channel,
    Drain,
    EngineDown,
    EngineUp,
    Launch,
    Ping,
    Pong,
    ToParent,
    ToWorker,
    WorkerFailed,
    WorkerIdle,
    WorkerReady,
    open_parent_end,
)
from remuda.server.engine_process import describe_end
from remuda.server.heartbeat import WorkerPulse
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.metrics import forget_process
from remuda.server.restart_budget import CRASH_WINDOW_S, MAX_CRASHES, RestartBudget, Restarts

logger = logging.getLogger(__name__)

WORKER_COMMAND: Final = (sys.executable, "-m", "remuda.server.worker")


class GiveUp(Protocol):
    """Told once that the workers cannot go on; is_usage: because of what the user gave."""

    def __call__(self, reason: str, *, is_usage: bool) -> None: ...


class _Worker:
    """One process, and how it is."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, channel: Channel[ToWorker, ToParent]
    ) -> None:
        self.name = name
        self.process = process
        self.channel = channel
        self.pulse = WorkerPulse(process.pid, lambda: channel.send(Ping()))
        self.is_ready = False
        self.is_idle = False
        self.is_hung = False

    def on_hung(self) -> None:
        """End it: it does not answer, and does nothing that could be the reason."""
        logger.error("API worker %s hangs; it is killed", self.name)
        self.is_hung = True
        self.process.kill()


class WorkerSupervisor:
    """Runs one worker for each of `listeners`.

    link: the parent's own, by which the engine is told of workers that have died. `on_change` is called when a
    worker becomes ready, or idle after `drain`. environment: of the workers, besides this process's own.
    """

    def __init__(
        self,
        launch: Launch,
        listeners: Sequence[socket.socket],
        link: EngineLink,
        on_change: Callable[[], None],
        on_give_up: GiveUp,
        environment: Mapping[str, str],
    ) -> None:
        self._launch = launch
        self._listeners = listeners
        self._link = link
        self._on_change = on_change
        self._on_give_up = on_give_up
        self._environment = {**os.environ, **environment}
        self._restarts = Restarts()
        self._workers: dict[int, _Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._engine_address: str | None = None
        self._is_draining = False
        self._drain = Drain()
        self._has_given_up = False

    @property
    def is_ready(self) -> bool:
        """Every worker serves requests."""
        workers = self._workers.values()
        return len(workers) == len(self._listeners) and all(worker.is_ready for worker in workers)

    @property
    def is_idle(self) -> bool:
        """After `drain`: no worker has a request left."""
        return all(worker.is_idle for worker in self._workers.values())

    def start(self) -> None:
        """Spawn the workers."""
        self._tasks = [
            asyncio.create_task(self._keep_alive(index), name=f"api-worker-{index}")
            for index in range(len(self._listeners))
        ]
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)

    def set_engine(self, address: str | None, reason: str) -> None:
        """Tell every worker where the engine is now, or with None and a reason that it has ended."""
        self._engine_address = address
        self._tell(EngineDown(reason) if address is None else EngineUp(address))

    def note_engine_restart(self) -> None:
        """Let the workers tell in their metrics that the engine was started again."""
        self._note_restart(num_engine=1)

    def _note_restart(self, *, num_engine: int = 0, num_workers: int = 0) -> None:
        past = self._restarts
        self._restarts = Restarts(past.num_engine + num_engine, past.num_workers + num_workers)
        self._tell(self._restarts)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # A bug; `stop` raises it.
            self._give_up(f"the care of the API workers failed: {task.exception()!r}", is_usage=False)

    def drain(self, *, has_given_up: bool) -> None:
        """Let the workers take no new requests. Who dies from now on is not started again."""
        self._is_draining = True
        self._drain = Drain(has_given_up)
        self._tell(self._drain)

    async def stop(self, within_s: float) -> None:
        """End the workers: requests that still run get an error; who takes longer is killed."""
        self._is_draining = True
        for worker in self._workers.values():
            worker.channel.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for worker in self._workers.values():
            logger.warning("API worker %s does not end by itself; it is killed", worker.name)
            worker.process.kill()
        await asyncio.gather(*self._tasks)

    def _tell(self, message: ToWorker) -> None:
        for worker in self._workers.values():
            worker.channel.send(message)

    async def _keep_alive(self, index: int) -> None:
        """Run worker after worker on one listening socket."""
        # Its own: several that somebody ends at once are no sign that any cannot live.
        budget, num_started = RestartBudget(), 0
        while not (self._is_draining or self._has_given_up):
            num_started += 1
            if num_started > 1:
                self._note_restart(num_workers=1)
            try:
                worker = await self._spawn(index, f"worker-{index}-{num_started}")
            except OSError as error:
                self._give_up(f"an API worker cannot be started: {error}", is_usage=False)
                break
            self._workers[index] = worker
            watch = asyncio.create_task(worker.pulse.watch(worker.on_hung))
            await self._listen(worker)
            watch.cancel()
            returncode = await worker.process.wait()
            worker.channel.close()
            del self._workers[index]
            self._link.send(WorkerGone(worker.name))
            forget_process(self._environment, worker.process.pid)
            if not self._is_draining:
                self._note_end(budget, worker.name, "hung" if worker.is_hung else describe_end(returncode))
        self._on_change()

    async def _spawn(self, index: int, name: str) -> _Worker:
        ours, theirs = socket.socketpair()
        listener = self._listeners[index]
        with theirs:
            # A session of its own: the terminal's Ctrl-C is for the parent.
            process = await asyncio.create_subprocess_exec(
                *WORKER_COMMAND,
                str(theirs.fileno()),
                str(listener.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                env=self._environment,
                pass_fds=(theirs.fileno(), listener.fileno()),
                start_new_session=True,
            )
        worker = _Worker(name, process, await open_parent_end(ours))
        is_ready = self._link.status is EngineStatus.READY
        worker.channel.send(msgspec.structs.replace(self._launch, name=name, is_engine_ready=is_ready))
        worker.channel.send(self._restarts)
        if self._engine_address is not None:
            worker.channel.send(EngineUp(self._engine_address))
        if self._is_draining:
            worker.channel.send(self._drain)
        return worker

    async def _listen(self, worker: _Worker) -> None:
        """Take what the worker tells, until it is gone."""
        while (message := await worker.channel.receive()) is not None:
            match message:
                case Pong():
                    worker.pulse.note_pong()
                    continue
                case WorkerReady():
                    worker.is_ready = True
                case WorkerIdle():
                    worker.is_idle = True
                case WorkerFailed():
                    self._give_up(message.message, is_usage=True)
            self._on_change()

    def _note_end(self, budget: RestartBudget, name: str, how: str) -> None:
        num_crashes = budget.note_crash()
        logger.error("API worker %s ended (%s), crash %d of %d", name, how, num_crashes, MAX_CRASHES)
        if budget.is_spent:
            reason = f"an API worker ended {MAX_CRASHES} times within {CRASH_WINDOW_S:g} s, last by {how}"
            self._give_up(reason, is_usage=False)

    def _give_up(self, reason: str, *, is_usage: bool) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            self._on_give_up(reason, is_usage=is_usage)
