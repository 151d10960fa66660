"""Keeps one engine process alive: spawns it, notices its end, restarts it within a budget, stops it."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from remuda.engine.config import EngineConfig
from remuda.engine.cores import engine_environment
from remuda.engine.errors import ConfigError, EngineDeadError
from remuda.engine.log_format import LogFormat
from remuda.server.heartbeat import watch_heartbeat
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.restart_budget import CRASH_WINDOW_S, MAX_CRASHES, RestartBudget

logger = logging.getLogger(__name__)

ENGINE_COMMAND: Final = (sys.executable, "-m", "remuda.engine.process")
# Besides what its budget says: so many ends in a row before it was ready, however long each start takes.
MAX_FAILED_STARTS: Final = 3
_STOP_GRACE_S: Final = 5.0
# When the user has asked twice.
_HASTY_STOP_GRACE_S: Final = 0.5
# sun_path of a Unix socket holds 107 bytes and a zero.
_MAX_SOCKET_PATH_BYTES: Final = 107


class EngineSupervisor:
    """Runs the engine for the link of one event loop.

    `on_give_up` is called once, with the reason, when the engine cannot start or has crashed too often.
    `on_process` is called with the address of each engine process that is started, and with None and how it
    went when that has ended.
    """

    def __init__(
        self,
        config: EngineConfig,
        link: EngineLink,
        on_give_up: Callable[[str], None],
        on_process: Callable[[str | None, str], None] = lambda address, reason: None,
        *,
        log_level: str = "warning",
        log_format: LogFormat = "text",
        command: Sequence[str] = ENGINE_COMMAND,
    ) -> None:
        self._config = config
        self._link = link
        self._on_give_up = on_give_up
        self._on_process = on_process
        self._log_level = log_level
        self._log_format = log_format
        self._command = command
        self._directory = tempfile.TemporaryDirectory(prefix="remuda-")
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._budget = RestartBudget()
        self._heartbeat: asyncio.Task[None] | None = None
        self._is_hung = False
        self._num_started = 0
        self._num_starts_since_ready = 0
        self._was_ready = False
        self._is_stopping = False
        link.listeners.append(self._on_link_change)

    @property
    def pid(self) -> int | None:
        """The engine's process id, while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Spawn the engine and connect the link. Raises ConfigError where no socket can be made for it."""
        # Each life of the engine has its own address, so that nothing meant for one reaches the next.
        self._num_started += 1
        self._num_starts_since_ready += 1
        path = Path(self._directory.name) / f"engine-{self._num_started}.sock"
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            raise ConfigError(f"the temporary directory's name is too long for a socket: {path.parent}")
        address = f"ipc://{path}"
        # Its own session: a Ctrl-C in the terminal is for this process, which then ends the engine.
        process = subprocess.Popen(  # noqa: S603
            self._command, stdin=subprocess.PIPE, env=engine_environment(), start_new_session=True
        )
        self._process = process
        self._ended.clear()
        order = {
            "address": address,
            "config": self._config,
            "log_level": self._log_level,
            "log_format": self._log_format,
        }
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            logger.error("the engine process ended at once")
        self._link.connect(address)
        self._on_process(address, "")
        loop = asyncio.get_running_loop()
        watch = threading.Thread(target=self._watch, args=(process, loop), daemon=True, name="engine-watch")
        watch.start()
        self._is_hung = False
        beat = watch_heartbeat(self._link, process.pid, self._on_hung)
        self._heartbeat = asyncio.create_task(beat, name="engine-heartbeat")

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """End the engine: by the end of its stdin, or else by SIGKILL, which comes sooner once `hurry` is set."""
        self._is_stopping = True
        self._stop_heartbeat()
        process = self._process
        if process is not None:
            _close_stdin(process)
            if not await self._has_ended(hurry or asyncio.Event()):
                logger.warning("the engine process does not end by itself; it is killed")
                process.kill()
                await self._ended.wait()
        self._directory.cleanup()

    async def _has_ended(self, hurry: asyncio.Event) -> bool:
        """Whether it ends by itself within the grace, of which little is left once `hurry` is set."""
        waits = [asyncio.create_task(event.wait()) for event in (self._ended, hurry)]
        await asyncio.wait(waits, timeout=_STOP_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        if hurry.is_set():
            await asyncio.wait(waits[:1], timeout=_HASTY_STOP_GRACE_S)
        for wait in waits:
            wait.cancel()
        return self._ended.is_set()

    def _watch(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: wait for the end of the process."""
        process.wait()
        loop.call_soon_threadsafe(self._on_end, process)

    def _on_link_change(self) -> None:
        if self._link.status is EngineStatus.READY:
            self._was_ready = True
            self._num_starts_since_ready = 0
        if self._link.failure is not None and self._process is not None:
            # It has told why it fails, and waits for the end of its stdin.
            _close_stdin(self._process)

    def _on_hung(self) -> None:
        assert self._process is not None
        logger.error("the engine process hangs; it is killed")
        self._is_hung = True
        self._process.kill()

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None

    def _on_end(self, process: subprocess.Popen[bytes]) -> None:
        self._stop_heartbeat()
        how = "hung" if self._is_hung else describe_end(process.returncode)
        self._process = None
        reason = f"the engine process ended ({how})"
        self._link.disconnect(EngineDeadError(reason))
        self._on_process(None, reason)
        _close_stdin(process)
        self._ended.set()
        if self._is_stopping:
            return
        failure = self._link.failure
        if failure is not None and not self._was_ready:
            # It told why it cannot start; trying again would tell the same.
            self._give_up(failure.message)
            return
        num_crashes = self._budget.note_crash()
        logger.error("the engine process ended (%s), crash %d of %d", how, num_crashes, MAX_CRASHES)
        if self._budget.is_spent:
            self._give_up(f"the engine ended {MAX_CRASHES} times within {CRASH_WINDOW_S:g} s, last by {how}")
            return
        if self._num_starts_since_ready >= MAX_FAILED_STARTS:
            self._give_up(f"the engine ended {MAX_FAILED_STARTS} times in a row while loading, last by {how}")
            return
        try:
            self.start()
        except OSError as error:
            self._give_up(f"the engine cannot be started again: {error}")

    def _give_up(self, reason: str) -> None:
        self._is_stopping = True
        self._on_give_up(reason)


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        logger.debug("the engine had closed its stdin")


def describe_end(returncode: int) -> str:
    """How a process has ended, in words."""
    if returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit code {returncode}"
