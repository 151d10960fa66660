"""An API worker's side of the engine socket: requests out, outputs in, one call or wake-up per step and request.

A raw ZeroMQ socket under the event loop's reader. Its descriptor is edge-triggered: it tells of news
once, so it is drained until it is empty, and looked at again after each send.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Final

import msgspec
import zmq

from remuda.engine.config import EngineInfo
from remuda.engine.errors import EngineDeadError, RemudaError
from remuda.engine.heap import TokensLetGo, trim_heap
from remuda.engine.sampling_params import SamplingParams
from remuda.engine.wire import (
    HELLO,
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestRejected,
    StatsRequest,
    StepOutputs,
    ToEngine,
    pack_ids,
)
from remuda.server.errors import ServerUnavailableError, typed_error
from remuda.server.request_handle import RequestHandle
from remuda.server.request_limits import RequestLimits

# Messages taken in one go; then the requests get to run, so that a long stall here is not blamed on them.
_MAX_MESSAGES_AT_ONCE: Final = 64
# The memory of prompts is given back so long after enough of them have come.
_TRIM_AFTER_S: Final = 1.0


class EngineStatus(Enum):
    """What an API worker knows of the engine."""

    DOWN = "down"
    LOADING = "loading"
    READY = "ready"


class EngineLink:
    """The connection to one engine process after another. Lives in one event loop.

    `listeners` are called after each change of status, progress or failure. name: how the engine knows this
    worker, unique among all that it ever hears of; without one it gives a name itself.
    """

    def __init__(self, limits: RequestLimits | None = None, *, name: str = "") -> None:
        self.limits = limits or RequestLimits()
        self._name = name
        self.listeners: list[Callable[[], None]] = []
        self.status = EngineStatus.DOWN
        self.info: EngineInfo | None = None
        self.progress = EngineLoading("starting", 0.0)
        self.failure: EngineFailed | None = None
        self._stats: EngineStats | None = None
        self._trim: asyncio.TimerHandle | None = None
        self._let_go = TokensLetGo(self._trim_soon)
        self._stats_waiter: asyncio.Future[EngineStats | None] | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._routes: dict[str, tuple[RequestHandle, int]] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    @property
    def num_requests(self) -> int:
        """Prompts under way."""
        return len(self._routes)

    def connect(self, address: str) -> None:
        """Speak to the engine process that binds, or will bind, `address`."""
        assert self._socket is None
        self.status, self.failure, self.progress = EngineStatus.LOADING, None, EngineLoading("starting", 0.0)
        socket = self._socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        if self._name:
            socket.setsockopt(zmq.IDENTITY, self._name.encode())
        # No limit here: what may wait is limited by the engine's queue and by each handle.
        socket.set_hwm(0)
        socket.connect(address)
        asyncio.get_running_loop().add_reader(socket.fileno(), self._drain)
        socket.send(HELLO)
        self._drain()

    def disconnect(self, error: RemudaError) -> None:
        """Leave this engine process; every request under way fails with `error`."""
        if self._socket is None:
            return
        while self._drain_some():
            pass
        socket, self._socket = self._socket, None
        self.status = EngineStatus.DOWN
        asyncio.get_running_loop().remove_reader(socket.fileno())
        socket.close()
        self._stats = None
        self._end_stats_wait()
        self.fail_all(error)
        self._on_change()

    def close(self) -> None:
        """Leave, and free the ZeroMQ context."""
        self.disconnect(EngineDeadError("the server is shutting down"))
        if self._trim is not None:
            self._trim.cancel()
        self._context.term()

    def fail_all(self, error: RemudaError) -> None:
        """Make every request under way fail with `error`."""
        for handle in {handle for handle, _ in self._routes.values()}:
            handle.fail(error)

    def submit(self, request_id: str, prompts: list[list[int]], params: SamplingParams) -> RequestHandle:
        """Send one request per prompt.

        Raises ServerUnavailableError while no engine is ready, InvalidRequestError beyond the limits.
        """
        self.limits.check_prompts(prompts)
        if self.status is not EngineStatus.READY:
            raise ServerUnavailableError(f"the engine is {self.status.value}; try again soon")
        request_ids = [f"{request_id}-{i}" for i in range(len(prompts))]
        handle = RequestHandle(self, request_ids, params.n)
        for i, (prompt_id, prompt) in enumerate(zip(request_ids, prompts, strict=True)):
            self._routes[prompt_id] = (handle, i * params.n)
            self.send(AddRequest(prompt_id, pack_ids(prompt), params))
        if self.limits.request_timeout_s is not None:
            handle.limit_time(self.limits.request_timeout_s)
        self._let_go.note(sum(map(len, prompts)))
        return handle

    async def ask_stats(self, within_s: float) -> EngineStats | None:
        """What the engine says of itself; its last word where it is busy for longer, None while there is none."""
        if self.status is not EngineStatus.READY:
            return None
        if self._stats_waiter is None:
            self._stats_waiter = asyncio.get_running_loop().create_future()
            self.send(StatsRequest())
        try:
            return await asyncio.wait_for(asyncio.shield(self._stats_waiter), within_s)
        except TimeoutError:
            return self._stats

    def forget(self, request_ids: list[str], *, is_finished: bool) -> None:
        """A handle's side: drop its routes, and end in the engine what has not finished."""
        for request_id in request_ids:
            if self._routes.pop(request_id, None) is not None and not is_finished:
                self.send(AbortRequest(request_id))

    def send(self, message: ToEngine) -> None:
        """Send to the engine; dropped while none is ready, which has nothing of ours to end."""
        if self._socket is not None and self.status is EngineStatus.READY:
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
            if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                asyncio.get_running_loop().call_soon(self._drain)

    def _trim_soon(self) -> None:
        """Give memory back in a moment: the bodies and lists of what has come are let go by then."""
        if self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(_TRIM_AFTER_S, self._trim_now)

    def _trim_now(self) -> None:
        self._trim = None
        trim_heap()

    def _end_stats_wait(self) -> None:
        waiter, self._stats_waiter = self._stats_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(self._stats)

    def _on_change(self) -> None:
        for listener in self.listeners:
            listener()

    def _drain(self) -> None:
        if self._drain_some():
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain_some(self) -> bool:
        """Take what has come, up to the limit of one go; True where there may be more."""
        for _ in range(_MAX_MESSAGES_AT_ONCE):
            if self._socket is None:
                return False
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._handle(self._decoder.decode(frame))
        return True

    def _handle(self, message: FromEngine) -> None:
        match message:
            case StepOutputs():
                self._deliver(message)
            case RequestRejected():
                self._reject(message)
            case EngineStats():
                self._stats = message
                self._end_stats_wait()
            case EngineLoading():
                self.progress = message
                self._on_change()
            case EngineReady():
                self.status, self.info = EngineStatus.READY, message.info
                self._on_change()
            case EngineFailed():
                self.status, self.failure = EngineStatus.DOWN, message
                self.fail_all(EngineDeadError(f"the engine failed: {message.message}"))
                self._on_change()

    def _deliver(self, step: StepOutputs) -> None:
        routes = self._routes
        to_flush: list[RequestHandle] = []
        for output in step.outputs:
            route = routes.get(output.request_id)
            if route is not None:
                handle, first_choice = route
                output.index += first_choice
                if handle.deliver(output):
                    to_flush.append(handle)
        now = monotonic()
        for handle in to_flush:
            handle.flush(now)

    def _reject(self, message: RequestRejected) -> None:
        route = self._routes.get(message.request_id)
        if route is not None:
            route[0].fail(typed_error(message.kind, message.message, message.param))
