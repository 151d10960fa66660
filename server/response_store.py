"""Responses that `store` keeps, for retrieval and for `previous_response_id`. Bounded; in memory; nothing on disk.

`ResponseStore` is all that the routes know. Every method is async and takes and gives plain structs of bytes, so
that the store may stand in another process: a store in each of several API workers would not find what another
has kept, so the parent has the one store, by `store_server.py`, and workers reach it by `store_client.py`. That
is one hop over a Unix socket for each call, and needs no affinity from whoever spreads the connections. A later
issue may add the saved state of the model to `StoredResponse`, so that a conversation is not read again.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from remuda.engine.errors import InvalidRequestError, QueueFullError

DEFAULT_MAX_RESPONSES: Final = 10_000
DEFAULT_MAX_STORED_BYTES: Final = 256 * 2**20
# What Python's objects around one response take, about.
_OVERHEAD_BYTES: Final = 1024
_RUNNING: Final = frozenset({"queued", "in_progress"})
# A response of these statuses can be gone on from.
_CONTINUABLE: Final = frozenset({"completed", "incomplete"})


class StoredResponse(msgspec.Struct, frozen=True):
    """body: the response object; input_items: what was asked, without earlier turns. Both are JSON."""

    id: str
    status: str
    body: bytes
    input_items: bytes
    previous_id: str | None = None
    is_background: bool = False

    @property
    def is_running(self) -> bool:
        """It has not ended."""
        return self.status in _RUNNING

    @property
    def is_continuable(self) -> bool:
        """It has an answer that a next turn may follow."""
        return self.status in _CONTINUABLE

    @property
    def num_bytes(self) -> int:
        """What it counts for."""
        return len(self.body) + len(self.input_items) + _OVERHEAD_BYTES


class Conversation(msgspec.Struct, frozen=True):
    """The turns up to a response, first things first. missing_id: the turn that is not there, or not any more."""

    turns: list[StoredResponse]
    missing_id: str | None = None
    is_too_long: bool = False


OnEnd = Callable[[], None]


class ResponseStore(Protocol):
    """What the routes need of a store."""

    @property
    def is_enabled(self) -> bool:
        """It keeps anything at all."""
        ...

    async def create(self, response: StoredResponse, on_end: OnEnd | None = None) -> None:
        """Keep a response that runs. `on_end` is called once it has ended or is deleted, by whomever.

        Raises InvalidRequestError where it is too large, QueueFullError where only running ones are kept.
        """
        ...

    async def get(self, response_id: str) -> StoredResponse | None:
        """The response; it counts as used now."""
        ...

    async def update(self, response: StoredResponse) -> bool:
        """Replace a response that runs. False where it does not: it has ended, or is deleted."""
        ...

    async def delete(self, response_id: str) -> bool:
        """Forget a response. False where there is none."""
        ...

    async def conversation(self, response_id: str, max_bytes: int) -> Conversation:
        """The turns up to and with this response; all of them count as used now."""
        ...


class MemoryResponseStore:
    """The `ResponseStore` in this process. The least recently used that have ended give way to new ones."""

    def __init__(
        self, max_responses: int = DEFAULT_MAX_RESPONSES, max_bytes: int = DEFAULT_MAX_STORED_BYTES
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._running: dict[str, tuple[StoredResponse, OnEnd | None]] = {}
        self._ended: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0

    @property
    def is_enabled(self) -> bool:
        """See `ResponseStore`."""
        return self._max_responses > 0

    @property
    def num_responses(self) -> int:
        """Responses kept."""
        return len(self._running) + len(self._ended)

    async def create(self, response: StoredResponse, on_end: OnEnd | None = None) -> None:
        """See `ResponseStore`."""
        assert response.is_running
        if response.num_bytes > self._max_bytes:
            raise InvalidRequestError(
                f"store: the response takes {response.num_bytes} bytes, more than the limit of {self._max_bytes}; "
                "send store: false",
                param="store",
            )
        self.num_bytes += response.num_bytes
        self._running[response.id] = (response, on_end)
        self._make_room()
        if self._is_over():
            del self._running[response.id]
            self.num_bytes -= response.num_bytes
            raise QueueFullError(
                f"the {len(self._running)} responses that run now are all that the store can keep"
            )

    async def get(self, response_id: str) -> StoredResponse | None:
        """See `ResponseStore`."""
        return self._use(response_id)

    async def update(self, response: StoredResponse) -> bool:
        """See `ResponseStore`."""
        if response.id not in self._running:
            return False
        before, on_end = self._running.pop(response.id)
        self.num_bytes += response.num_bytes - before.num_bytes
        if response.is_running:
            self._running[response.id] = (response, on_end)
        else:
            self._ended[response.id] = response
        self._make_room()
        if on_end is not None and not response.is_running:
            on_end()
        return True

    async def delete(self, response_id: str) -> bool:
        """See `ResponseStore`."""
        return self._drop(response_id)

    async def conversation(self, response_id: str, max_bytes: int) -> Conversation:
        """See `ResponseStore`. It cannot run in circles: a response names only one that was there before it."""
        turns: list[StoredResponse] = []
        num_bytes = 0
        next_id: str | None = response_id
        while next_id is not None:
            turn = self._use(next_id)
            if turn is None:
                return Conversation([], missing_id=next_id)
            num_bytes += turn.num_bytes
            if num_bytes > max_bytes:
                return Conversation([], is_too_long=True)
            turns.append(turn)
            next_id = turn.previous_id
        return Conversation(turns[::-1])

    def _use(self, response_id: str) -> StoredResponse | None:
        if response_id in self._running:
            return self._running[response_id][0]
        if response_id in self._ended:
            self._ended.move_to_end(response_id)
        return self._ended.get(response_id)

    def _drop(self, response_id: str) -> bool:
        response, on_end = self._running.pop(response_id, (None, None))
        response = response or self._ended.pop(response_id, None)
        if response is None:
            return False
        self.num_bytes -= response.num_bytes
        if on_end is not None:
            on_end()
        return True

    def _is_over(self) -> bool:
        return self.num_responses > self._max_responses or self.num_bytes > self._max_bytes

    def _make_room(self) -> None:
        while self._ended and self._is_over():
            self.num_bytes -= self._ended.popitem(last=False)[1].num_bytes
