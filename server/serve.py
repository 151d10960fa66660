"""`remuda serve`: the parent of an engine process and of API workers, from start to exit code.

It serves no request itself, also where there is one worker: what a request can do to a worker, it cannot do to
who has to notice it, and there is one form of everything. It costs a process that sleeps.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import uvloop

from remuda.engine.checkpoint.find import find_checkpoint
from remuda.engine.config import EngineConfig
from remuda.engine.errors import CheckpointError, ConfigError
from remuda.server.control import Launch
from remuda.server.engine_process import EngineSupervisor
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.listener import bind_all
from remuda.server.loading_display import LoadingDisplay, ready_line
from remuda.server.metrics import shared_metrics
from remuda.server.options import ServeOptions
from remuda.server.prepare import prepare_process
from remuda.server.response_store import MemoryResponseStore
from remuda.server.store_server import StoreServer
from remuda.server.worker_process import WorkerSupervisor

logger = logging.getLogger(__name__)

# What a worker has for the error events of its streams, and to end.
_CLOSING_S: Final = 3.0
# The same when the user has asked twice.
_HASTY_CLOSING_S: Final = 1.5
# Failures at the start that the user can put right.
_USAGE_ERRORS: Final = (ConfigError.__name__, CheckpointError.__name__)
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def run_server(options: ServeOptions, config: EngineConfig) -> int:
    """Serve until a signal; returns the exit code. Raises ConfigError or CheckpointError before that."""
    listeners = bind_all(options.host, options.port, options.num_api_workers)
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        prepare_process(options)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remuda-http-")))
        location = find_checkpoint(config.model)
        launch = Launch("", options, location, config.tokenizer, directory / "responses.sock")
        return uvloop.run(_Server(launch, config, listeners, shared_metrics(directory)).run())


class _Server:
    """The parts of a running server, and the ways in which it ends."""

    def __init__(
        self,
        launch: Launch,
        config: EngineConfig,
        listeners: Sequence[socket.socket],
        environment: Mapping[str, str],
    ) -> None:
        self._options = launch.options
        self._address = listeners[0].getsockname()[:2]
        self._exit_code = EXIT_OK
        # Two are asked for: to end when the requests have ended, and to end now.
        self._is_ending = asyncio.Event()
        self._is_ending_now = asyncio.Event()
        self._link = EngineLink(name="parent")
        self._engine = EngineSupervisor(
            config,
            self._link,
            self._on_engine_give_up,
            self._on_engine_process,
            log_level=launch.options.log_level,
            log_format=launch.options.log_format,
        )
        store = MemoryResponseStore(self._options.max_stored_responses, self._options.max_stored_bytes)
        self._store, self._store_path = StoreServer(store), launch.store_path
        self._num_engines = 0
        self._workers = WorkerSupervisor(
            launch, listeners, self._link, self._on_change, self._give_up, environment
        )
        self._link.listeners.append(self._on_change)
        self._has_shown_ready = False
        self._display = LoadingDisplay(sys.stderr)
        self._idle = asyncio.Event()

    async def run(self) -> int:
        """Serve; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            with self._display:
                await self._store.start(self._store_path)
                self._engine.start()
                self._workers.start()
                await self._is_ending.wait()
                await self._drain()
        finally:
            await self._workers.stop(_HASTY_CLOSING_S if self._is_ending_now.is_set() else _CLOSING_S)
            await self._engine.stop(self._is_ending_now)
            await self._store.stop()
            self._link.close()
        return self._exit_code

    async def _drain(self) -> None:
        """Let the requests that run end by themselves, for as long as they may."""
        self._workers.drain(has_given_up=self._exit_code != EXIT_OK)
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._is_ending_now)]
        await asyncio.wait(waits, timeout=self._options.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _on_signal(self) -> None:
        if self._is_ending.is_set():
            self._is_ending_now.set()
        self._is_ending.set()

    def _on_change(self) -> None:
        """Tell the user how it goes."""
        if self._is_ending.is_set():
            if self._workers.is_idle:
                self._idle.set()
        elif self._link.status is EngineStatus.LOADING:
            if self._options.log_format == "text":
                self._display.update(self._link.progress)
        elif self._link.status is EngineStatus.READY and self._workers.is_ready and not self._has_shown_ready:
            self._has_shown_ready = True
            self._display.close()
            assert self._link.info is not None
            host, port = self._address
            scheme = "http" if self._options.tls is None else "https"
            url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
            self._say(ready_line(self._link.info, url))
            self._say(f"remuda: chat page at {url}/, API reference at {url}/docs")

    def _say(self, line: str) -> None:
        """Tell the user; where the log is JSON, in the log, so that each line of stderr is JSON."""
        if self._options.log_format == "json":
            logger.warning("%s", line)
        else:
            print(line, file=sys.stderr, flush=True)

    def _on_engine_process(self, address: str | None, reason: str) -> None:
        if address is not None:
            self._num_engines += 1
            if self._num_engines > 1:
                self._workers.note_engine_restart()
        self._workers.set_engine(address, reason)

    def _on_engine_give_up(self, reason: str) -> None:
        kind = None if self._link.failure is None else self._link.failure.kind
        self._give_up(reason, is_usage=kind in _USAGE_ERRORS and not self._has_shown_ready)

    def _give_up(self, reason: str, *, is_usage: bool) -> None:
        if self._is_ending.is_set():
            return
        self._display.close()
        self._say(f"remuda: {reason}")
        self._exit_code = EXIT_USAGE if is_usage else EXIT_FAILED
        self._is_ending.set()
        self._is_ending_now.set()
