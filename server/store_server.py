"""The one response store of a server with several API workers: in the parent, behind a Unix socket for them.

What a worker was running when its connection ends is over: those responses are kept as failed.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

import msgspec

from remuda.engine.errors import InvalidRequestError, RemudaError
from remuda.server.response_store import ResponseStore
from remuda.server.store_wire import (
    Answer,
    Converse,
    Create,
    Delete,
    Done,
    Ended,
    Found,
    Get,
    Refused,
    ToStore,
    Turns,
    Update,
    read_frame,
    write_frame,
)

_LOST: Final = {"code": "server_error", "message": "the process that ran this response has ended"}


class StoreServer:
    """Serves `store` to any number of `RemoteResponseStore`."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._decoder = msgspec.msgpack.Decoder(ToStore)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, path: Path) -> None:
        """Listen at `path`, in a directory that only this user may enter."""
        self._server = await asyncio.start_unix_server(self._accept, path)
        os.chmod(path, 0o600)

    async def stop(self) -> None:
        """Leave the workers, and take no others."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        running: set[str] = set()
        try:
            while (frame := await read_frame(reader)) is not None:
                write_frame(writer, await self._answer(self._decoder.decode(frame), running, writer))
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()
            for response_id in list(running):
                await self._lose(response_id)
            self._connections.discard(task)

    async def _answer(self, call: ToStore, running: set[str], writer: asyncio.StreamWriter) -> Answer:
        """running: ids of the responses that this connection's worker runs."""
        store = self._store
        match call:
            case Get(number, response_id):
                return Found(number, await store.get(response_id))
            case Update(number, response):
                return Done(number, await store.update(response))
            case Delete(number, response_id):
                return Done(number, await store.delete(response_id))
            case Converse(number, response_id, max_bytes):
                return Turns(number, await store.conversation(response_id, max_bytes))
            case Create():
                return await self._create(call, running, writer)

    async def _create(self, call: Create, running: set[str], writer: asyncio.StreamWriter) -> Answer:
        response_id = call.response.id

        def on_end() -> None:
            running.discard(response_id)
            if call.wants_end:
                write_frame(writer, Ended(response_id))

        try:
            await self._store.create(call.response, on_end)
        except RemudaError as error:
            param = error.param if isinstance(error, InvalidRequestError) else None
            return Refused(call.number, type(error).__name__, str(error), param)
        running.add(response_id)
        return Done(call.number, is_done=True)

    async def _lose(self, response_id: str) -> None:
        """Note that a response has lost the worker that ran it."""
        found = await self._store.get(response_id)
        if found is not None:
            body = {**msgspec.json.decode(found.body), "status": "failed", "error": _LOST}
            failed = msgspec.structs.replace(found, status="failed", body=msgspec.json.encode(body))
            await self._store.update(failed)
