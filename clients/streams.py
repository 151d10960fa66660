"""The reading of a stream, without its I/O: bytes in, typed events out, and a typed error for any bad end."""

from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from remuda.clients.answers import UNREADABLE, ChatChunk, CompletionChunk
from remuda.clients.errors import (
    BadAnswerError,
    BadEventError,
    ConnectionFailedError,
    Received,
    StreamBrokenError,
    StreamCutError,
    StreamError,
    StreamFailedError,
    StreamTimedOutError,
    TimedOutError,
)
from remuda.clients.responses import ResponseEvent
from remuda.clients.sse import Event, EventParser

E = TypeVar("E")
_DONE: Final = b"[DONE]"
_ERROR_EVENT: Final = b"error"
_RESPONSE_ENDS: Final = ("response.completed", "response.incomplete", "response.cancelled")


class EventReader(Generic[E]):
    """Reads one stream of events of type E. `received` is what it has brought."""

    def __init__(
        self, event_type: type[E], note: Callable[[E, Received], bool], num_choices: int | None = None
    ) -> None:
        """note: adds an event to what was received, and returns whether it is the last; raises StreamError.

        num_choices: so many finish reasons make a stream complete without `[DONE]`; None: it always needs its end.
        """
        self.received = Received()
        self.is_done = False
        self._parser = EventParser()
        self._decoder = msgspec.json.Decoder(event_type)
        self._note = note
        self._num_choices = num_choices

    @property
    def is_whole(self) -> bool:
        """Its end has come, or a finish reason for each choice; then it does not matter how the body ends."""
        has_all = self._num_choices is not None and len(self.received.finish_reasons) >= self._num_choices
        return self.is_done or has_all

    def feed(self, data: bytes) -> Iterator[E]:
        """The events that `data` completes, up to the last one. Raises StreamError, after the events before it."""
        try:
            found = self._parser.feed(data)
        except BadAnswerError as error:
            raise BadEventError(str(error), self.received) from None
        for event in found:
            if event.data == _DONE:
                self.is_done = True
            if self.is_done:
                return
            chunk = self._decode(event)
            self.received.num_events += 1
            self.is_done = self._note(chunk, self.received)
            yield chunk

    def end(self, lateness: TimedOutError | None) -> None:
        """The body has ended. Raises StreamCutError unless the answer is whole, or lateness if that cut it off."""
        if self.is_whole:
            return
        if lateness is not None:
            raise self.broken(lateness)
        raise StreamCutError("the stream ended before the answer did", self.received)

    def broken(self, failure: ConnectionFailedError) -> StreamError:
        """What to raise for a connection that failed in the middle."""
        if isinstance(failure, TimedOutError):
            return StreamTimedOutError(str(failure), self.received, failure.limit)
        return StreamBrokenError(str(failure), self.received)

    def _decode(self, event: Event) -> E:
        try:
            if event.name == _ERROR_EVENT:
                raise _failed(msgspec.json.decode(event.data), self.received)
            return self._decoder.decode(event.data)
        except UNREADABLE as error:
            start = event.data[:80].decode(errors="replace")
            raise BadEventError(f"an event is not what the API says ({error}): {start}", self.received) from None


def completion_reader(num_choices: int) -> EventReader[CompletionChunk]:
    """Of `/v1/completions`."""
    return EventReader(CompletionChunk, _note_choices, num_choices)


def chat_reader(num_choices: int) -> EventReader[ChatChunk]:
    """Of `/v1/chat/completions`."""
    return EventReader(ChatChunk, _note_choices, num_choices)


def response_reader() -> EventReader[ResponseEvent]:
    """Of `/v1/responses`, which has no `[DONE]`."""
    return EventReader(ResponseEvent, _note_response)


def _note_choices(chunk: CompletionChunk | ChatChunk, received: Received) -> bool:
    if chunk.error is not None:
        raise _failed(chunk.error, received)
    if chunk.choices is None:
        raise BadEventError("an event has no `choices`", received)
    for index, text, finish_reason in chunk.pieces():
        if text:
            received.add(index, text)
        if finish_reason is not None:
            received.finish_reasons[index] = finish_reason
    return False


def _note_response(event: ResponseEvent, received: Received) -> bool:
    if event.error is not None:
        raise _failed(event.error, received)
    match event.type:
        case "error":
            raise StreamFailedError(event.message or "", received, param=event.param, code=event.code)
        case "response.failed":
            problem = event.response.error if event.response is not None else None
            raise _failed({} if problem is None else msgspec.to_builtins(problem), received)
        case "response.output_text.delta":
            received.add(0, str(event.delta))
        case None:
            raise BadEventError("an event has no `type`", received)
    if event.type not in _RESPONSE_ENDS:
        return False
    received.finish_reasons[0] = event.type.removeprefix("response.")
    return True


def _failed(error: Any, received: Received) -> StreamFailedError:
    """error: the value of an event's `error`, an object in OpenAI's form or a text."""
    fields = error if isinstance(error, dict) else {"message": error}
    inner = fields.get("error", fields)
    fields = inner if isinstance(inner, dict) else {"message": inner}
    texts = {name: str(value) for name, value in fields.items() if value is not None}
    message = texts.get("message", "the server ended the stream with an error")
    return StreamFailedError(message, received, param=texts.get("param"), code=texts.get("code"))
