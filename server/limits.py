"""An ASGI wrapper around the whole app: a cap on every body."""

from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remuda.server.errors import ApiError

# What a refused body may still send and have thrown away, so that its client comes to read the answer.
_MAX_DISCARDED_BYTES: Final = 64 * 2**20


class BodyLimit:
    """Answers 413 to a body of more than `max_bytes`: by its declared length, or once that much has come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

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

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._too_large(close=True)
            return message

        await self._app(scope, receive_counted, send)

    def _too_large(self, *, close: bool) -> ApiError:
        message = f"the body is larger than the limit of {self._max_bytes} bytes"
        headers = {"connection": "close"} if close else None
        return ApiError(413, message, code="body_too_large", headers=headers)
