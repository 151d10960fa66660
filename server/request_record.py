"""What becomes known of one HTTP request, and the ASGI wrapper that gathers it: id, status, tokens, times.

It holds no text of a prompt or an answer, no key, and nothing of a URL's query.
"""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remuda.server.errors import CLIENT_LEFT, abort_reason
from remuda.server.generation import Generation
from remuda.server.request_handle import RequestHandle
from remuda.server.token_meter import TokenMeter

# In the scope: the record; status and id of the answer of a protocol that has refused the rest of the request; and
# the server's own `send`, to which body chunks, which no wrapper changes, may go directly.
RECORD: Final = "remuda.record"
REFUSED: Final = "remuda.refused"
SERVER_SEND: Final = "remuda.send"

# Routes asked every few seconds by whatever watches the server: no line of a log, no span.
PROBES: Final = frozenset({"/health", "/ready", "/metrics"})

_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
# The address may be what a proxy's header says, and that anything.
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]{1,45}")
_MAX_PATH_CHARS: Final = 200


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are of `time.monotonic`; `path` is as it came, still encoded; `route` as it is declared.

    `meter` and the numbers of tokens are there for requests that reached the engine. finish_reasons: one of each
    choice, "abort" for those that did not finish. abort_reason: why they did not. is_background: not of an answer
    but of what went on after it, under the same id.
    """

    request_id: str
    method: str
    path: str
    client: str
    traceparent: str | None
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    status: int = CLIENT_LEFT
    route: str = "none"
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    finish_reasons: Sequence[str] = ()
    abort_reason: str | None = None
    meter: TokenMeter | None = None
    is_background: bool = False

    @classmethod
    def of(cls, scope: Scope) -> "RequestRecord":
        """The beginning of a record."""
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        client = scope.get("client")
        raw_path = scope.get("raw_path") or scope["path"].encode()
        return cls(
            given if _GIVEN_ID.fullmatch(given) else new_request_id(),
            scope["method"],
            raw_path.decode("ascii", "backslashreplace")[:_MAX_PATH_CHARS],
            client[0] if client and _ADDRESS.fullmatch(client[0]) else "",
            headers.get("traceparent"),
        )

    @classmethod
    def of_background(cls, scope: Scope) -> "RequestRecord":
        """The beginning of the record of what goes on once its request is answered; its status is to be told."""
        record: RequestRecord = scope[RECORD]
        return replace(record, route=_route(scope), status=500, is_background=True)

    @property
    def total_s(self) -> float:
        """From the head of the request to the end of the answer."""
        return self.ended - self.started

    @property
    def first_token_s(self) -> float | None:
        """From the head of the request to the first output of the engine."""
        meter = self.meter
        return None if meter is None or meter.first_at is None else meter.first_at - self.started

    def note(self, generation: Generation, handle: RequestHandle) -> None:
        """The request has ended in the engine."""
        usage = generation.usage()
        self.num_prompt_tokens = usage["prompt_tokens"]
        self.num_output_tokens = usage["completion_tokens"]
        self.finish_reasons = [choice.finish_reason or "abort" for choice in generation.choices]
        self.abort_reason = None if generation.is_finished else abort_reason(handle.error)
        self.meter = handle.meter


def new_request_id() -> str:
    """An id for a request that brought none."""
    return f"req_{secrets.token_hex(12)}"


class Recorder:
    """Gives each request a record and its answer `x-request-id`; at the end `sink` gets the record."""

    def __init__(self, app: ASGIApp, sink: Callable[[RequestRecord], None]) -> None:
        self._app = app
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[RECORD] = record = RequestRecord.of(scope)
        scope[SERVER_SEND] = send

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            record.ended = time.monotonic()
            record.route = _route(scope)
            if REFUSED in scope:
                record.status, record.request_id = scope[REFUSED]
            self._sink(record)


def _route(scope: Scope) -> str:
    """The path of the route as declared: there are few of them, while paths are as many as clients like."""
    return getattr(scope.get("route"), "path", "none")
