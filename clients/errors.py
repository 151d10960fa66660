"""What can go wrong with a request, as a small tree of exceptions under `ClientError`. None shows an API key."""


class ClientError(Exception):
    """Any failure of this client."""


class InvalidArgumentError(ClientError, ValueError):
    """An argument that cannot be meant; nothing was sent."""


class ConnectionFailedError(ClientError):
    """The server could not be reached, or went away before it answered."""


class TimedOutError(ConnectionFailedError):
    """The server took longer than `Timeouts` allow; `limit` names which: connect, read, write, pool or total."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class BadAnswerError(ClientError):
    """The answer is not what the API says: no JSON, or without what must be in it."""


class StatusError(ClientError):
    """The server refused: an HTTP status, and what the error body says.

    param: the field that is at fault. code: in a word. request_id: of the header `x-request-id`, for the
    server's log. retry_after: seconds that the server asked to wait.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(StatusError):
    """4xx: the request cannot be honoured; `param` names the field."""


class AuthenticationError(BadRequestError):
    """401 or 403: the key is missing, wrong, or not enough."""


class NotFoundError(BadRequestError):
    """404: no such model, response or URL."""


class RateLimitError(BadRequestError):
    """429: too many requests wait."""


class ServerError(StatusError):
    """5xx: the server failed."""


class UnavailableError(ServerError):
    """503: the engine loads, restarts or drains; a retry may succeed."""


class Received:
    """What a stream has brought so far. num_events: that were read. finish_reasons: of choices that have ended."""

    def __init__(self) -> None:
        self.num_events = 0
        self.finish_reasons: dict[int, str] = {}
        self._pieces: dict[int, list[str]] = {}

    def add(self, choice: int, text: str) -> None:
        """New text of a choice."""
        self._pieces.setdefault(choice, []).append(text)

    @property
    def texts(self) -> dict[int, str]:
        """By choice."""
        return {choice: "".join(pieces) for choice, pieces in self._pieces.items()}

    @property
    def text(self) -> str:
        """Of the first choice."""
        return "".join(self._pieces.get(0, ()))


class StreamError(ClientError):
    """A stream did not end well; `received` is what had arrived."""

    def __init__(self, message: str, received: Received) -> None:
        super().__init__(message)
        self.message = message
        self.received = received


class StreamFailedError(StreamError):
    """The server sent an error event; `param` and `code` are the event's."""

    def __init__(
        self, message: str, received: Received, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, received)
        self.param = param
        self.code = code


class BadEventError(StreamError, BadAnswerError):
    """An event of a stream is not what the API says."""


class StreamCutError(StreamError):
    """The stream ended before its end: without `[DONE]`, and without a finish reason for each choice."""


class StreamBrokenError(StreamError):
    """The connection broke in the middle of a stream."""


class StreamTimedOutError(StreamBrokenError):
    """Nothing came for longer than `Timeouts` allow; `limit` names which: read or total."""

    def __init__(self, message: str, received: Received, limit: str) -> None:
        super().__init__(message, received)
        self.limit = limit
