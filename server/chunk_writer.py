"""Writes pieces of a body that is sent in chunks, at once: as uvicorn's `send` does, which is a coroutine.

All that it knows of uvicorn's insides is here. The answer's beginning and end go through `send`.
"""

from typing import Final

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class ChunkWriter:
    """For one answer under way. Other users of its `send` must not write between `is_ready` and `write`."""

    __slots__ = ("_cycle", "_flow", "_write")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle: Final = cycle
        self._flow: Final = cycle.flow
        self._write: Final = cycle.transport.write

    @classmethod
    def of(cls, send: Send) -> "ChunkWriter | None":
        """The writer beneath uvicorn's own `send`, where it has begun an answer in chunks to a peer that reads.

        Else None, as where uvicorn's insides are not as they are known here.
        """
        cycle = getattr(send, "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            return None
        try:
            writer = cls(cycle)
            is_usable = writer.is_ready and cycle.response_started and cycle.chunked_encoding
        except AttributeError:
            return None
        return writer if is_usable else None

    @property
    def is_ready(self) -> bool:
        """The peer is there, and reads."""
        return not (self._flow.write_paused or self._cycle.disconnected)

    def write(self, body: bytes) -> None:
        """Write a piece that is not empty, which would end the body; only while it `is_ready`."""
        self._write(b"%x\r\n%b\r\n" % (len(body), body))
