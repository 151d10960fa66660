"""The client for asyncio: `AsyncClient`, and the `AsyncStream` it gives. Only I/O is here, as in client.py."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Self, TypeVar

import httpx2

from remuda.clients.calls import Call, StreamCall
from remuda.clients.endpoints import BaseStream, Endpoints
from remuda.clients.errors import TimedOutError
from remuda.clients.exchange import Exchange

T = TypeVar("T")
E = TypeVar("E")


class AsyncClient(Endpoints):
    """A client of one server, for any number of tasks of one event loop. Close it, or use it in `async with`.

    sleep: may be replaced, in tests.
    """

    sleep: Callable[[float], Awaitable[None]]

    def _open(self) -> None:
        self.sleep = asyncio.sleep
        self._http = httpx2.AsyncClient(**self._settings.http_arguments())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """The answer to a call. Raises ClientError."""
        exchange = self.exchange(call.request)
        async with self.answered(exchange) as response:
            try:
                await _in_time(exchange, response.aread)
            except httpx2.RequestError as error:
                raise exchange.failure(error) from error
            return exchange.parsed(response, call.parse)

    def stream(self, call: StreamCall[E]) -> "AsyncStream[E]":
        """The stream of a call, which is sent when the first event is asked for."""
        return AsyncStream(self, call)

    @contextlib.asynccontextmanager
    async def answered(self, exchange: Exchange) -> AsyncIterator[httpx2.Response]:
        """An answer that is no error, its body not yet read. Raises ClientError."""
        response = await self._attempt(exchange)
        try:
            yield response
        finally:
            await response.aclose()

    async def _attempt(self, exchange: Exchange) -> httpx2.Response:
        while True:
            try:
                request = self._http.build_request(**exchange.arguments())
                response = await _in_time(exchange, functools.partial(self._http.send, request, stream=True))
                if exchange.is_answer(response):
                    return response
                # Where its body breaks off, its head says enough.
                with contextlib.suppress(httpx2.RequestError, TimedOutError):
                    async with contextlib.aclosing(response):
                        await _in_time(exchange, response.aread)
                delay = exchange.delay_after_refusal(response)
            except httpx2.RequestError as error:
                delay = exchange.delay_after_failure(error)
            await self.sleep(delay)


class AsyncStream(BaseStream[AsyncClient, E]):
    """An asynchronous iterator over the events of one answer; else as `Stream`.

    One that is left early without `async with` or `close` ends its request only when it is collected.
    """

    def __init__(self, client: AsyncClient, call: StreamCall[E]) -> None:
        super().__init__(client, call)
        self._events = self._read()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        return await anext(self._events)

    async def close(self) -> None:
        """End the request, if it has not ended."""
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[E, None]:
        exchange, reader = self._client.exchange(self._call.request), self._reader
        async with self._client.answered(exchange) as response:
            exchange.check_stream(response)
            pieces = response.aiter_bytes()
            while not reader.is_done:
                try:
                    data = await _in_time(exchange, lambda: anext(pieces, b""))
                except (httpx2.RequestError, TimedOutError) as error:
                    if reader.is_whole:
                        break
                    raise reader.broken(exchange.failure(error)) from error
                if not data:
                    break
                for event in reader.feed(data):
                    yield event
        reader.end(exchange.lateness())


async def _in_time(exchange: Exchange, work: Callable[[], Awaitable[T]]) -> T:
    """What it gives. Raises TimedOutError when the total has passed; then it is not begun, or cancelled."""
    try:
        async with asyncio.timeout(exchange.remaining()):
            return await work()
    except TimeoutError as error:
        raise exchange.timed_out() from error
