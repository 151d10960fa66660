"""How a client reaches its server: address, key, timeouts, retries. Checked once, where the client is made."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from remuda.clients.errors import InvalidArgumentError
from remuda.clients.keys import KEY_ENVIRONMENT, KEY_RULE, is_key
from remuda.clients.retries import RetryPolicy

DEFAULT_URL: Final = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Timeouts:
    """In seconds; None: no limit.

    connect: for a connection. read: between two pieces of an answer, before its first one too (the keep-alives
    of a stream count as pieces). total: for a request with all its retries, to the end of its answer.
    """

    connect: float | None = 5
    read: float | None = 600
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgumentError(f"timeout {name} must be above 0, not {value}")

    def within(self, remaining: float | None) -> httpx2.Timeout:
        """Those of one attempt. remaining: seconds left of the total."""
        return httpx2.Timeout(
            connect=_least(self.connect, remaining),
            read=_least(self.read, remaining),
            write=_least(self.read, remaining),
            pool=remaining,
        )


@dataclass(frozen=True)
class Settings:
    """What `Client` and `AsyncClient` are made of. url: with or without `/v1` at its end. clock: in seconds."""

    url: str
    api_key: str | None = field(repr=False)
    timeouts: Timeouts
    retries: RetryPolicy
    clock: Callable[[], float] = time.monotonic

    def http_arguments(self) -> dict[str, Any]:
        """Of an httpx2 client."""
        headers = {"user-agent": "remuda-client"}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        # Nobody is to wait for another request's end; the server has its own limits.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        return {"base_url": self.url, "headers": headers, "limits": limits}


def make_settings(
    url: str, api_key: str | None, timeouts: Timeouts, retries: RetryPolicy, clock: Callable[[], float]
) -> Settings:
    """Raises InvalidArgumentError. Without a key, that of the environment is taken."""
    key = os.environ.get(KEY_ENVIRONMENT) if api_key is None else api_key
    if key and not is_key(key):
        raise InvalidArgumentError(f"api_key: {KEY_RULE}")
    return Settings(_server_url(url), key or None, timeouts, retries, clock)


def _server_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidArgumentError(f"url: {error}, in {url[:200]!r}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgumentError(f"url must be http://HOST:PORT or https://HOST:PORT, not {url[:200]!r}")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise InvalidArgumentError(f"url: the port must be 1 to 65535, not {parsed.port}")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise InvalidArgumentError("url must have no user name, query or fragment; keys go into api_key")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _least(limit: float | None, remaining: float | None) -> float | None:
    return min((value for value in (limit, remaining) if value is not None), default=None)
