"""What an API worker and the response store in the parent say to each other: msgpack in frames, no behaviour.

A call has a number, and its answer the same; `Ended` comes without being asked.
"""

import asyncio
import struct
from typing import Final

import msgspec

from remuda.server.response_store import Conversation, StoredResponse

_LENGTH: Final = struct.Struct("<Q")


class Create(msgspec.Struct, frozen=True, tag="create"):
    """`ResponseStore.create`. wants_end: `Ended` is to follow."""

    number: int
    response: StoredResponse
    wants_end: bool


class Get(msgspec.Struct, frozen=True, tag="get"):
    """`ResponseStore.get`."""

    number: int
    response_id: str


class Update(msgspec.Struct, frozen=True, tag="update"):
    """`ResponseStore.update`."""

    number: int
    response: StoredResponse


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """`ResponseStore.delete`."""

    number: int
    response_id: str


class Converse(msgspec.Struct, frozen=True, tag="converse"):
    """`ResponseStore.conversation`."""

    number: int
    response_id: str
    max_bytes: int


ToStore = Create | Get | Update | Delete | Converse


class Found(msgspec.Struct, frozen=True, tag="found"):
    """Answers Get."""

    number: int
    response: StoredResponse | None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Answers Create, Update and Delete."""

    number: int
    is_done: bool


class Turns(msgspec.Struct, frozen=True, tag="turns"):
    """Answers Converse."""

    number: int
    conversation: Conversation


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The call raised an error; `kind` is its class in `remuda.engine.errors`."""

    number: int
    kind: str
    message: str
    param: str | None = None


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A response that this worker runs has ended, or is deleted."""

    response_id: str


Answer = Found | Done | Turns | Refused
FromStore = Answer | Ended


def write_frame(writer: asyncio.StreamWriter, message: ToStore | FromStore) -> None:
    """Send one message; dropped where the other side is gone, which `read_frame` tells."""
    if not writer.is_closing():
        data = msgspec.msgpack.encode(message)
        writer.write(_LENGTH.pack(len(data)) + data)


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next message, encoded; None once the other side is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
