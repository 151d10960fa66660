"""Every failure as an OpenAI error body: typed errors, validation, unknown routes, bugs. No stack trace."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from remuda.engine import errors as engine_errors
from remuda.engine.errors import (
    EngineDeadError,
    InvalidRequestError,
    QueueFullError,
    RemudaError,
    UnhealthyStateError,
)

RETRY_AFTER_S: Final = "1"
# What nginx logs where the client left before the answer.
CLIENT_LEFT: Final = 499
INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

# Parts of a pydantic location that name a branch of a union or the place of the body, not a field.
_NOT_A_FIELD: Final = frozenset({"body", "query", "path", "header"})


class ServerUnavailableError(RemudaError):
    """The engine is loading or restarting, or the server is shutting down; a retry may succeed."""


class SlowClientError(RemudaError):
    """The client does not read its stream, and the bound of what may wait for it is reached."""


class ClientGoneError(RemudaError):
    """The client has closed its connection; there is nobody to answer."""


class ResponseEndedError(RemudaError):
    """A client has cancelled or deleted the response that runs in the background."""


class RequestTimeoutError(RemudaError):
    """The request took longer than this server lets any request take."""


class ApiError(HTTPException):
    """An HTTP status with an OpenAI error body."""

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, message, headers)
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that clients parse; all four keys are always there."""
        return error_body(self.detail, self.kind, self.param, self.code)


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def api_error(error: RemudaError) -> ApiError:
    """The HTTP form of a typed error."""
    message = str(error)
    match error:
        case InvalidRequestError():
            return ApiError(400, message, param=error.param, code=error.code)
        case QueueFullError():
            retry = {"retry-after": RETRY_AFTER_S}
            return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=retry)
        case EngineDeadError() | ServerUnavailableError():
            retry = {"retry-after": RETRY_AFTER_S}
            return ApiError(503, message, kind=SERVER_ERROR, code="engine_unavailable", headers=retry)
        case RequestTimeoutError():
            # A client that tries again would wait as long again.
            headers = {"x-should-retry": "false"}
            return ApiError(408, message, kind=SERVER_ERROR, code="request_timeout", headers=headers)
        case ClientGoneError():
            # Nobody reads it; logs and metrics tell it from a fault of the request.
            return ApiError(CLIENT_LEFT, message)
        case SlowClientError():
            return ApiError(500, message, kind=SERVER_ERROR, code="slow_client")
        case UnhealthyStateError():
            return ApiError(500, message, kind=SERVER_ERROR, code="unhealthy_state")
    return ApiError(500, message, kind=SERVER_ERROR)


def typed_error(kind: str, message: str, param: str | None = None) -> RemudaError:
    """The error that the engine process named by its class (`RequestRejected`, `EngineFailed`)."""
    if kind == InvalidRequestError.__name__:
        return InvalidRequestError(message, param=param)
    error_class = getattr(engine_errors, kind, RemudaError)
    error: RemudaError = error_class(message)
    return error


def abort_reason(error: RemudaError | None) -> str:
    """Why a request ended before its time, in a word for metrics and logs."""
    match error:
        case ClientGoneError():
            return "disconnect"
        case ResponseEndedError():
            return "cancelled"
        case SlowClientError():
            return "slow_reader"
        case RequestTimeoutError():
            return "timeout"
        case QueueFullError():
            return "queue_full"
        case InvalidRequestError():
            return "refused"
        case EngineDeadError():
            return "engine_dead"
    return "error"


def install_handlers(app: FastAPI) -> None:
    """Answer every exception of `app` with an OpenAI error body."""

    async def on_typed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RemudaError)
        return _response(api_error(error))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _response(error if isinstance(error, ApiError) else _of_routing(request, error))

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _response(_of_validation(error.errors()))

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        message = "the server met an internal error; its log has the details"
        # The server closes the connection once it has logged the error: nobody is to send another request on it.
        return _response(ApiError(500, message, kind=SERVER_ERROR, headers={"connection": "close"}))

    app.add_exception_handler(RemudaError, on_typed)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_bug)


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status_code, headers=error.headers)


def _of_routing(request: Request, error: HTTPException) -> ApiError:
    target = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return ApiError(404, f"unknown URL: {target}", code="unknown_url")
    if error.status_code == 405:
        message = f"method not allowed: {target}"
        headers = {"allow": ", ".join(_allowed_methods(request))}
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)


def _allowed_methods(request: Request) -> list[str]:
    """Of every route at this path; Starlette names those of the first alone."""
    routes = request.app.router.routes
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [m for m, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]


def _of_validation(errors: Sequence[Any]) -> ApiError:
    """The first complaint of pydantic, without the value it complains about."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in _NOT_A_FIELD)
    if not place:
        return ApiError(400, "the body must be a JSON object")
    if first["type"] == "missing":
        return ApiError(400, f"{place} is required", param=place)
    message = first["msg"]
    return ApiError(400, f"{place}: {message[:1].lower()}{message[1:]}", param=place)
