"""Server-sent events, from the bytes of a stream, however they are cut. Knows no HTTP client and no JSON."""

from typing import Final

import msgspec

from remuda.clients.errors import BadAnswerError

# No event of a server of models comes near it; without a bound, a stream without a blank line would fill memory.
MAX_EVENT_BYTES: Final = 64 * 2**20
_BOM: Final = b"\xef\xbb\xbf"
_PLAIN: Final = b"data: "


class Event(msgspec.Struct, frozen=True, gc=False):
    """data: its `data` lines, joined by newlines. name: its `event` line; empty where it has none."""

    data: bytes
    name: bytes = b""


class EventParser:
    """Takes bytes and gives the events that have ended, as the HTML standard says; what is cut short is dropped.

    Lines end with LF, CRLF or CR. Comments, `id` and `retry` are passed over.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []
        self._num_held = 0
        self._is_after_cr = False
        self._is_first = True

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises BadAnswerError for an event beyond the limit."""
        if not data:
            return []
        if self._is_after_cr or b"\r" in data:
            data = self._with_line_feeds(data)
        if b"\n" not in data:
            # A long event in many pieces: they are joined, and looked through, once.
            self._hold(data)
            return []
        held = b"".join(self._pieces) + data if self._pieces else data
        self._pieces.clear()
        self._num_held = 0
        blocks = held.split(b"\n\n")
        self._hold(blocks.pop())
        events = []
        for block in blocks:
            event = self._parse(block)
            if event is not None:
                events.append(event)
        return events

    def _with_line_feeds(self, data: bytes) -> bytes:
        """A CR at the end of a piece ends its line at once; an LF that comes after it belongs to it."""
        if self._is_after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._is_after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _hold(self, data: bytes) -> None:
        if data:
            self._pieces.append(data)
            self._num_held += len(data)
        if self._num_held > self._max_event_bytes:
            message = f"an event of the stream is longer than the limit of {self._max_event_bytes} bytes"
            raise BadAnswerError(message)

    def _parse(self, block: bytes) -> Event | None:
        if self._is_first:
            self._is_first = False
            block = block.removeprefix(_BOM)
        if block.startswith(_PLAIN) and b"\n" not in block:
            return Event(block[len(_PLAIN) :])
        data: list[bytes] = []
        name = b""
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.removeprefix(b" ")
        return Event(b"\n".join(data), name) if data else None
