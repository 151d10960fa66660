"""What the process that checks grammars is told, and answers: four bytes of length, a msgpack message."""

import struct
from typing import Final

import msgspec

HEADER: Final = struct.Struct("<I")


class Vocabulary(msgspec.Struct, frozen=True):
    """Bytes of each token, by id."""

    tokens: list[bytes]


class Verdict(msgspec.Struct, frozen=True):
    """Why a grammar cannot be honoured, or None; lark: the text of one of kind "grammar" in Lark's notation."""

    error: str | None = None
    lark: str | None = None


def encode_frame(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body
