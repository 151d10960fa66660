"""What both clients have, written once: the methods, each a call of `calls.py` that its client sends."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, overload

from remuda.clients import calls
from remuda.clients.calls import Call, Request, StreamCall
from remuda.clients.errors import Received
from remuda.clients.exchange import Exchange
from remuda.clients.retries import RetryPolicy
from remuda.clients.settings import DEFAULT_URL, Timeouts, make_settings

if TYPE_CHECKING:
    from remuda.clients.async_client import AsyncClient, AsyncStream
    from remuda.clients.client import Client, Stream

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E")
C = TypeVar("C", bound="Endpoints")
_DEFAULT_TIMEOUTS = Timeouts()
_DEFAULT_RETRIES = RetryPolicy()


class _Method(Generic[P, T]):
    """A method with one answer: of `Client` it returns a T, of `AsyncClient` an awaitable of one."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        functools.update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self if client is None else _bound(self._build, client.send)


class _StreamMethod(Generic[P, T]):
    """A method whose answer is a stream of T: a `Stream`, or of `AsyncClient` an `AsyncStream`."""

    def __init__(self, build: Callable[P, StreamCall[T]]) -> None:
        self._build = build
        functools.update_wrapper(self, build)  # type: ignore[arg-type]

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Stream[T]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncStream[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self if client is None else _bound(self._build, client.stream)


def _bound(build: Callable[..., Any], send: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def method(*args: Any, **kwargs: Any) -> Any:
        return send(build(*args, **kwargs))

    return method


class Endpoints:
    """What `Client` and `AsyncClient` share.

    url: of the server, with or without `/v1`. api_key: by default REMUDA_API_KEY of the environment. clock: in
    seconds, for the total timeout. Raises InvalidArgumentError for what cannot be meant.
    """

    completions = _Method(calls.completions)
    stream_completions = _StreamMethod(calls.stream_completions)
    chat = _Method(calls.chat)
    stream_chat = _StreamMethod(calls.stream_chat)
    respond = _Method(calls.respond)
    stream_respond = _StreamMethod(calls.stream_respond)
    retrieve_response = _Method(calls.retrieve_response)
    delete_response = _Method(calls.delete_response)
    cancel_response = _Method(calls.cancel_response)
    response_input_items = _Method(calls.response_input_items)
    embeddings = _Method(calls.embeddings)
    tokenize = _Method(calls.tokenize)
    detokenize = _Method(calls.detokenize)
    models = _Method(calls.models)
    model = _Method(calls.model)
    info = _Method(calls.info)
    health = _Method(calls.health)
    ready = _Method(calls.ready)
    version = _Method(calls.version)
    metrics = _Method(calls.metrics)

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        retries: RetryPolicy = _DEFAULT_RETRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = make_settings(url, api_key, timeouts, retries, clock)
        self._open()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.url!r})"

    @property
    def url(self) -> str:
        """Of the server, without `/v1`."""
        return self._settings.url

    def exchange(self, request: Request) -> Exchange:
        """A new one."""
        return Exchange(request, self._settings)

    def _open(self) -> None:
        raise NotImplementedError


class BaseStream(Generic[C, E]):
    """What `Stream` and `AsyncStream` share. Nothing is sent before the first event is asked for."""

    def __init__(self, client: C, call: StreamCall[E]) -> None:
        self._client = client
        self._call = call
        self._reader = call.make_reader()

    @property
    def received(self) -> Received:
        """What has come so far."""
        return self._reader.received
