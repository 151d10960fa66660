"""An API worker: serves HTTP on the socket that its parent gives it, with the engine that its parent tells of.

`python -m remuda.server.worker CONTROL_FD LISTENER_FD`, with the messages of control.py over the first; it ends
with that connection, which tells that the parent is gone or has had enough.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import uvicorn
import uvloop

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.errors import EngineDeadError, RemudaError
from remuda.engine.heap import trim_heap
from remuda.engine.tokenizer import check_tokenizer_fits, load_tokenizer
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
    open_worker_end,
)
from remuda.server.http_config import http_config, watch_requests
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.prepare import prepare_logging
from remuda.server.restart_budget import Restarts
from remuda.server.state import ServerState
from remuda.server.store_client import RemoteResponseStore
from remuda.server.tls_gate import ServerLoop

logger = logging.getLogger(__name__)

# At the end, streams get their error event; this long they may take to send it.
CLOSING_S: Final = 2
# After a response in the background has ended, for clients to come and get it.
RETRIEVAL_S: Final = 3.0
_IDLE_POLL_S: Final = 0.05
# An engine that serves answers between two of its steps.
_FIRST_WORD_S: Final = 1.0
_TASKS_NOTED_EACH_S: Final = 1.0


class _HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class ApiWorker:
    """The parts of a worker, and what it does at each word of its parent."""

    def __init__(self, launch: Launch, channel: Channel[ToParent, ToWorker]) -> None:
        self._channel = channel
        self._link = EngineLink(launch.options.limits, name=launch.name)
        tokenizer = load_tokenizer(launch.location, launch.tokenizer)
        template = None
        if tokenizer.chat_template is not None:
            template = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
        options = launch.options
        names = options.served_model_names or (launch.location.name,)
        self._store = RemoteResponseStore(launch.store_path, is_enabled=options.max_stored_responses > 0)
        self._state = ServerState(
            self._link,
            tokenizer,
            template,
            names,
            options.max_body_bytes,
            options.tool_call_parser,
            response_store=self._store,
            parent_pid=os.getppid(),
        )
        self._tracing = watch_requests(self._state, options)
        self._http = _HttpServer(http_config(self._state, options, closing_s=CLOSING_S))
        self._link.listeners.append(self._on_link_change)
        self._is_known_ready = False
        self._is_engine_ready = launch.is_engine_ready
        self._has_heard = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Serve until the parent has had enough."""
        parent = asyncio.create_task(self._obey())
        self._note_tasks()
        if self._is_engine_ready:
            # Connections may have queued here for the worker before this one: they need not be refused for the
            # moments until the engine says that it serves.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_heard.wait(), _FIRST_WORD_S)
        await self._http.serve(sockets=[listener])
        await parent
        self._link.close()
        await self._state.grammars.close()
        await self._store.close()
        if self._tracing is not None:
            self._tracing.close()

    async def _obey(self) -> None:
        """Do what the parent says; when it is gone, end every request and the server."""
        draining = None
        while (message := await self._channel.receive()) is not None:
            match message:
                case EngineUp(address):
                    self._link.connect(address)
                case EngineDown(reason):
                    self._link.disconnect(EngineDeadError(reason))
                case Ping():
                    self._channel.send(Pong())
                case Restarts():
                    self._state.restarts = message
                case Drain(has_given_up):
                    self._state.is_draining, self._state.has_given_up = True, has_given_up
                    draining = asyncio.create_task(self._tell_when_idle())
        if draining is not None:
            draining.cancel()
        self._link.fail_all(EngineDeadError("the server is shutting down"))
        self._has_heard.set()
        self._http.should_exit = True

    async def _tell_when_idle(self) -> None:
        had_background_run = False
        while self._http.server_state.tasks or self._state.num_background_runs():
            had_background_run = had_background_run or self._state.num_background_runs() > 0
            await asyncio.sleep(_IDLE_POLL_S)
        if had_background_run:
            await asyncio.sleep(RETRIEVAL_S)
        self._channel.send(WorkerIdle())

    def _note_tasks(self) -> None:
        """Let the metrics tell how many tasks there are, now and from now on."""
        self._state.metrics.note_tasks(len(asyncio.all_tasks()))
        asyncio.get_running_loop().call_later(_TASKS_NOTED_EACH_S, self._note_tasks)

    def _on_link_change(self) -> None:
        self._has_heard.set()
        if self._link.status is not EngineStatus.READY or self._is_known_ready or self._link.info is None:
            return
        self._is_known_ready = True
        try:
            check_tokenizer_fits(self._state.tokenizer, self._link.info.vocab_size)
        except RemudaError as error:
            self._channel.send(WorkerFailed(str(error)))
        else:
            # What stands now stays: the collector need not go over it in the middle of a stream.
            gc.collect()
            gc.freeze()
            trim_heap()
            self._channel.send(WorkerReady())


async def _main(control: socket.socket, listener: socket.socket) -> None:
    channel = await open_worker_end(control)
    launch = await channel.receive()
    if launch is None:
        return
    assert isinstance(launch, Launch)
    prepare_logging(launch.options)
    try:
        worker = ApiWorker(launch, channel)
    except RemudaError as error:
        channel.send(WorkerFailed(str(error)))
        # The parent ends its side once it has read that.
        await channel.receive()
        return
    await worker.run(listener)


def main() -> int:
    """Serve; returns the exit code."""
    # The terminal's Ctrl-C goes to a whole group, a service manager's SIGTERM to every process of the service;
    # the parent decides when a worker ends, which is after the requests that it still has.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control, listener = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    uvloop.run(_main(control, listener), loop_factory=ServerLoop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
