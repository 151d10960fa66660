"""What a peer is told who is refused before the application sees anything, and who hears of it."""

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from remuda.engine.log_format import FIELDS
from remuda.server.errors import INVALID_REQUEST, RETRY_AFTER_S, SERVER_ERROR, error_body

logger = logging.getLogger("remuda.access")

# Is told the status of each refusal.
OnRefusal = Callable[[int], None]

_CODES: Final = {
    408: "request_timeout",
    413: "body_too_large",
    414: "url_too_long",
    431: "headers_too_large",
    503: "too_many_connections",
}


def too_many_connections(limit: int) -> str:
    """Why a connection beyond `limit` is refused."""
    return f"this server has its limit of {limit} connections"


def refusal_answer(status: int, message: str, request_id: str) -> bytes:
    """A whole HTTP answer, after which the connection ends."""
    kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
    body = msgspec.json.encode(error_body(message, kind, None, _CODES.get(status)))
    retry = f"retry-after: {RETRY_AFTER_S}\r\n" if status in (429, 503) else ""
    head = (
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
        f"connection: close\r\n{retry}\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body


def note_refusal(
    status: int, message: str, request_id: str, client: tuple[str, int] | None, listener: OnRefusal | None
) -> None:
    """Log it, and tell `listener`."""
    fields: dict[str, Any] = {"request_id": request_id, "client": client[0] if client else "", "status": status}
    logger.info("refused: %s", message, extra={FIELDS: fields})
    if listener is not None:
        listener(status)
