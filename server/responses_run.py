"""Runs responses and keeps the store in step: answered at once, streamed, or in the background."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec
from starlette.types import Send

from remuda.engine.errors import RemudaError
from remuda.server.errors import (
    CLIENT_LEFT,
    ClientGoneError,
    ResponseEndedError,
    ServerUnavailableError,
    api_error,
)
from remuda.server.generation import Generation
from remuda.server.link import EngineLink
from remuda.server.param_names import renamed
from remuda.server.request_handle import RequestHandle
from remuda.server.request_record import RequestRecord
from remuda.server.response_store import ResponseStore, StoredResponse
from remuda.server.responses_format import ResponsesFormat
from remuda.server.responses_input import Item
from remuda.server.sse import IDLE_S, GenerationResponse, StreamResponse, send_json

logger = logging.getLogger(__name__)

# The field that the prompt comes from.
INPUT: Final = "input"


class Recorder:
    """Keeps one response in the store, or, without a store, does nothing."""

    def __init__(self, store: ResponseStore | None, fmt: ResponsesFormat, input_items: list[Item]) -> None:
        self._store = store
        self._format = fmt
        self._input_items = msgspec.json.encode(input_items) if store is not None else b""
        self._has_ended = False

    async def create(self, handle: RequestHandle | None = None) -> None:
        """Keep it as it stands. With `handle`, its request ends once the response has been ended by others."""
        if self._store is not None:
            error = ResponseEndedError("the response has been cancelled or deleted")
            on_end = None if handle is None else lambda: handle.fail(error)
            await self._store.create(self._snapshot(), on_end)

    async def save(self) -> None:
        """Write down how it stands now, unless it has been ended, here or by others."""
        if self._store is not None:
            snapshot = self._snapshot()
            self._has_ended = not snapshot.is_running
            with _tolerating_loss():
                await self._store.update(snapshot)

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Around the answer to a client. What ends without an answer that it has an id for is not kept."""
        await self.create()
        try:
            yield
        except ClientGoneError:
            self._format.cancel()
            await self.save()
            raise
        finally:
            if self._store is not None and not self._has_ended:
                with _tolerating_loss():
                    await self._store.delete(str(self._format.response["id"]))

    @asynccontextmanager
    async def settling(self) -> AsyncIterator[None]:
        """Around a run in the background, which ends in the store whatever happens to it."""
        try:
            yield
        except ResponseEndedError:
            logger.debug("a response in the background was ended by a client")
            self._has_ended = True
        except RemudaError as error:
            self._format.fail(error)
            await self.save()
        finally:
            if not self._has_ended:
                self._format.fail(ServerUnavailableError("the response was given up"))
                await self.save()

    def _snapshot(self) -> StoredResponse:
        response = self._format.response
        return StoredResponse(
            id=response["id"],
            status=response["status"],
            body=msgspec.json.encode(response),
            input_items=self._input_items,
            previous_id=response["previous_response_id"],
            is_background=response["background"],
        )


@contextmanager
def _tolerating_loss() -> Iterator[None]:
    """An answer that is under way is worth more than its record."""
    try:
        yield
    except ServerUnavailableError as error:
        logger.warning("a response is not kept as it ended: %s", error)


class WholeRecorded(GenerationResponse):
    """One JSON body at the end, which is stored before it is sent."""

    prompt_field = INPUT

    def __init__(
        self, link: EngineLink, request_id: str, generation: Generation, fmt: ResponsesFormat, recorder: Recorder
    ) -> None:
        super().__init__(link, request_id, generation)
        self._format = fmt
        self._recorder = recorder

    async def _answer(self, handle: RequestHandle, send: Send, send_body: Send) -> None:
        generation = self._generation
        async with self._recorder.recording():
            while not generation.is_finished:
                for choice, text in generation.feed(await handle.take(IDLE_S), handle):
                    self._format.add(choice, text)
            value = self._format.whole(generation.usage())
            await self._recorder.save()
            await send_json([msgspec.json.encode(value)], send, send_body)


class StreamRecorded(StreamResponse):
    """Server-sent events; the response is stored before its last event is sent."""

    prompt_field = INPUT

    def __init__(
        self, link: EngineLink, request_id: str, generation: Generation, fmt: ResponsesFormat, recorder: Recorder
    ) -> None:
        super().__init__(link, request_id, generation, fmt)
        self._responses = fmt
        self._recorder = recorder

    async def _answer(self, handle: RequestHandle, send: Send, send_body: Send) -> None:
        async with self._recorder.recording():
            await super()._answer(handle, send, send_body)

    def _beginning(self) -> bytes:
        return self._responses.beginning()

    async def _ending(self) -> bytes:
        event = self._responses.closing(self._generation.usage())
        await self._recorder.save()
        return event

    async def _failing(self, error: RemudaError) -> bytes:
        event = self._responses.fail(error)
        await self._recorder.save()
        return event


class BackgroundRuns:
    """Responses that nobody waits for. Each ends in the store: with an answer, cancelled, or failed.

    `sink` gets the record of each once it has ended.
    """

    def __init__(self, link: EngineLink, sink: Callable[[RequestRecord], None]) -> None:
        self._link = link
        self._sink = sink
        self._tasks: set[asyncio.Task[None]] = set()

    def num_running(self) -> int:
        """Responses that have not ended yet."""
        return len(self._tasks)

    async def start(
        self,
        request_id: str,
        generation: Generation,
        fmt: ResponsesFormat,
        recorder: Recorder,
        record: RequestRecord,
    ) -> None:
        """Raises what keeps the response from being queued and stored."""
        with renamed("prompt", INPUT):
            handle = self._link.submit(request_id, generation.hand_over_prompts(), generation.params)
        try:
            await recorder.create(handle)
        except RemudaError:
            handle.close()
            raise
        task = asyncio.create_task(self._run(handle, generation, fmt, recorder, record))
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a response in the background met a bug", exc_info=task.exception())

    async def _run(
        self,
        handle: RequestHandle,
        generation: Generation,
        fmt: ResponsesFormat,
        recorder: Recorder,
        record: RequestRecord,
    ) -> None:
        try:
            async with recorder.settling():
                await _generate(handle, generation, fmt, recorder, record)
                fmt.whole(generation.usage())
                await recorder.save()
                record.status = 200
        finally:
            record.ended = time.monotonic()
            self._sink(record)


async def _generate(
    handle: RequestHandle, generation: Generation, fmt: ResponsesFormat, recorder: Recorder, record: RequestRecord
) -> None:
    try:
        while not generation.is_finished:
            outputs = await handle.take(IDLE_S)
            if fmt.response["status"] == "queued":
                fmt.start()
                await recorder.save()
            for choice, text in generation.feed(outputs, handle):
                fmt.add(choice, text)
    except ResponseEndedError:
        record.status = CLIENT_LEFT
        raise
    except RemudaError as error:
        record.status = api_error(error).status_code
        raise
    finally:
        # Before the end is stored, of which the handle hears too.
        record.note(generation, handle)
        handle.close()
