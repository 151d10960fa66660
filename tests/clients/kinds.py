"""One way to use `Client` and `AsyncClient`, so that a test holds both to the same."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from remuda.clients import AsyncClient, Client, ClientError, RetryPolicy
from remuda.clients.errors import Received

NO_RETRIES = RetryPolicy(max_retries=0)


@dataclass
class Streamed:
    """What a stream gave before it ended, and how it ended."""

    events: list[Any] = field(default_factory=list)
    received: Received | None = None
    error: ClientError | None = None


@dataclass
class Kind:
    """Makes a client for each call. sleeps: what retries have waited."""

    is_async: bool
    sleeps: list[float] = field(default_factory=list)

    def call(self, url: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """The answer of a method. client: further arguments of the client."""
        options = {"retries": NO_RETRIES, **(client or {})}
        if self.is_async:
            return asyncio.run(self._call_async(url, method, args, options, kwargs))
        with Client(url, **options) as found:
            found.sleep = self.sleeps.append
            return getattr(found, method)(*args, **kwargs)

    def stream(
        self, url: str, method: str, client: dict[str, Any] | None = None, most: int | None = None, **kwargs: Any
    ) -> Streamed:
        """What a stream gives. most: leave it after so many events."""
        options = {"retries": NO_RETRIES, **(client or {})}
        streamed = Streamed()
        try:
            if self.is_async:
                asyncio.run(self._stream_async(url, method, options, kwargs, streamed, most))
            else:
                self._stream(url, method, options, kwargs, streamed, most)
        except ClientError as error:
            streamed.error = error
        return streamed

    async def _call_async(self, url: str, method: str, args: Any, options: Any, kwargs: Any) -> Any:
        async with AsyncClient(url, **options) as found:
            found.sleep = self._note
            return await getattr(found, method)(*args, **kwargs)

    async def _note(self, delay: float) -> None:
        self.sleeps.append(delay)

    def _stream(
        self, url: str, method: str, options: Any, kwargs: Any, streamed: Streamed, most: int | None
    ) -> None:
        with Client(url, **options) as found:
            found.sleep = self.sleeps.append
            with getattr(found, method)(**kwargs) as stream:
                streamed.received = stream.received
                for event in stream:
                    streamed.events.append(event)
                    if len(streamed.events) == most:
                        break

    async def _stream_async(
        self, url: str, method: str, options: Any, kwargs: Any, streamed: Streamed, most: int | None
    ) -> None:
        async with AsyncClient(url, **options) as found:
            found.sleep = self._note
            async with getattr(found, method)(**kwargs) as stream:
                streamed.received = stream.received
                async for event in stream:
                    streamed.events.append(event)
                    if len(streamed.events) == most:
                        break
