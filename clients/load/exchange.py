"""Sends one request and reads its stream into a Record. Whatever goes wrong is noted there; nothing is raised."""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from remuda.clients.load.record import Record
from remuda.clients.load.sse import BadEventError, EventReader

# Called with each read that brought tokens, after they were noted.
OnTokens = Callable[[Record, int, float], None]
_CONNECT_S: Final = 30.0
_LINGER_S: Final = 1.0
_LARGE_BODY: Final = 2**20


@dataclass(frozen=True)
class Wire:
    """url: of the endpoint. timeout: seconds for a whole request. key: sent as a bearer token, written nowhere."""

    url: str
    timeout: float
    key: str | None = None

    def session(self) -> aiohttp.ClientSession:
        """Connections are kept and not limited in number."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=_CONNECT_S),
        )


async def exchange(
    session: aiohttp.ClientSession, url: str, body: bytes, record: Record, on_tokens: OnTokens
) -> None:
    """POST `body` and read to the end. Cancelled, it closes the connection and leaves `record.end` None."""
    reader = EventReader()
    record.sent = time.perf_counter()
    record.origin = record.origin or record.sent
    try:
        # aiohttp takes larger ones apart only if they come as a file.
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        async with session.post(url, data=data) as response:
            record.taken = time.perf_counter()
            if response.status != 200:
                record.fail(str(response.status), (await response.content.read(500)).decode(errors="replace"))
                return
            if response.content_type != "text/event-stream":
                record.fail("not a stream", f"content type {response.content_type}")
                return
            await _read(response.content, reader, record, on_tokens)
    except BadEventError as error:
        record.fail("bad event", str(error))
    except aiohttp.ClientConnectorError as error:
        record.fail("connection", str(error))
    except TimeoutError:
        record.fail("timeout", "no end in time")
    except (aiohttp.ClientError, OSError) as error:
        is_begun = record.first is not None or isinstance(error, aiohttp.ClientPayloadError)
        record.fail("broken stream" if is_begun else "disconnected", f"{type(error).__name__}: {error}")
    _conclude(reader, record)


async def _read(stream: aiohttp.StreamReader, reader: EventReader, record: Record, on_tokens: OnTokens) -> None:
    while data := await stream.readany():
        now = time.perf_counter()
        num_tokens = reader.feed(data)
        if num_tokens:
            record.take(num_tokens, now)
            on_tokens(record, num_tokens, now)
        if reader.is_done or reader.error:
            record.end = now
            await _finish(stream)
            return
    record.end = time.perf_counter()


async def _finish(stream: aiohttp.StreamReader) -> None:
    """The end of the body often comes a little after `[DONE]`; only behind it can the connection be kept."""
    with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
        await asyncio.wait_for(stream.read(), _LINGER_S)


def _conclude(reader: EventReader, record: Record) -> None:
    """What the stream said about itself; without a word of its end it broke."""
    if reader.error is not None:
        record.fail("error event", reader.error)
    elif record.error is None and reader.finish_reason is None:
        record.fail("no finish", "the stream ended without a finish reason")
    record.finish_reason = reader.finish_reason
    record.usage_tokens = reader.usage_tokens
    record.output_tokens = record.seen_tokens if reader.usage_tokens is None else reader.usage_tokens
    if reader.prompt_tokens is not None:
        record.prompt_tokens = reader.prompt_tokens
