"""`remuda serve`: a process that answers HTTP and keeps an engine process alive, from start to exit code."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import uvicorn
import uvloop

from remuda.engine.chat_template import ChatTemplate
from remuda.engine.checkpoint.find import CheckpointLocation, find_checkpoint
from remuda.engine.config import EngineConfig
from remuda.engine.errors import CheckpointError, ConfigError, EngineDeadError
from remuda.engine.tokenizer import check_tokenizer_fits, load_tokenizer
from remuda.server.app import create_app
from remuda.server.engine_process import EngineSupervisor
from remuda.server.link import EngineLink, EngineStatus
from remuda.server.loading_display import LoadingDisplay, ready_line
from remuda.server.options import ServeOptions
from remuda.server.protocol import StallGuardProtocol
from remuda.server.state import ServerState

logger = logging.getLogger(__name__)

_BACKLOG: Final = 2048
# After the grace, streams get their error event; this long they may take to send it.
_CLOSING_S: Final = 2.0
# Failures at the start that the user can put right.
_USAGE_ERRORS: Final = (ConfigError.__name__, CheckpointError.__name__)
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def run_server(options: ServeOptions, config: EngineConfig) -> int:
    """Serve until a signal; returns the exit code. Raises ConfigError or CheckpointError before that."""
    listener = bind(options.host, options.port)
    with listener:
        _configure_logging(options.log_level)
        location = find_checkpoint(config.model)
        return uvloop.run(_Server(options, config, location, listener).run())


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises ConfigError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host!r}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Two listeners may bind one port before either listens; the second learns of it here.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


class _HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class _Server:
    """The parts of a running server, and the ways in which it ends."""

    def __init__(
        self,
        options: ServeOptions,
        config: EngineConfig,
        location: CheckpointLocation,
        listener: socket.socket,
    ) -> None:
        self._options = options
        self._listener = listener
        self._exit_code = EXIT_OK
        self._link = EngineLink()
        tokenizer = load_tokenizer(location, config.tokenizer)
        template = None
        if tokenizer.chat_template is not None:
            template = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
        self._state = ServerState(
            self._link,
            tokenizer,
            template,
            options.served_model_names or (location.name,),
            options.max_body_bytes,
            options.tool_call_parser,
        )
        self._http = _HttpServer(
            uvicorn.Config(
                create_app(self._state),
                http=StallGuardProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=round(options.grace_s + _CLOSING_S),
            )
        )
        self._config = config
        self._display = LoadingDisplay(sys.stderr)
        self._num_ready = 0

    async def run(self) -> int:
        """Serve; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        self._link.listeners.append(self._on_link_change)
        supervisor = EngineSupervisor(
            self._config, self._link, self._on_give_up, log_level=self._options.log_level
        )
        try:
            with self._display:
                supervisor.start()
                await self._http.serve(sockets=[self._listener])
        finally:
            await self._state.grammars.close()
            await supervisor.stop()
            self._link.close()
        return self._exit_code

    def _on_link_change(self) -> None:
        if self._link.status is EngineStatus.LOADING:
            self._display.update(self._link.progress)
        elif self._link.status is EngineStatus.READY and self._link.info is not None:
            self._display.close()
            self._num_ready += 1
            if self._num_ready > 1:
                logger.warning("the engine is back")
                return
            try:
                check_tokenizer_fits(self._state.tokenizer, self._link.info.vocab_size)
            except CheckpointError as error:
                self._end(str(error), EXIT_USAGE)
                return
            host, port = self._listener.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            print(ready_line(self._link.info, url), file=sys.stderr, flush=True)

    def _on_signal(self) -> None:
        loop = asyncio.get_running_loop()
        if self._state.is_draining:
            self._fail_requests()
            self._http.force_exit = True
            return
        self._state.is_draining = True
        self._http.should_exit = True
        loop.call_later(self._options.grace_s, self._fail_requests)

    def _on_give_up(self, reason: str) -> None:
        kind = None if self._link.failure is None else self._link.failure.kind
        is_usage = self._num_ready == 0 and kind in _USAGE_ERRORS
        self._end(reason, EXIT_USAGE if is_usage else EXIT_FAILED)

    def _end(self, reason: str, exit_code: int) -> None:
        self._display.close()
        print(f"remuda: {reason}", file=sys.stderr, flush=True)
        self._exit_code = exit_code
        self._state.is_draining = True
        self._http.should_exit = True

    def _fail_requests(self) -> None:
        self._link.fail_all(EngineDeadError("the server is shutting down"))


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Its notes at level info tell nothing that the ready line does not.
    logging.getLogger("uvicorn").setLevel(max(logging.getLogger().level, logging.WARNING))
