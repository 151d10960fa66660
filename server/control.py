"""What the parent and an API worker tell each other: JSON lines over a socket pair, until either ends."""

import asyncio
import socket
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from remuda.engine.checkpoint.find import CheckpointLocation
from remuda.server.options import ServeOptions
from remuda.server.restart_budget import Restarts

# A line with the options in it; the default of asyncio is 64 KiB.
_MAX_LINE_BYTES = 2**20


class Launch(msgspec.Struct, frozen=True, tag="launch"):
    """To the worker, first of all. name: how the engine is to know it. store_path: the response store's socket.

    is_engine_ready: an engine serves already, as it does when a worker is started again.
    """

    name: str
    options: ServeOptions
    location: CheckpointLocation
    tokenizer: str | None
    store_path: Path
    is_engine_ready: bool = False


class EngineUp(msgspec.Struct, frozen=True, tag="engine_up"):
    """To the worker: an engine process was started, which binds this address."""

    address: str


class EngineDown(msgspec.Struct, frozen=True, tag="engine_down"):
    """To the worker: that process has ended."""

    reason: str


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """To the worker: take no new requests, and tell when there is none left.

    has_given_up: since the engine, or the workers, will not be started again.
    """

    has_given_up: bool = False


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """To the worker: answer with Pong, from the loop that serves requests."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """To the parent: this worker's loop goes round."""


class WorkerReady(msgspec.Struct, frozen=True, tag="ready"):
    """To the parent: this worker serves requests."""


class WorkerIdle(msgspec.Struct, frozen=True, tag="idle"):
    """To the parent: after Drain, no request is left in this worker."""


class WorkerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """To the parent: this worker cannot serve, for a reason that the user can put right."""

    message: str


ToWorker = Launch | EngineUp | EngineDown | Drain | Restarts | Ping
ToParent = WorkerReady | WorkerIdle | WorkerFailed | Pong


Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Channel(Generic[Sent, Received]):
    """One end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: "msgspec.json.Decoder[Received]",
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.json.Encoder(enc_hook=_encode_path)
        self._decoder = decoder

    def send(self, message: Sent) -> None:
        """Send; dropped where the other side is gone, which `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(self._encoder.encode(message) + b"\n")

    async def receive(self) -> Received | None:
        """The next message; None once the other side is gone."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return self._decoder.decode(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Tell the other side that this one ends."""
        self._writer.close()


async def open_worker_end(end: socket.socket) -> Channel[ToParent, ToWorker]:
    """The worker's end of a socket pair."""
    decoder = msgspec.json.Decoder(ToWorker, dec_hook=_decode_path)
    return Channel(*await asyncio.open_connection(sock=end, limit=_MAX_LINE_BYTES), decoder)


async def open_parent_end(end: socket.socket) -> Channel[ToWorker, ToParent]:
    """The parent's end of a socket pair."""
    decoder = msgspec.json.Decoder(ToParent, dec_hook=_decode_path)
    return Channel(*await asyncio.open_connection(sock=end, limit=_MAX_LINE_BYTES), decoder)


def _encode_path(value: object) -> str:
    assert isinstance(value, Path)
    return str(value)


def _decode_path(kind: type, value: Any) -> Path:
    assert kind is Path
    return Path(value)
