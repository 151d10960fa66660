"""An ASGI wrapper around the whole app: a cap on every body."""

from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remuda.server.errors import RETRY_AFTER_S, SERVER_ERROR, ApiError

# Of the largest size; and at least.
_MAX_BODIES_HELD: Final = 32
_MIN_HELD_BYTES: Final = 64 * 2**20
# What a refused body may still send and have thrown away, so that its client comes to read the answer.
_MAX_DISCARDED_BYTES: Final = 64 * 2**20


class BodyLimit:
    """Answers 413 to a body of more than `max_bytes`: by its declared length, or once that much has come.

    Bodies that are still coming may hold so much together; beyond it the answer is 503.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_held_bytes = max(_MIN_HELD_BYTES, _MAX_BODIES_HELD * max_bytes)
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = int(Headers(scope=scope).get("content-length", "0"))
        if declared > self._max_bytes:
            error = self._too_large(close=declared > _MAX_DISCARDED_BYTES)
            response = JSONResponse(error.body, error.status_code, headers=error.headers)
            await response(scope, receive, send)
            return
        num_bytes = 0

        def release() -> None:
            nonlocal num_bytes
            self._num_held_bytes -= num_bytes
            num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            size = len(message.get("body", b""))
            num_bytes += size
            self._num_held_bytes += size
            if num_bytes > self._max_bytes:
                raise self._too_large(close=True)
            if self._num_held_bytes > self._max_held_bytes:
                raise self._too_much()
            if not message.get("more_body", False):
                release()
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            release()

    def _too_large(self, *, close: bool) -> ApiError:
        message = f"the body is larger than the limit of {self._max_bytes} bytes"
        headers = {"connection": "close"} if close else None
        return ApiError(413, message, code="body_too_large", headers=headers)

    def _too_much(self) -> ApiError:
        message = "this server is receiving more than it can hold; try again soon"
        headers = {"connection": "close", "retry-after": RETRY_AFTER_S}
        return ApiError(503, message, kind=SERVER_ERROR, code="too_many_bodies", headers=headers)
