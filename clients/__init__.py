"""Clients of a server, over HTTP alone: a Python client, a chat for the terminal, a load test."""

from remuda.clients.async_client import AsyncClient, AsyncStream
from remuda.clients.client import Client, Stream
from remuda.clients.errors import (
    AuthenticationError,
    BadAnswerError,
    BadEventError,
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    Received,
    ServerError,
    StatusError,
    StreamBrokenError,
    StreamCutError,
    StreamError,
    StreamFailedError,
    StreamTimedOutError,
    TimedOutError,
    UnavailableError,
)
from remuda.clients.retries import RetryPolicy
from remuda.clients.settings import Timeouts

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadAnswerError",
    "BadEventError",
    "BadRequestError",
    "Client",
    "ClientError",
    "ConnectionFailedError",
    "InvalidArgumentError",
    "NotFoundError",
    "RateLimitError",
    "Received",
    "RetryPolicy",
    "ServerError",
    "StatusError",
    "Stream",
    "StreamBrokenError",
    "StreamCutError",
    "StreamError",
    "StreamFailedError",
    "StreamTimedOutError",
    "TimedOutError",
    "Timeouts",
    "UnavailableError",
]
