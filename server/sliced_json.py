"""JSON texts with long lists, made piece by piece, so that the event loop can do other work in between."""

import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec


class Sliced:
    """A list of a JSON text whose items are made when it is encoded, which is once; `num_at_once` for a piece."""

    __slots__ = ("_items", "_num_at_once")

    def __init__(self, items: Iterable[Any], num_at_once: int) -> None:
        self._items = iter(items)
        self._num_at_once = num_at_once

    def __iter__(self) -> Iterator[Any]:
        """The items."""
        return self._items

    def pieces(self) -> Iterator[bytes]:
        """The list's JSON text, each piece with so many items at most."""
        before = b"["
        while batch := list(islice(self._items, self._num_at_once)):
            yield before + _encoder.encode(batch)[1:-1]
            before = b","
        yield b"[]" if before == b"[" else b"]"


def encode(value: object) -> bytes:
    """The JSON text as a whole."""
    return _encoder.encode(value)


def json_pieces(value: object) -> Iterator[bytes]:
    """The JSON text in pieces: those of each `Sliced` in it, and what stands around them."""
    lists: list[Sliced] = []
    # Nobody can have written this into a text.
    hole = secrets.token_hex(16)

    def leave_out(found: object) -> str:
        if not isinstance(found, Sliced):
            raise TypeError(f"{type(found).__name__} is not for JSON")
        lists.append(found)
        return hole

    first, *others = msgspec.json.encode(value, enc_hook=leave_out).split(f'"{hole}"'.encode())
    yield first
    for sliced, around in zip(lists, others, strict=True):
        yield from sliced.pieces()
        yield around


def _as_list(found: object) -> list[Any]:
    if not isinstance(found, Sliced):
        raise TypeError(f"{type(found).__name__} is not for JSON")
    return list(found)


_encoder = msgspec.json.Encoder(enc_hook=_as_list)
