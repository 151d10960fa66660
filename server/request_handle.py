"""One request under way as its HTTP side sees it: outputs taken, or passed on as they come; errors and bounds."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from remuda.engine.errors import RemudaError
from remuda.engine.wire import AbortRequest, SequenceOutput, ToEngine
from remuda.server.errors import RequestTimeoutError, SlowClientError
from remuda.server.token_meter import TokenMeter

# Takes outputs as they come; False when it wants no more.
Sink = Callable[[list[SequenceOutput]], bool]

# Outputs that may wait for a request that is stuck in sending, besides 64 per choice. One with log-probabilities
# counts as many, by its size.
_MAX_WAITING_OUTPUTS: Final = 1024
_WEIGHT_OF_LOGPROBS: Final = 8
# From so many on they are put together, which takes a tenth of the memory.
_MAX_SINGLE_OUTPUTS: Final = 64


class Link(Protocol):
    """What a request asks of the connection to its engine."""

    def send(self, message: ToEngine) -> None:
        """Send to the engine, where there is one."""

    def forget(self, request_ids: list[str], *, is_finished: bool) -> None:
        """Route no more outputs, and end in the engine what has not finished."""


class RequestHandle:
    """One HTTP request under way: a prompt or several, each of `n` sequences, numbered as choices.

    Choice `p * n + i` is sequence i of prompt p; outputs carry the choice's number as their `index`.
    """

    def __init__(self, link: Link, request_ids: list[str], num_choices_each: int) -> None:
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
        if output.finish_reason is None and output.logprobs is None and output.prompt_logprob_pieces is None:
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
