"""One request from its first attempt to its answer, without the I/O: what is sent, retried, raised."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import httpx2
import msgspec

from remuda.clients.answers import UNREADABLE
from remuda.clients.calls import Request
from remuda.clients.errors import (
    AuthenticationError,
    BadAnswerError,
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    NotFoundError,
    RateLimitError,
    ServerError,
    StatusError,
    TimedOutError,
    UnavailableError,
)
from remuda.clients.retries import RETRIED_STATUSES
from remuda.clients.settings import Settings

T = TypeVar("T")
_MAX_MESSAGE_CHARS: Final = 2000
# With these the server may be there a moment later, and has seen at most a request that it did not answer.
_RETRIED_FAILURES: Final = (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ConnectTimeout)
_BY_STATUS: Final[Mapping[int, type[StatusError]]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    429: RateLimitError,
    503: UnavailableError,
}
_LIMITS: Final[Mapping[type[httpx2.TimeoutException], str]] = {
    httpx2.ConnectTimeout: "connect",
    httpx2.ReadTimeout: "read",
    httpx2.WriteTimeout: "write",
    httpx2.PoolTimeout: "total",
}


class Exchange:
    """The attempts at one request."""

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        self._num_retries = 0
        total = settings.timeouts.total
        self._deadline = None if total is None else settings.clock() + total

    def remaining(self) -> float | None:
        """Seconds left of the total. Raises TimedOutError where none is."""
        if self._deadline is None:
            return None
        lateness = self.lateness()
        if lateness is not None:
            raise lateness
        return self._deadline - self._settings.clock()

    def lateness(self) -> TimedOutError | None:
        """What to raise if the total has passed."""
        is_late = self._deadline is not None and self._settings.clock() >= self._deadline
        return self.timed_out() if is_late else None

    def arguments(self) -> dict[str, Any]:
        """Of httpx2's `build_request`, for the next attempt. Raises TimedOutError."""
        request = self._request
        return {
            "method": request.method,
            "url": request.path,
            "content": request.body,
            "params": request.params or None,
            "headers": {} if request.body is None else {"content-type": "application/json"},
            "timeout": self._settings.timeouts.within(self.remaining()),
        }

    def is_answer(self, response: httpx2.Response) -> bool:
        """What the caller waits for, and no error."""
        return response.is_success or (self._request.is_probe and response.status_code == 503)

    def parsed(self, response: httpx2.Response, parse: Callable[[bytes], T]) -> T:
        """The answer, whose body is read. Raises BadAnswerError; where a probe met something else StatusError."""
        lateness = self.lateness()
        if lateness is not None:
            raise lateness
        try:
            return parse(response.content)
        except BadAnswerError:
            if response.is_success:
                raise
            raise self.refusal(response) from None

    def delay_after_failure(self, error: httpx2.RequestError) -> float:
        """Seconds until the next attempt. Raises ConnectionFailedError where there is to be none."""
        is_retried = isinstance(error, _RETRIED_FAILURES) and not self._request.is_probe
        delay = self._settings.retries.delay(self._num_retries) if is_retried else None
        return self._wait(delay, self.failure(error))

    def delay_after_refusal(self, response: httpx2.Response) -> float:
        """Seconds until the next attempt, the body read or broken off. Raises StatusError where there is none."""
        is_retried = response.status_code in RETRIED_STATUSES and not self._request.is_probe
        delay = self._settings.retries.delay(self._num_retries, response.headers) if is_retried else None
        return self._wait(delay, self.refusal(response))

    def refusal(self, response: httpx2.Response) -> StatusError:
        """What to raise for an answer that is none."""
        status = response.status_code
        error = _error_fields(response)
        kind = _BY_STATUS.get(status, BadRequestError if 400 <= status < 500 else ServerError)
        return (kind if status >= 400 else StatusError)(
            status,
            (error.get("message") or f"the server answered with {response.reason_phrase or 'an error'}"),
            param=error.get("param"),
            code=error.get("code"),
            request_id=response.headers.get("x-request-id"),
            retry_after=self._settings.retries.retry_after(response.headers),
        )

    def failure(self, error: httpx2.RequestError | TimedOutError) -> ConnectionFailedError:
        """What to raise for a connection that failed."""
        if isinstance(error, TimedOutError):
            return error
        url = self._settings.url
        lateness = self.lateness()
        if lateness is not None:
            return lateness
        if isinstance(error, httpx2.TimeoutException):
            limit = next((name for kind, name in _LIMITS.items() if isinstance(error, kind)), "read")
            return TimedOutError(f"{url}: no answer in time (the limit `{limit}`)", limit)
        if isinstance(error, httpx2.ConnectError):
            return ConnectionFailedError(f"cannot connect to {url}: {str(error) or 'no connection'}")
        return ConnectionFailedError(f"{url}: the connection broke: {str(error) or type(error).__name__}")

    def timed_out(self) -> TimedOutError:
        """What to raise when the total has passed."""
        message = f"{self._settings.url}: no whole answer within {self._settings.timeouts.total} s"
        return TimedOutError(message, "total")

    def check_stream(self, response: httpx2.Response) -> None:
        """Raises BadAnswerError where a stream was asked for and something else comes."""
        kind = response.headers.get("content-type", "")
        if kind.startswith(("application/json", "text/html")):
            raise BadAnswerError(f"{self._request.path}: the answer is {kind[:80]}, not a stream of events")

    def _wait(self, delay: float | None, error: ClientError) -> float:
        if delay is None:
            raise error
        if self._deadline is not None and self._settings.clock() + delay >= self._deadline:
            raise error
        self._num_retries += 1
        return delay


def _error_fields(response: httpx2.Response) -> dict[str, str]:
    """message, param and code of an error body: OpenAI's form, FastAPI's `detail`, or any short text.

    None of them where the body could not be read.
    """
    try:
        body = msgspec.json.decode(response.content)
    except httpx2.ResponseNotRead:
        return {}
    except UNREADABLE:
        text = response.text.strip()
        is_short = text and "\n" not in text and len(text) <= 200 and "<" not in text
        return {"message": text} if is_short else {}
    fields = body if isinstance(body, dict) else {"message": body}
    inner = fields.get("error") or fields.get("detail") or fields
    fields = inner if isinstance(inner, dict) else {"message": inner}
    return {name: str(value)[:_MAX_MESSAGE_CHARS] for name, value in fields.items() if value is not None}
