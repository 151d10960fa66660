"""The client that waits: `Client`, and the `Stream` it gives. Only I/O is here; async_client.py is its twin."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Self, TypeVar

import httpx2

from remuda.clients.calls import Call, StreamCall
from remuda.clients.endpoints import BaseStream, Endpoints
from remuda.clients.errors import TimedOutError
from remuda.clients.exchange import Exchange

T = TypeVar("T")
E = TypeVar("E")


class Client(Endpoints):
    """A client of one server, for any number of threads. Close it, or use it in a `with` block.

    sleep: may be replaced, in tests.
    """

    sleep: Callable[[float], None]

    def _open(self) -> None:
        self.sleep = time.sleep
        self._http = httpx2.Client(**self._settings.http_arguments())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """The answer to a call. Raises ClientError."""
        exchange = self.exchange(call.request)
        with self.answered(exchange) as response:
            try:
                response.read()
            except httpx2.RequestError as error:
                raise exchange.failure(error) from error
            return exchange.parsed(response, call.parse)

    def stream(self, call: StreamCall[E]) -> "Stream[E]":
        """The stream of a call, which is sent when the first event is asked for."""
        return Stream(self, call)

    @contextlib.contextmanager
    def answered(self, exchange: Exchange) -> Iterator[httpx2.Response]:
        """An answer that is no error, its body not yet read. Raises ClientError."""
        response = self._attempt(exchange)
        try:
            with _ended_by(exchange, response):
                yield response
        finally:
            response.close()

    def _attempt(self, exchange: Exchange) -> httpx2.Response:
        while True:
            try:
                request = self._http.build_request(**exchange.arguments())
                response = self._http.send(request, stream=True)
                if exchange.is_answer(response):
                    return response
                # Where its body breaks off, its head says enough.
                with (
                    contextlib.suppress(httpx2.RequestError, TimedOutError),
                    contextlib.closing(response),
                    _ended_by(exchange, response),
                ):
                    response.read()
                delay = exchange.delay_after_refusal(response)
            except httpx2.RequestError as error:
                delay = exchange.delay_after_failure(error)
            self.sleep(delay)


class Stream(BaseStream[Client, E]):
    """An iterator over the events of one answer. Left early, by `close` or the end of a `with` block, it ends the
    request. Raises ClientError; after the beginning of the answer, StreamError.
    """

    def __init__(self, client: Client, call: StreamCall[E]) -> None:
        super().__init__(client, call)
        self._events = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        return next(self._events)

    def close(self) -> None:
        """End the request, if it has not ended."""
        self._events.close()

    def _read(self) -> Generator[E, None, None]:
        exchange, reader = self._client.exchange(self._call.request), self._reader
        with self._client.answered(exchange) as response:
            exchange.check_stream(response)
            try:
                for data in response.iter_bytes():
                    yield from reader.feed(data)
                    if reader.is_done:
                        return
            except httpx2.RequestError as error:
                if not reader.is_whole:
                    raise reader.broken(exchange.failure(error)) from error
        reader.end(exchange.lateness())


@contextlib.contextmanager
def _ended_by(exchange: Exchange, response: httpx2.Response) -> Iterator[None]:
    """Break the connection when the total has passed, so that no read outlasts it."""
    remaining = exchange.remaining()
    if remaining is None:
        yield
        return
    connection: socket.socket = response.extensions["network_stream"].get_extra_info("socket")
    timer = threading.Timer(remaining, _shut_down, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(connection: socket.socket) -> None:
    # It may have been closed meanwhile. Below TLS, whose own end would wait for the peer.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
