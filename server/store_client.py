"""The response store of the parent, as an API worker sees it: a `ResponseStore` over a Unix socket."""

import asyncio
import itertools
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from remuda.server.errors import ServerUnavailableError, typed_error
from remuda.server.response_store import Conversation, OnEnd, StoredResponse
from remuda.server.store_wire import (
    Answer,
    Converse,
    Create,
    Delete,
    Done,
    Ended,
    Found,
    FromStore,
    Get,
    Refused,
    ToStore,
    Turns,
    Update,
    read_frame,
    write_frame,
)

# A parent that is stopped or stuck must not hold up every request with it.
CALL_TIMEOUT_S: Final = 10.0

Kind = TypeVar("Kind", Found, Done, Turns)


class RemoteResponseStore:
    """Connects at its first use. Every method raises ServerUnavailableError where the parent does not answer."""

    def __init__(self, path: Path, *, is_enabled: bool) -> None:
        self._path = path
        self._is_enabled = is_enabled
        self._decoder = msgspec.msgpack.Decoder(FromStore)
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._on_end: dict[str, OnEnd] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    @property
    def is_enabled(self) -> bool:
        """See `ResponseStore`."""
        return self._is_enabled

    async def create(self, response: StoredResponse, on_end: OnEnd | None = None) -> None:
        """See `ResponseStore`."""
        if on_end is not None:
            self._on_end[response.id] = on_end
        is_kept = False
        try:
            await self._call(Create(next(self._numbers), response, on_end is not None), Done)
            is_kept = True
        except (ServerUnavailableError, asyncio.CancelledError):
            self._take_back(response.id)
            raise
        finally:
            if not is_kept:
                self._on_end.pop(response.id, None)

    async def get(self, response_id: str) -> StoredResponse | None:
        """See `ResponseStore`."""
        return (await self._call(Get(next(self._numbers), response_id), Found)).response

    async def update(self, response: StoredResponse) -> bool:
        """See `ResponseStore`."""
        return (await self._call(Update(next(self._numbers), response), Done)).is_done

    async def delete(self, response_id: str) -> bool:
        """See `ResponseStore`."""
        return (await self._call(Delete(next(self._numbers), response_id), Done)).is_done

    async def conversation(self, response_id: str, max_bytes: int) -> Conversation:
        """See `ResponseStore`."""
        return (await self._call(Converse(next(self._numbers), response_id, max_bytes), Turns)).conversation

    async def close(self) -> None:
        """Leave; what this worker runs counts as failed then."""
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            await self._reading

    def _take_back(self, response_id: str) -> None:
        """The store may yet keep what its caller has given up; no one waits for the answer."""
        if self._writer is not None:
            write_frame(self._writer, Delete(next(self._numbers), response_id))

    async def _call(self, call: ToStore, kind: type[Kind]) -> Kind:
        writer = await self._connect()
        future = self._calls[call.number] = asyncio.get_running_loop().create_future()
        try:
            write_frame(writer, call)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await future
        except TimeoutError as error:
            raise _unavailable() from error
        finally:
            self._calls.pop(call.number, None)
        if isinstance(answer, Refused):
            raise typed_error(answer.kind, answer.message, answer.param)
        assert isinstance(answer, kind)
        return answer

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                try:
                    reader, self._writer = await asyncio.open_unix_connection(self._path)
                except OSError as error:
                    raise _unavailable() from error
                self._reading = asyncio.create_task(self._read(reader))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await read_frame(reader)) is not None:
                self._take(self._decoder.decode(frame))
        finally:
            self._lose()

    def _take(self, message: FromStore) -> None:
        if isinstance(message, Ended):
            on_end = self._on_end.pop(message.response_id, None)
            if on_end is not None:
                on_end()
        elif (future := self._calls.get(message.number)) is not None and not future.done():
            future.set_result(message)

    def _lose(self) -> None:
        """The parent is gone: nobody answers any more, and nobody keeps what runs here."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(_unavailable())
        ended, self._on_end = self._on_end, {}
        for on_end in ended.values():
            on_end()


def _unavailable() -> ServerUnavailableError:
    return ServerUnavailableError("the store of responses does not answer; try again soon")
