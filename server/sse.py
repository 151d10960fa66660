"""The two answers to a generating request, as raw ASGI: one JSON body, or server-sent events as they come.

Either way the client's disconnect is listened for all along, and ends the request in the engine at once.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from remuda.engine.errors import RemudaError
from remuda.engine.wire import SequenceOutput
from remuda.server.chunk_writer import ChunkWriter
from remuda.server.errors import ClientGoneError, api_error
from remuda.server.generation import Choice, Generation
from remuda.server.link import EngineLink
from remuda.server.param_names import renamed
from remuda.server.request_handle import RequestHandle
from remuda.server.request_record import RECORD, SERVER_SEND
from remuda.server.sliced_json import encode, json_pieces

# A request that is refused or fails this early gets its own HTTP status; later, an event in the stream.
_HEADERS_WITHIN_S: Final = 1.0
# Proxies drop streams that are silent for longer, as in a queue or a very long prompt.
_PING_AFTER_S: Final = 15.0
IDLE_S: Final = 3600.0
# A piece is some ten thousand bytes.
_PIECES_SENT_AT_ONCE: Final = 32

_PING: Final = b": keep-alive\n\n"
_DONE: Final = b"data: [DONE]\n\n"
_SSE_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class StreamFormat(Protocol):
    """How one endpoint writes choices as events. The methods return whole SSE events, or nothing."""

    def opening(self, choice: Choice, generation: Generation) -> Iterable[bytes]:
        """The event before a choice's first text, in pieces."""

    def delta(self, choice: Choice, text: str) -> bytes:
        """New text, with the log-probabilities that have gathered."""

    def finish(self, choice: Choice) -> bytes:
        """The event with the finish reason."""

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The event after all choices."""


class ResponseFormat(StreamFormat, Protocol):
    """How one endpoint writes choices, as events or whole."""

    def whole(self, generation: Generation, texts: list[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed, with long lists as Sliced."""


