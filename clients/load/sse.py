"""Reads a stream of completion or chat events from bytes as they come: tokens, usage, finish, errors. No network.

Every event is decoded by msgspec, and only the fields that count; that costs about a microsecond.
"""

import re
from typing import Final

import msgspec

from remuda.clients.answers import UNREADABLE

_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
MAX_EVENT_BYTES: Final = 64 * 2**20


class BadEventError(Exception):
    """Bytes that are no event of a completion."""


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Delta(msgspec.Struct):
    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    tool_calls: object = None


class _Choice(msgspec.Struct):
    text: object = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_DECODER: Final = msgspec.json.Decoder(_Event)


class EventReader:
    """The state of one stream. num_events: those that brought text; num_tokens: by the server's running count
    where it has one in each event, else one an event. usage: the server's last word, None without one.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self.num_tokens = 0
        self.prompt_tokens: int | None = None
        self.usage_tokens: int | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.is_done = False
        self._rest = b""
        self._is_running_count = False

    def feed(self, data: bytes) -> int:
        """Take what was read; returns how many new tokens it brought. Raises BadEventError."""
        data = self._rest + data if self._rest else data
        before = self.num_tokens
        if b"\r" in data:
            *events, self._rest = _END.split(data)
        else:
            *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadEventError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        for event in events:
            self._take(event)
        return self.num_tokens - before

    def _take(self, event: bytes) -> None:
        if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
            payload = event[6:]
        else:
            payload, is_error = _payload(event)
            if is_error:
                self.error = payload.decode(errors="replace")[:300] or "error event"
                return
        if payload == b"[DONE]":
            self.is_done = True
        elif payload:
            self._read(payload)

    def _read(self, payload: bytes) -> None:
        try:
            event = _DECODER.decode(payload)
        except UNREADABLE as error:
            raise BadEventError(f"{error} in {payload[:80]!r}") from error
        if event.error is not None:
            self.error = str(event.error)[:300]
        has_text = False
        for choice in event.choices:
            has_text = has_text or _has_text(choice)
            self.finish_reason = choice.finish_reason or self.finish_reason
        if event.usage is not None:
            self._count_usage(event.usage, is_with_choices=bool(event.choices))
        if has_text:
            self.num_events += 1
            if not self._is_running_count:
                self.num_tokens += 1

    def _count_usage(self, usage: _Usage, *, is_with_choices: bool) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is None:
            return
        self.usage_tokens = usage.completion_tokens
        # A count that is there from the first text on runs; one that comes later is the sum at the end.
        if is_with_choices and self.num_events == 0:
            self._is_running_count = True
        if is_with_choices and self._is_running_count:
            self.num_tokens = max(self.num_tokens, usage.completion_tokens)


def _has_text(choice: _Choice) -> bool:
    if choice.text:
        return True
    delta = choice.delta
    return delta is not None and bool(
        delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls
    )


def _payload(event: bytes) -> tuple[bytes, bool]:
    """Of an event with other fields than one line of data: its data, and whether it is called `error`."""
    lines: list[bytes] = []
    is_error = False
    for line in event.splitlines():
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            lines.append(value)
        elif name == b"event":
            is_error = value == b"error"
    return b"\n".join(lines), is_error
