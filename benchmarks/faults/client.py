"""A client over raw asyncio streams that can be rude: leave at any point, or send and never read."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

PROMPT = "Once upon a time, there was a little"


class Gone(Exception):
    """The server has closed the connection in the middle."""


@dataclass
class Answer:
    """One answer as it came. times: of each piece of its body, on the monotonic clock."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    times: list[float] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """It is a 200 that says of itself that nothing is missing."""
        return self.status == 200 and (b"[DONE]" in self.body or self.body.startswith(b"{"))

    @property
    def has_error_event(self) -> bool:
        """It is a stream that ends with an error."""
        return self.status == 200 and b'data: {"error"' in self.body


class Connection:
    """One connection; reused until either side closes it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *unused: object) -> None:
        self.close()

    def take_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use a connection that was made elsewhere."""
        self._reader, self._writer = reader, writer

    async def send(self, body: dict[str, Any], path: str = "/v1/completions") -> None:
        """Send a request, over a new connection where there is none."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        data = json.dumps({"model": "demo", **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        self._writer.write(f"{head}\r\n\r\n".encode() + data)
        await self._writer.drain()

    async def start(self) -> Answer:
        """Status and headers. Raises Gone."""
        assert self._reader is not None
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            raise Gone from error
        status_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return Answer(int(status_line.split()[1]), headers)

    async def pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """The body, piece by piece, gathered in the answer, too. Raises Gone."""
        assert self._reader is not None
        try:
            if "content-length" in answer.headers:
                answer.body = await self._reader.readexactly(int(answer.headers["content-length"]))
                yield answer.body
                return
            while (size := int(await self._reader.readline() or b"x", 16)) > 0:
                piece = (await self._reader.readexactly(size + 2))[:-2]
                answer.times.append(time.monotonic())
                answer.body += piece
                yield piece
            await self._reader.readline()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            self.close()
            raise Gone from error
        finally:
            if answer.headers.get("connection") == "close":
                self.close()

    async def ask(self, body: dict[str, Any]) -> Answer:
        """Send a request and read its whole answer. Raises Gone."""
        await self.send(body)
        answer = await self.start()
        async for _ in self.pieces(answer):
            pass
        return answer

    def close(self) -> None:
        """Leave, whatever is under way."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._reader = self._writer = None


def story(max_tokens: int, *, stream: bool = True, prompt: Any = PROMPT, **more: Any) -> dict[str, Any]:
    """A request for exactly so many tokens."""
    return {"prompt": prompt, "max_tokens": max_tokens, "stream": stream, "ignore_eos": True, **more}
