"""An API worker: serves HTTP on the socket that its parent gives it, with the engine that its parent tells of.

`python -m remuda.server.worker CONTROL_FD LISTENER_FD`, with the messages of control.py over the first; it ends
with that connection, which tells that the parent is gone or has had enough.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import uvicorn
import uvloop

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.errors import EngineDeadError, RemudaError
from remuda.engine.tokenizer import check_tokenizer_fits, load_tokenizer
from remuda.server.app import create_app
from remuda.server.control import (
    Channel,
    Drain,
    EngineDown,
    EngineUp,
    Launch,
    ToParent,
    ToWorker,
    WorkerFailed,
    WorkerIdle,
    WorkerReady,
    open_worker_end,
)
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.listener import BACKLOG
from remuda.server.logs import configure_logging
from remuda.server.protocol import StallGuardProtocol
from remuda.server.state import ServerState

logger = logging.getLogger(__name__)

# At the end, streams get their error event; this long they may take to send it.
CLOSING_S: Final = 2
_IDLE_POLL_S: Final = 0.05


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
        self._link = EngineLink(name=launch.name)
        tokenizer = load_tokenizer(launch.location, launch.tokenizer)
        template = None
        if tokenizer.chat_template is not None:
            template = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
        options = launch.options
        names = options.served_model_names or (launch.location.name,)
        self._state = ServerState(self._link, tokenizer, template, names, options.max_body_bytes)
        self._http = _HttpServer(
            uvicorn.Config(
                create_app(self._state),
                http=StallGuardProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=CLOSING_S,
            )
        )
        self._link.listeners.append(self._on_link_change)
        self._is_known_ready = False

    async def run(self, listener: socket.socket) -> None:
        """Serve until the parent has had enough."""
        parent = asyncio.create_task(self._obey())
        await self._http.serve(sockets=[listener])
        await parent
        self._link.close()

    async def _obey(self) -> None:
        """Do what the parent says; when it is gone, end every request and the server."""
        draining = None
        while (message := await self._channel.receive()) is not None:
            match message:
                case EngineUp(address):
                    self._link.connect(address)
                case EngineDown(reason):
                    self._link.disconnect(EngineDeadError(reason))
                case Drain():
                    self._state.is_draining = True
                    draining = asyncio.create_task(self._tell_when_idle())
        if draining is not None:
            draining.cancel()
        self._link.fail_all(EngineDeadError("the server is shutting down"))
        self._http.should_exit = True

    async def _tell_when_idle(self) -> None:
        while self._http.server_state.tasks:
            await asyncio.sleep(_IDLE_POLL_S)
        self._channel.send(WorkerIdle())

    def _on_link_change(self) -> None:
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
            self._channel.send(WorkerReady())


async def _main(control: socket.socket, listener: socket.socket) -> None:
    channel = await open_worker_end(control)
    launch = await channel.receive()
    if launch is None:
        return
    assert isinstance(launch, Launch)
    configure_logging(launch.options.log_level)
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
    uvloop.run(_main(control, listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
