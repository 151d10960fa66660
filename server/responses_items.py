"""The output items of one response while they are written: messages and calls of functions, with their events."""

import secrets
from typing import Any, Final, NamedTuple, Self

import msgspec

from remuda.server.responses_input import Item, new_id

_TEXT_DELTA: Final = "response.output_text.delta"
_ARGUMENTS_DELTA: Final = "response.function_call_arguments.delta"


class EventWriter:
    """Writes the events of one stream, numbered."""

    def __init__(self) -> None:
        self._num_events = 0
        self._encode = msgspec.json.Encoder().encode

    def write(self, kind: str, **fields: Any) -> bytes:
        """An event."""
        data = self._encode({"type": kind, **fields, "sequence_number": self._next_number()})
        return f"event: {kind}\ndata: ".encode() + data + b"\n\n"

    def opened(self, kind: str, **fields: Any) -> bytes:
        """Events that differ in their delta alone, up to it."""
        return f"event: {kind}\ndata: ".encode() + self._encode({"type": kind, **fields})[:-1] + b',"delta":'

    def with_delta(self, opened: bytes, text: str) -> bytes:
        """Such an event."""
        return opened + self._encode(text) + b',"sequence_number":%d}\n\n' % self._next_number()

    def _next_number(self) -> int:
        self._num_events += 1
        return self._num_events - 1


class Entry(NamedTuple):
    """The log-probabilities of one token as JSON texts: encoded when they come, not all at once at the end.

    without_bytes: as OpenAI's events have them; the bytes of tokens are in the item.
    """

    whole: msgspec.Raw
    without_bytes: msgspec.Raw

    @classmethod
    def of(cls, described: dict[str, Any]) -> Self:
        """Of what `logprobs.described` gives."""
        top = [_without_bytes(one) for one in described["top_logprobs"]]
        short = {**_without_bytes(described), "top_logprobs": top}
        return cls(msgspec.Raw(msgspec.json.encode(described)), msgspec.Raw(msgspec.json.encode(short)))


class HeldLogprobs:
    """Log-probabilities of what a parser has taken, until it says which of it is text of messages."""

    def __init__(self) -> None:
        self._held: list[tuple[int, list[Entry]]] = []

    def hold(self, num_chars: int, logprobs: list[Entry]) -> None:
        """Those of the next characters."""
        self._held.append((num_chars, logprobs))

    def take(self, num_chars: int, *, is_behind_call: bool) -> list[Entry]:
        """Those of text: of the first that are held or, where the end of a call was taken before it, the last."""
        held = self._held[::-1] if is_behind_call else self._held
        num_taken = 0
        while num_taken < len(held) and num_chars > 0:
            num_chars -= held[num_taken][0]
            num_taken += 1
        taken = held[:num_taken]
        self._held = [] if is_behind_call else held[num_taken:]
        return [entry for _, entries in (taken[::-1] if is_behind_call else taken) for entry in entries]

    def clear(self) -> list[Entry]:
        """Hold none any more; gives those that were left."""
        left, self._held = self._held, []
        return [entry for _, entries in left for entry in entries]


class OutputItems:
    """At most the last of `items` is open. What begins another ends it; methods give the events of both."""

    def __init__(self, events: EventWriter) -> None:
        self.items: list[Item] = []
        self.num_calls = 0
        self._events = events
        self._is_open = False
        # Of the open item: its text or arguments, log-probabilities, and the beginning of its deltas.
        self._texts: list[str] = []
        self._logprobs: list[Entry] = []
        self._delta = b""

    @property
    def is_in_call(self) -> bool:
        """The open item is a call."""
        return self._is_open and self.items[-1]["type"] == "function_call"

    def add_text(self, text: str, logprobs: list[Entry]) -> bytes:
        """Text of a message, which begins where none is open."""
        opening = b"" if self._is_open and not self.is_in_call else self._open_message()
        self._texts.append(text)
        if not logprobs:
            return opening + (self._events.with_delta(self._delta, text) if text else b"")
        self._logprobs += logprobs
        fields = {"content_index": 0, "delta": text, "logprobs": [entry.without_bytes for entry in logprobs]}
        return opening + self._events.write(_TEXT_DELTA, **self._place(), **fields)

    def start_call(self, name: str) -> bytes:
        """A call begins."""
        self.num_calls += 1
        call_id = f"call_{secrets.token_hex(12)}"
        added = self._open("fc", "function_call", call_id=call_id, name=name, arguments="")
        self._delta = self._events.opened(_ARGUMENTS_DELTA, **self._place())
        return added

    def add_arguments(self, text: str) -> bytes:
        """The next part of the open call's arguments."""
        self._texts.append(text)
        return self._events.with_delta(self._delta, text)

    def close(self, status: str = "completed") -> bytes:
        """The open item, if any, ends."""
        if not self._is_open:
            return b""
        text, item, place = "".join(self._texts), self.items[-1], self._place()
        item["status"] = status
        if self.is_in_call:
            item["arguments"] = text
            ended = self._events.write("response.function_call_arguments.done", **place, arguments=text)
        else:
            part = _output_text(text, [entry.whole for entry in self._logprobs])
            item["content"] = [part]
            place["content_index"] = 0
            logprobs = [entry.without_bytes for entry in self._logprobs]
            ended = self._events.write("response.output_text.done", **place, text=text, logprobs=logprobs)
            ended += self._events.write("response.content_part.done", **place, part=part)
        self._is_open, self._texts, self._logprobs = False, [], []
        return ended + self._events.write(
            "response.output_item.done", output_index=place["output_index"], item=item
        )

    def _open_message(self) -> bytes:
        added = self._open("msg", "message", role="assistant", content=[])
        place = {**self._place(), "content_index": 0}
        self._delta = self._events.opened(_TEXT_DELTA, **place, logprobs=[])
        return added + self._events.write("response.content_part.added", **place, part=_output_text("", []))

    def _open(self, prefix: str, kind: str, **fields: Any) -> bytes:
        ended = self.close()
        item = {"id": new_id(prefix), "type": kind, "status": "in_progress", **fields}
        self.items.append(item)
        self._is_open = True
        index = len(self.items) - 1
        return ended + self._events.write("response.output_item.added", output_index=index, item=item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def _output_text(text: str, logprobs: list[msgspec.Raw]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _without_bytes(described: dict[str, Any]) -> dict[str, Any]:
    return {"token": described["token"], "logprob": described["logprob"]}
