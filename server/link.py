"""An API worker's side of the engine socket: requests out, outputs in, one call or wake-up per step and request.

A raw ZeroMQ socket under the event loop's reader. Its descriptor is edge-triggered: it tells of news
once, so it is drained until it is empty, and looked at again after each send.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Final

import msgspec
import zmq

from remuda.engine.config import EngineInfo
from remuda.engine.errors import EngineDeadError, RemudaError
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
    SequenceOutput,
    StatsRequest,
    StepOutputs,
    ToEngine,
)
from remuda.server.errors import (
    RequestTimeoutError,
    ServerUnavailableError,
    SlowClientError,
    typed_error,
)
from remuda.server.request_limits import RequestLimits
from remuda.server.token_meter import TokenMeter

logger = logging.getLogger(__name__)

# Takes outputs as they come; False when it wants no more.
Sink = Callable[[list[SequenceOutput]], bool]

# Messages taken in one go; then the requests get to run, so that a long stall here is not blamed on them.
_MAX_MESSAGES_AT_ONCE: Final = 64
# Outputs that may wait for a request that is stuck in sending, besides 64 per choice. One with log-probabilities
# counts as many, by its size.
_MAX_WAITING_OUTPUTS: Final = 1024
_WEIGHT_OF_LOGPROBS: Final = 8
# From so many on they are put together, which takes a tenth of the memory.
_MAX_SINGLE_OUTPUTS: Final = 64


class EngineStatus(Enum):
    """What an API worker knows of the engine."""

    DOWN = "down"
    LOADING = "loading"
    READY = "ready"


class RequestHandle:
    """One HTTP request under way: a prompt or several, each of `n` sequences, numbered as choices.

    Choice `p * n + i` is sequence i of prompt p; outputs carry the choice's number as their `index`.
    """

    def __init__(self, link: "EngineLink", request_ids: list[str], num_choices_each: int) -> None:
        self._link = link
        self._request_ids = request_ids
        self._num_each = num_choices_each
        self._num_unfinished = len(request_ids) * num_choices_each
        self._max_waiting = _MAX_WAITING_OUTPUTS + 64 * self._num_unfinished
        self._arrived: list[SequenceOutput] = []
        # While more wait than may wait singly: the last of each choice, and the weight of all.
        self._last_of: dict[int, SequenceOutput] = {}
        self._weight = 0
        self._error: RemudaError | None = None
        # Told True when there is news, False when nothing has come for too long.
        self._waiter: asyncio.Future[bool] | None = None
        # While the waiter waits: what takes the outputs in its stead.
        self._sink: Sink | None = None
        self._loop = asyncio.get_running_loop()
        # One timer for many takes: setting one for each would cost more than all else that a take does.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._idle_s = 0.0
        self._idle_until = 0.0
        self._time_limit: asyncio.TimerHandle | None = None
        self.meter = TokenMeter(self._num_unfinished)

    @property
    def error(self) -> RemudaError | None:
        """What has ended the request before its time."""
        return self._error

    async def take(self, idle_s: float) -> list[SequenceOutput]:
        """Everything that has arrived; empty where nothing does within `idle_s` seconds.

        Raises the typed error of a rejected or failed request, once what came before it was taken.
        """
        if not self._arrived and self._error is None:
            await self._wait(idle_s)
        if self._arrived:
            return self._take_arrived(monotonic())
        if self._error is not None:
            raise self._error
        return []

    async def pass_on(self, sink: Sink, idle_s: float) -> bool:
        """Have `sink` called, outside of this task, with all that arrives, until it wants no more, or something
        has ended the request: then True. False where nothing arrives within `idle_s` seconds.

        Raises the error of a request that has ended, once what came before it was passed on; and what `sink` does.
        """
        if self._arrived and not sink(self._take_arrived(monotonic())):
            return True
        if self._error is not None:
            raise self._error
        self._sink = sink
        try:
            return await self._wait(idle_s)
        finally:
            self._sink = None

    def abort_choice(self, choice: int) -> None:
        """End one choice, as a stop string does; what it still brings may be ignored."""
        if self._error is not None:
            # It has ended already; the engine that it ran in may be gone.
            return
        prompt, index = divmod(choice, self._num_each)
        self._link.send(AbortRequest(self._request_ids[prompt], index))

    def fail(self, error: RemudaError) -> None:
        """Make `take` raise `error`, and end the request in the engine."""
        if self._error is None:
            self._error = error
            self.close()
            self._wake(True)

    def limit_time(self, seconds: float) -> None:
        """Make the request fail where it has not ended after so long."""
        error = RequestTimeoutError(f"the request did not end within the limit of {seconds:g} s")
        self._time_limit = self._loop.call_later(seconds, self.fail, error)

    def close(self) -> None:
        """Forget the request; in the engine it ends too. Harmless when it has ended already."""
        if self._time_limit is not None:
            self._time_limit.cancel()
            self._time_limit = None
        self._link.forget(self._request_ids, is_finished=self._num_unfinished == 0)
        self._num_unfinished = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def deliver(self, output: SequenceOutput) -> bool:
        """The link's side: hand over one output; True where `flush` is to follow, once for all of a message."""
        if output.finish_reason is not None:
            self._num_unfinished -= 1
        if self._sink is not None:
            self._arrived.append(output)
            return len(self._arrived) == 1
        waiter = self._waiter
        if waiter is not None:
            self._arrived.append(output)
            # As `_wake` does, without a call: this is done for each token.
            self._waiter = None
            if not waiter.done():
                waiter.set_result(True)
            return False
        if len(self._arrived) < _MAX_SINGLE_OUTPUTS:
            self._arrived.append(output)
        else:
            self._put_together(output)
        self._weight += 1 if output.logprobs is None else _WEIGHT_OF_LOGPROBS
        if self._weight > self._max_waiting:
            self._arrived.clear()
            self._last_of.clear()
            self.fail(SlowClientError("the client reads too slowly; its request was ended"))
        return False

    def flush(self, now: float) -> None:
        """The link's side: give the sink what has been delivered. now: by `time.monotonic`."""
        sink = self._sink
        if sink is None:
            # The task has been woken since, and takes it.
            return
        try:
            wants_more = sink(self._take_arrived(now))
        except Exception as error:  # noqa: BLE001
            # It is the waiting task's work that failed here; there it is raised, and ends that request alone.
            self._wake(error)
            return
        if wants_more:
            self._idle_until = now + self._idle_s
        else:
            self._wake(True)

    def _take_arrived(self, now: float) -> list[SequenceOutput]:
        arrived, self._arrived, self._weight = self._arrived, [], 0
        if self._last_of:
            self._last_of = {}
        self.meter.note(arrived, self._num_unfinished, now)
        return arrived

    async def _wait(self, idle_s: float) -> bool:
        self._waiter = self._loop.create_future()
        self._idle_s = idle_s
        self._idle_until = monotonic() + idle_s
        if self._timer is None or self._timer_at > self._idle_until:
            self._set_timer()
        return await self._waiter

    def _put_together(self, output: SequenceOutput) -> None:
        """Add an output to the one before it of the same choice, where both have tokens only."""
        if output.finish_reason is None and output.logprobs is None and output.prompt_logprobs is None:
            last = self._last_of.setdefault(output.index, output)
            if last is not output:
                last.token_ids += output.token_ids
                return
        self._arrived.append(output)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._idle_until
        self._timer = self._loop.call_later(max(0.0, self._timer_at - monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if monotonic() < self._idle_until:
            self._set_timer()
        else:
            self._wake(False)

    def _wake(self, outcome: bool | Exception) -> None:
        waiter, self._waiter, self._sink = self._waiter, None, None
        if waiter is None or waiter.done():
            return
        if isinstance(outcome, Exception):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)


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
            self.send(AddRequest(prompt_id, prompt, params))
        if self.limits.request_timeout_s is not None:
            handle.limit_time(self.limits.request_timeout_s)
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
