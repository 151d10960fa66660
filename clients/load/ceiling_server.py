"""A server that only writes: events to every connection in turns, as fast as they are read. A process of its own.

Usage: python -m remuda.clients.load.ceiling_server NUM_EVENTS. It prints its port; each stream has so many tokens.
"""

import asyncio
import sys
from typing import Final, cast

import uvloop

EVENT: Final = (
    b'data: {"id":"cmpl-0123456789abcdef01234567","object":"text_completion","created":1700000000,"model":"none",'
    b'"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
_END: Final = (
    b'data: {"id":"cmpl-0123456789abcdef01234567","object":"text_completion","created":1700000000,"model":"none",'
    b'"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}],"usage":null}\n\ndata: [DONE]\n\n'
)
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class _Streams:
    """Those that are open, and how many events each is still to get."""

    def __init__(self, num_events: int) -> None:
        self.num_events = num_events
        self.left: dict[asyncio.Transport, int] = {}
        self.work = asyncio.Event()

    async def write(self) -> None:
        """One event to each stream that has taken the last, without end."""
        event, end = _chunk(EVENT), _chunk(_END) + b"0\r\n\r\n"
        while True:
            for transport, left in list(self.left.items()):
                if transport.is_closing():
                    del self.left[transport]
                elif transport.get_write_buffer_size() == 0:
                    transport.write(event if left else end)
                    if left:
                        self.left[transport] = left - 1
                    else:
                        del self.left[transport]
            await asyncio.sleep(0)
            if not self.left:
                self.work.clear()
                await self.work.wait()


class _Connection(asyncio.Protocol):
    def __init__(self, streams: _Streams) -> None:
        self._streams = streams
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        # The body is ignored: a request has ended with the blank line, and its body is small.
        self._request += data
        if b"\r\n\r\n" in self._request:
            self._request = b""
            self._transport.write(_HEAD)
            self._streams.left[self._transport] = self._streams.num_events
            self._streams.work.set()


async def serve(num_events: int) -> None:
    """Listen on a free port of the loopback address until the process is ended."""
    streams = _Streams(num_events)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(streams), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await streams.write()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