class GenerationResponse(Response):
    """Submits the request when called, and answers it by the subclass's `_answer`.

    prompt_field: of the request, where it is not called so; errors about the prompt name it.
    """

    prompt_field: ClassVar[str] = "prompt"

    def __init__(self, link: EngineLink, request_id: str, generation: Generation) -> None:
        super().__init__()
        self._link = link
        self._request_id = request_id
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors from before the first byte are raised, to become a status."""
        generation = self._generation
        with renamed("prompt", self.prompt_field):
            handle = self._link.submit(self._request_id, generation.hand_over_prompts(), generation.params)
        listener = asyncio.create_task(_fail_on_disconnect(receive, handle))
        try:
            # A task of its own is resumed without passing through every frame of the routing, and chunks
            # that skip the middlewares cost less.
            await asyncio.create_task(self._answer(handle, send, scope.get(SERVER_SEND, send)))
        except ClientGoneError:
            return
        finally:
            listener.cancel()
            handle.close()
            if RECORD in scope:
                scope[RECORD].note(self._generation, handle)

    async def _answer(self, handle: RequestHandle, send: Send, send_body: Send) -> None:
        raise NotImplementedError


class WholeResponse(GenerationResponse):
    """One JSON body at the end, written by `response_format`."""

    def __init__(
        self, link: EngineLink, request_id: str, generation: Generation, response_format: ResponseFormat
    ) -> None:
        super().__init__(link, request_id, generation)
        self._format = response_format

    async def _answer(self, handle: RequestHandle, send: Send, send_body: Send) -> None:
        generation = self._generation
        texts: list[list[str]] = [[] for _ in generation.choices]
        while not generation.is_finished:
            for choice, text in generation.feed(await handle.take(IDLE_S), handle):
                texts[choice.index].append(text)
        value = self._format.whole(generation, ["".join(parts) for parts in texts])
        body: list[bytes] = []
        await _add_slowly(json_pieces(value), body, handle)
        await send_json(body, send, send_body)


class StreamResponse(GenerationResponse):
    """Server-sent events, written by `response_format`; all that has come for a stream goes out in one piece.

    While the peer reads, the link itself calls what writes them, and the task only sleeps. Log-probabilities of
    prompts come first, where they are wanted, and those the task makes piece by piece.
    """

    def __init__(
        self, link: EngineLink, request_id: str, generation: Generation, response_format: StreamFormat
    ) -> None:
        super().__init__(link, request_id, generation)
        self._format = response_format

    async def _answer(self, handle: RequestHandle, send: Send, send_body: Send) -> None:
        generation = self._generation
        outputs = await handle.take(_HEADERS_WITHIN_S)
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        writer = ChunkWriter.of(send_body)
        pending = [self._beginning()]
        try:
            await self._add_events_or_ping(handle, outputs, pending)
            while not generation.is_finished:
                body = b"".join(pending)
                pending.clear()
                if body:
                    await send_body({"type": "http.response.body", "body": body, "more_body": True})
                await self._next(handle, writer, pending)
            pending.append(await self._ending())
        except ClientGoneError:
            raise
        except RemudaError as error:
            # After the text that came together with it.
            pending.append(await self._failing(error))
        await send_body({"type": "http.response.body", "body": b"".join(pending)})

    async def _next(self, handle: RequestHandle, writer: ChunkWriter | None, pending: list[bytes]) -> None:
        """Add what this task has to send next: what has to wait for the peer, the last events, or a ping."""
        if writer is None or not writer.is_ready or self._has_openings_left:
            await self._add_events_or_ping(handle, await handle.take(_PING_AFTER_S), pending)
            return

        def write(outputs: list[SequenceOutput]) -> bool:
            pending.extend(self._events(handle, outputs))
            if self._generation.is_finished or not writer.is_ready:
                return False
            events = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            if events:
                writer.write(events)
            return True

        if not await handle.pass_on(write, _PING_AFTER_S):
            pending.append(_PING)

    @property
    def _has_openings_left(self) -> bool:
        """Some choice has not begun whose first event may be a long one."""
        generation = self._generation
        return generation.params.prompt_logprobs is not None and not all(c.is_open for c in generation.choices)

    async def _add_events_or_ping(
        self, handle: RequestHandle, outputs: list[SequenceOutput], events: list[bytes]
    ) -> None:
        if not outputs:
            events.append(_PING)
        elif self._has_openings_left:
            await _add_slowly(self._events(handle, outputs), events, handle)
        else:
            events.extend(self._events(handle, outputs))

    def _beginning(self) -> bytes:
        """What is sent before anything is generated."""
        return b""

    async def _ending(self) -> bytes:
        """What is sent after all choices."""
        return self._format.closing(self._generation.usage()) + _DONE

    async def _failing(self, error: RemudaError) -> bytes:
        """A clean end would pass for a complete answer: the stream ends with the error and no [DONE]."""
        return event(api_error(error).body)

    def _events(self, handle: RequestHandle, outputs: list[SequenceOutput]) -> Iterator[bytes]:
        """What the outputs bring, up to an error among them."""
        generation, fmt = self._generation, self._format
        for choice, text in generation.feed(outputs, handle):
            if not choice.is_open:
                choice.is_open = True
                yield from fmt.opening(choice, generation)
            is_finished = choice.finish_reason is not None
            # Log-probabilities and ids of tokens whose text is held back wait for it.
            if text or (is_finished and (choice.logprobs or choice.token_ids)):
                yield fmt.delta(choice, text)
            if is_finished:
                yield fmt.finish(choice)


async def send_json(body: list[bytes], send: Send, send_body: Send) -> None:
    """Answer 200 with a JSON body, given in pieces."""
    length = sum(map(len, body))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), _PIECES_SENT_AT_ONCE):
        part = b"".join(body[start : start + _PIECES_SENT_AT_ONCE])
        is_last = start + _PIECES_SENT_AT_ONCE >= len(body)
        await send_body({"type": "http.response.body", "body": part, "more_body": not is_last})


async def _add_slowly(pieces: Iterator[bytes], found: list[bytes], handle: RequestHandle) -> None:
    """Add what `pieces` brings; others get to run in between. Raises what has ended the request meanwhile."""
    for piece in pieces:
        found.append(piece)
        if len(found) > 1:
            await asyncio.sleep(0)
            if handle.error is not None:
                raise handle.error


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def event_pieces(value: dict[str, Any]) -> Iterator[bytes]:
    """One server-sent event in pieces."""
    yield b"data: "
    yield from json_pieces(value)
    yield b"\n\n"


class EventTemplate:
    """A kind of event in which only the text differs, encoded but for it, once for each choice."""

    _HOLE: Final = "\0"

    def __init__(self, chunks: list[dict[str, Any]]) -> None:
        """chunks: the event of each choice, with EventTemplate.hole() where the text goes."""
        hole = msgspec.json.encode(self._HOLE)
        self._parts = [event(chunk).split(hole) for chunk in chunks]
        self._encode = msgspec.json.Encoder().encode

    @classmethod
    def hole(cls) -> str:
        """Stands for the text."""
        return cls._HOLE

    def fill(self, index: int, text: str) -> bytes:
        """The event of choice `index` with `text` in it."""
        before, after = self._parts[index]
        return before + self._encode(text) + after


async def _fail_on_disconnect(receive: Receive, handle: RequestHandle) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    handle.fail(ClientGoneError("the client has closed its connection"))
